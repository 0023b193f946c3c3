"""Frozen towers and searches in bfloat16: what stays float32, what is kept apart, what a run leaves."""

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import embed
from clip_jax.spread import placed
from launch.data import scenes
from launch.stages import SettingError
from launch.store import Store
from rtd_jax import experiment, retrieval
from rtd_jax.stages.data import ClipSource
from tests.rtd_jax import tiny
from tldr_jax.stages.images import FrozenClip

BOUND = 0.999  # of the cosine of an embedding with float32's; on this CLIP the least of 500 is .99998
HALF = {"embedding__dtype": "bfloat16", "evaluation__dtype": "bfloat16"}


@pytest.fixture(scope="module")
def clips():
    """The CLIP of Scenes in float32 and in bfloat16."""
    return [ClipSource.named("embedded:scenes", dtype=name).make() for name in ("float32", "bfloat16")]


def operations(jaxpr):
    """(primitive, types of its operands, types of its results) of a program and of those inside it."""
    for equation in jaxpr.eqns:
        types = lambda atoms: [str(getattr(atom.aval, "dtype", "")) for atom in atoms]
        yield equation.primitive.name, types(equation.invars), types(equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


def test_embeddings_are_near_those_of_float32_and_float32_themselves(clips):
    pairs = scenes.pairs(3, 200, held_out=False)
    captions = [caption for (caption,) in pairs.captions]
    for make in (
        lambda clip: clip_jax.embed_images(clip, pairs.images, progress=False),
        lambda clip: clip_jax.embed_texts(clip, captions, progress=False),
    ):
        exact, half = map(make, clips)
        assert exact.dtype == half.dtype == np.float32
        cosine = (exact * half).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(half, axis=1)
        assert BOUND < cosine.min() < 1 - 1e-7


@pytest.mark.parametrize("tower", ["image", "text"])
def test_products_take_bfloat16_and_norms_softmax_and_sums_float32(clips, tower):
    outline = embed.image_outline if tower == "image" else embed.text_outline
    function, arguments = outline(clips[1], 4, jax.devices()[:1])
    count = next(i for i, argument in enumerate(arguments) if isinstance(argument, dict))
    found = list(operations(jax.make_jaxpr(function, static_argnums=tuple(range(count)))(*arguments).jaxpr))
    products = [operands for name, operands, _ in found if name == "dot_general"]
    assert len(products) > 4 and all(operands == ["bfloat16"] * 2 for operands in products)
    wide = ("reduce_sum", "reduce_max", "rsqrt")
    assert {name for name, *_ in found} >= set(wide)
    assert {kind for name, operands, _ in found if name in wide for kind in operands} == {"float32"}
    weights = [out for name, _, out in found if name == "dot_general"]
    assert ["float32"] in weights  # the scores, of which softmax is made


def test_frozen_parameters_lie_in_bfloat16_on_the_devices():
    clip = FrozenClip.named("embedded:scenes", dtype="bfloat16").make()
    types = jax.tree.map(lambda leaf: (isinstance(leaf, jax.Array), leaf.dtype.name), clip.params)
    assert types.pop("logit_scale") == (True, "float32")
    assert set(jax.tree.leaves(types, is_leaf=lambda leaf: isinstance(leaf, tuple))) == {(True, "bfloat16")}
    shapes = FrozenClip.named("embedded:scenes", dtype="bfloat16").outline().params
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), shapes, clip.params)
    assert all(jax.tree.leaves(same)) and placed(clip).config.dtype == "bfloat16"


def test_no_table_is_reused_for_another_type(clips, tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for clip in clips:
        clip_jax.embed_images(clip, images, cache=tmp_path, progress=False)
        clip_jax.embed_texts(clip, ["red"], cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_gallery_in_bfloat16_is_held_and_multiplied_in_it_and_summed_in_float32():
    vectors = np.random.default_rng(0).normal(size=(301, 64)).astype(np.float32)
    half = vectors.astype("bfloat16")
    placed = retrieval.place(half)
    assert placed.rows.dtype == "bfloat16"
    wide = half.astype(np.float32)
    scores = wide[:9] @ wide.T
    for gallery in (half, placed):
        found = retrieval.top_k(half[:9], gallery, 20)
        assert found.scores.dtype == np.float32
        np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :20], rtol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(scores, found.rows, 1), found.scores, rtol=1e-5)
    exact = retrieval.top_k(vectors[:9], half, 20, dtype="float32").scores
    assert np.abs(exact - found.scores).max() > 1e-3  # its queries are not rounded
    one = retrieval.program(4096, 64, 8, 3, jax.devices()[:1], "bfloat16")["search"]
    assert one.arguments[2].dtype == "bfloat16"
    found = operations(jax.make_jaxpr(one.jitted)(*one.arguments).jaxpr)
    assert [types for name, *types in found if name == "dot_general"] == [[["bfloat16"] * 2, ["float32"]]]


def test_ties_and_nan_in_bfloat16():
    queries, gallery = np.ones((2, 4), "bfloat16"), np.ones((50, 4), "bfloat16")
    np.testing.assert_array_equal(retrieval.top_k(queries, gallery, 9, chunk=16).rows, [np.arange(9)] * 2)
    gallery[17] = np.nan
    with pytest.raises(ValueError, match="score of gallery row 17 for query 0 is NaN"):
        retrieval.top_k(queries, gallery, 3)
    members = np.array([[3, 1, -1], [2, 0, 4]], np.int32)
    found = retrieval.rank_members(queries, gallery, members)
    np.testing.assert_array_equal(found.rows, [[1, 3, -1], [0, 2, 4]])
    assert found.scores.dtype == np.float32


def test_cosine_of_a_gallery_in_bfloat16_is_normalised_in_float32():
    vectors = np.random.default_rng(0).normal(size=(40, 64)).astype("bfloat16")
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    exact = unit(vectors[:3].astype(np.float32)) @ unit(vectors.astype(np.float32)).T
    found = retrieval.top_k(vectors[:3], vectors, 40, cosine=True, dtype="float32").scores
    np.testing.assert_allclose(found, -np.sort(-exact, axis=1), atol=1e-6)


def test_a_run_in_bfloat16(tmp_path):
    """RTD starts from the float32 tower, and the CLIP that is left has the published image tower."""
    root, store = experiment.plan(tiny.config(**HALF)), Store(tmp_path / "store")
    found = store.get(root)
    assert all(np.isfinite(value) for value in found.values())
    assert store.get(root.evaluations[0].gallery.clip).config.dtype == "bfloat16"
    exact = experiment.plan(tiny.config())
    assert root.tuned is not None and exact.tuned is not None
    left, published = store.get(root.tuned), clip_jax.load(clip_jax.embedded("scenes"))
    assert left.config.dtype == "float32"
    jax.tree.map(np.testing.assert_array_equal, left.params["image"], jax.device_get(published.params["image"]))
    assert exact.tuned.tuning.start == root.tuned.tuning.start
    for one, other in zip(root.evaluations, exact.evaluations, strict=True):
        assert one.gallery.key != other.gallery.key


@pytest.mark.parametrize("field", ["embedding.dtype", "evaluation.dtype"])
def test_another_type_is_refused(field):
    with pytest.raises(SettingError, match=rf"{field}='float16'.*'float32', 'bfloat16'"):
        experiment.plan(tiny.config(**{field.replace(".", "__"): "float16"}))
