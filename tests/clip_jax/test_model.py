"""The towers: their parameters, their transformations, where texts end, and pseudo tokens."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from clip_jax import model
from clip_jax.config import VARIANTS
from tests.clip_jax.towers import END, TINY, images, largest_id, parameters, texts


@pytest.fixture(scope="module")
def params():
    return parameters(TINY)


def blocks(layers, width, mlp):
    return {
        "norm1": {"scale": (layers, width), "bias": (layers, width)},
        "qkv": {"kernel": (layers, width, 3, width), "bias": (layers, 3, width)},
        "out": {"kernel": (layers, width, width), "bias": (layers, width)},
        "norm2": {"scale": (layers, width), "bias": (layers, width)},
        "up": {"kernel": (layers, width, mlp), "bias": (layers, mlp)},
        "down": {"kernel": (layers, mlp, width), "bias": (layers, width)},
    }


def test_the_parameter_tree(params):
    """The layout that everything else builds on, by hand."""
    assert jax.tree.map(jnp.shape, params) == {
        "image": {
            "patch": {"kernel": (4, 4, 3, 32)},
            "class_token": (32,),
            "position": (17, 32),
            "pre_norm": {"scale": (32,), "bias": (32,)},
            "blocks": blocks(3, 32, 48),
            "post_norm": {"scale": (32,), "bias": (32,)},
            "projection": {"kernel": (32, 20)},
        },
        "text": {
            "tokens": (99, 24),
            "position": (20, 24),
            "blocks": blocks(2, 24, 96),
            "final_norm": {"scale": (24,), "bias": (24,)},
            "projection": {"kernel": (24, 20)},
        },
        "logit_scale": (),
    }


def test_initial_values():
    """Standard deviations of OpenAI's code, w^-0.5 and so on, at the depth of ViT-B/32's text tower."""
    base = VARIANTS["ViT-B/32"]
    image = replace(base.image, layers=2, width=128, heads=4, mlp_width=512)
    text = replace(base.text, vocab_size=1000, width=256, heads=4, mlp_width=1024)
    config = replace(base, image=image, text=text)
    draw = lambda seed: jax.tree.map(np.asarray, model.init(config, jax.random.key(seed)))
    params, other = (traverse_util.flatten_dict(draw(seed), sep="/") for seed in (0, 1))
    assert all(leaf.dtype == np.float32 for leaf in params.values())
    expected = {
        "text/tokens": 0.02,
        "text/position": 0.01,
        "text/blocks/qkv/kernel": 256**-0.5,
        "text/blocks/out/kernel": (256 * 24) ** -0.5,
        "text/blocks/up/kernel": 512**-0.5,
        "text/blocks/down/kernel": (256 * 24) ** -0.5,
        "text/projection/kernel": 256**-0.5,
        "image/patch/kernel": (3 * 32 * 32 * 3) ** -0.5,  # uniform over +- fan_in^-0.5
        "image/class_token": 128**-0.5,
        "image/position": 128**-0.5,
        "image/blocks/qkv/kernel": 128**-0.5,
        "image/blocks/out/kernel": (128 * 4) ** -0.5,
        "image/blocks/up/kernel": 256**-0.5,
        "image/blocks/down/kernel": (128 * 4) ** -0.5,
        "image/projection/kernel": 128**-0.5,
    }
    for path, leaf in params.items():
        if path in expected:
            assert np.std(leaf) == pytest.approx(expected[path], rel=0.25 if leaf.ndim == 1 else 0.03), path
            assert abs(np.mean(leaf)) < 5 * expected[path] / leaf.size**0.5, path
        elif path == "logit_scale":
            assert leaf == pytest.approx(np.log(1 / 0.07))
        else:
            assert path.endswith(("scale", "bias")), path
            np.testing.assert_array_equal(leaf, 1.0 if path.endswith("scale") else 0.0)
    kernels = params["text/blocks/up/kernel"]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.01  # every layer has its own
    assert abs(np.corrcoef(params["text/tokens"].ravel(), other["text/tokens"].ravel())[0, 1]) < 0.02


def test_patches_are_a_convolution(params):
    pixels = images(TINY, 2)
    kernel = params["image"]["patch"]["kernel"]
    theirs = jax.lax.conv_general_dilated(
        pixels, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    ours = model.Patches(TINY.image).apply({"params": params["image"]["patch"]}, pixels)
    np.testing.assert_allclose(ours, theirs.reshape(2, 16, 32), atol=1e-5)


def test_intermediates(params):
    pixels, ids = images(TINY, 2), texts(TINY, (5, 9))
    embeddings, out = model.encode_image(TINY, params, pixels, intermediates=True)
    assert {k: v.shape for k, v in out.items()} == {
        "hidden_states": (4, 2, 17, 32),
        "last_hidden_state": (2, 17, 32),
        "pooled": (2, 32),
    }
    np.testing.assert_allclose(embeddings, model.encode_image(TINY, params, pixels), atol=1e-6)
    np.testing.assert_array_equal(out["hidden_states"][-1], out["last_hidden_state"])
    embeddings, out = model.encode_text(TINY, params, ids, intermediates=True)
    assert {k: v.shape for k, v in out.items()} == {
        "hidden_states": (3, 2, 20, 24),
        "last_hidden_state": (2, 20, 24),
        "pooled": (2, 24),
    }
    np.testing.assert_allclose(embeddings, model.encode_text(TINY, params, ids), atol=1e-6)
    np.testing.assert_allclose(out["pooled"], out["last_hidden_state"][[0, 1], [4, 8]], atol=1e-6)


# -- transformations --------------------------------------------------------------------------


def loss(config, params, pixels, ids):
    """Something that depends on every parameter but the temperature."""
    return (model.encode_image(config, params, pixels) * model.encode_text(config, params, ids)).sum()


def test_every_parameter_of_the_towers_has_a_gradient(params):
    found = jax.jit(jax.grad(loss, 1), static_argnums=0)(TINY, params, images(TINY, 2), texts(TINY, (5, 9)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves([found["image"], found["text"]]))
    assert found["logit_scale"] == 0


THREE = replace(TINY, text=replace(TINY.text, layers=3))


@functools.cache
def text_gradients(config):
    params = parameters(THREE)
    value = lambda params: (model.encode_text(config, params, texts(THREE, (5, 9))) ** 2).sum()
    return jax.jit(jax.grad(value))({"text": params["text"]})


@pytest.mark.parametrize("change", [{"remat": True}, {"unroll": 2}, {"remat": True, "unroll": True}], ids=str)
def test_how_to_compute_changes_no_number(change):
    ours, reference = text_gradients(replace(THREE, **change)), text_gradients(THREE)
    for ours_leaf, leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(ours_leaf, leaf, atol=1e-4 * np.abs(leaf).max())


def primitives(jaxpr):
    """(name, dtypes of the inputs, parameters) of every operation, also of inner programs."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, [v.aval.dtype for v in equation.invars], equation.params
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def operations(function, config, params):
    inputs = images(config, 1), texts(config, (5,))
    return list(primitives(jax.make_jaxpr(function, static_argnums=0)(config, params, *inputs).jaxpr))


def test_which_towers_are_recomputed_unless_told_otherwise():
    """From ViT-L/14 on, whose images have 24 blocks."""
    assert all(config.recomputes == ("-B/" not in name) for name, config in VARIANTS.items())
    assert not replace(VARIANTS["ViT-L/14"], remat=False).recomputes


def test_remat_recomputes_the_blocks(params):
    """The backward pass of a recomputed block has its products forward (4 and 2 in attention), then twice as many."""
    products = {}
    for remat in (False, True):
        found = operations(jax.grad(loss, 1), replace(TINY, remat=remat), params)
        products[remat] = sum(name == "dot_general" for name, _, _ in found)
    assert products[True] == products[False] + 2 * 6 - 2  # in either tower; the last product's value is not needed


def test_bfloat16_computes_products_in_it_and_the_delicate_parts_in_float32(params):
    found = operations(loss, replace(TINY, dtype="bfloat16"), params)
    low = [set(map(str, types)) == {"bfloat16"} for name, types, _ in found if name == "dot_general"]
    assert len(low) == 2 * 7 + 1 and sum(low) == len(low)  # 6 products a block, patches and two projections
    delicate = {"exp", "reduce_max", "rsqrt", "reduce_sum"}  # softmax, layer norms, pooling
    assert delicate <= {name for name, _, _ in found}
    assert all(str(types[0]) == "float32" for name, types, _ in found if name in delicate)
    embeddings = model.encode_text(replace(TINY, dtype="bfloat16"), params, texts(TINY, (5,)))
    assert embeddings.dtype == jnp.float32


def test_half_precision_parameters(params):
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    ids = texts(TINY, (5, 9))
    ours = model.encode_text(replace(TINY, dtype="bfloat16"), half, ids)
    reference = model.encode_text(TINY, params, ids)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, reference, atol=0.05 * np.abs(reference).max())


def test_under_vmap_over_parameters_and_inputs(params):
    """Two models at once, each on inputs of its own."""
    both = [params, parameters(TINY, 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *both)
    pixels, ids = (np.stack([f(TINY, a, seed=s) for s in (0, 1)]) for f, a in ((images, 2), (texts, (5, 9))))
    pseudo = np.random.default_rng(0).normal(size=(2, 2, 24)).astype(np.float32)
    encode_text = lambda p, i, s: model.encode_text(TINY, p, i, pseudo_tokens=s, marker_id=int(ids[0, 0, 1]))
    images_out = jax.vmap(lambda p, x: model.encode_image(TINY, p, x))(stacked, pixels)
    texts_out = jax.jit(jax.vmap(encode_text))(stacked, ids, pseudo)
    for i, alone in enumerate(both):
        np.testing.assert_allclose(images_out[i], model.encode_image(TINY, alone, pixels[i]), atol=1e-5)
        np.testing.assert_allclose(texts_out[i], encode_text(alone, ids[i], pseudo[i]), atol=1e-5)


def test_under_pmap(params):
    pixels = images(TINY, 2)[None]
    ours = jax.pmap(lambda x: model.encode_image(TINY, params, x))(pixels)
    np.testing.assert_allclose(ours[0], model.encode_image(TINY, params, pixels[0]), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 16, 16), (2, 3, 16, 16), (2, 32, 32, 3), (2, 16, 16, 1)])
def test_images_of_another_shape_are_refused(params, shape):
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 16, 16, 3\), got"):
        model.encode_image(TINY, params, np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(5,), (2, 21), (2, 0), (1, 2, 3)])
def test_ids_of_another_shape_are_refused(params, shape):
    with pytest.raises(ValueError, match=r"ids must have shape \(batch, 1 to 20\), got"):
        model.encode_text(TINY, params, np.zeros(shape, np.int32))


# -- where texts end --------------------------------------------------------------------------


def test_both_rules_by_hand():
    ids = np.array([[5, 90, 7, 90, 0], [95, 98, 90, 98, 3], [90, 1, 1, 1, 1]])
    np.testing.assert_array_equal(model.end_positions(TINY, ids), [1, 2, 0])
    np.testing.assert_array_equal(model.end_positions(largest_id(TINY), ids), [1, 1, 0])
    np.testing.assert_array_equal(jax.jit(lambda i: model.end_positions(TINY, i))(ids), [1, 2, 0])


@pytest.mark.parametrize("config", [TINY, largest_id(TINY)], ids=["eos_token_id", "largest_id"])
def test_nothing_behind_the_end_matters(params, config):
    ids = texts(config, (3, 7, 20, 11))
    ends = model.end_positions(config, ids)
    other = ids.copy()
    for row, end in zip(other, ends, strict=True):
        row[end + 1 :] = np.random.default_rng(1).integers(0, END, len(row) - end - 1)
    assert (other != ids).any()
    np.testing.assert_allclose(
        model.encode_text(config, params, ids), model.encode_text(config, params, other), atol=1e-6
    )


def test_causal(params):
    """A word reaches its own place and those behind it, none before."""
    ids = texts(TINY, (12,))
    other = ids.copy()
    other[0, 6] = 1 + ids[0, 6] % 80
    states = [model.encode_text(TINY, params, i, intermediates=True)[1]["hidden_states"] for i in (ids, other)]
    moved = np.abs(states[0] - states[1]).max(axis=(0, 1, 3))
    assert (moved[:6] == 0).all() and (moved[6:12] > 1e-4).all()


@pytest.mark.parametrize("context, expected", [(77, (16, 24, 32, 48, 77)), (24, (16, 24)), (20, (16, 20)), (8, (8,))])
def test_static_lengths(context, expected):
    config = replace(TINY, text=replace(TINY.text, context_length=context))
    assert model.text_lengths(config) == expected


@pytest.mark.parametrize("longest, expected", [(1, 16), (16, 16), (17, 20), (20, 20)])
def test_cut(longest, expected):
    ids = texts(TINY, (1, longest, 1))
    np.testing.assert_array_equal(model.cut(TINY, ids), ids[:, :expected])


@pytest.mark.parametrize("width, expected", [(9, 9), (17, 16)])
def test_cut_of_ids_that_are_narrower_than_the_context(width, expected):
    assert model.cut(TINY, texts(TINY, (3, 5), width=width)).shape == (2, expected)


def test_cut_texts_have_the_same_embeddings(params):
    for lengths in ((2, 9, 16), (17, 3)):
        ids = texts(TINY, lengths)
        short = model.cut(TINY, ids)
        np.testing.assert_allclose(
            model.encode_text(TINY, params, short), model.encode_text(TINY, params, ids), atol=1e-6
        )


def test_a_text_without_end_is_refused():
    ids = texts(TINY, (3, 5))
    ids[1] = 4
    with pytest.raises(ValueError, match="text 1 has no end token 90"):
        model.cut(TINY, ids)


# -- pseudo tokens ----------------------------------------------------------------------------

MARKER = 7


def marked(*places):
    """One text per tuple of places that hold the marker."""
    ids = texts(TINY, [14] * len(places))
    ids[ids == MARKER] = MARKER + 1
    for row, at in zip(ids, places, strict=True):
        row[list(at)] = MARKER
    return ids


@pytest.mark.parametrize("n", [None, 1, 2])
def test_pseudo_tokens_are_words_added_to_the_vocabulary(params, n):
    """The same embeddings as with a larger table, in which every pseudo token has an id of its own."""
    ids = marked((2, 5), (0, 12), (3, 4)) if n == 2 or n is None else marked((2,), (0,), (12,))
    per_text = n or 1
    pseudo = np.random.default_rng(0).normal(size=(3, per_text, 24)).astype(np.float32)
    table = np.concatenate([params["text"]["tokens"], pseudo.reshape(-1, 24)])
    larger = replace(TINY, text=replace(TINY.text, vocab_size=len(table)))
    new = 99 + np.arange(3 * per_text).reshape(3, per_text)
    renamed = ids.copy()
    for row, own in zip(renamed, new, strict=True):
        row[row == MARKER] = own  # one for all places, or one each, in order
    expected = model.encode_text(larger, params | {"text": params["text"] | {"tokens": table}}, renamed)
    given = pseudo[:, 0] if n is None else pseudo
    ours = model.encode_text(TINY, params, ids, pseudo_tokens=given, marker_id=MARKER)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.abs(ours - model.encode_text(TINY, params, ids)).max() > 1e-3


def test_gradients_reach_the_pseudo_tokens_and_not_the_markers_embedding(params):
    ids = marked((2, 5), (1, 3))
    pseudo = np.random.default_rng(0).normal(size=(2, 2, 24)).astype(np.float32)

    def value(pseudo, tokens):
        own = params | {"text": params["text"] | {"tokens": tokens}}
        return model.encode_text(TINY, own, ids, pseudo_tokens=pseudo, marker_id=MARKER).sum()

    to_pseudo, to_tokens = jax.grad(value, (0, 1))(pseudo, params["text"]["tokens"])
    assert (np.abs(to_pseudo).max(-1) > 1e-3).all()
    present = np.zeros(99, bool)
    present[np.unique(ids[:, :14])] = True
    present[MARKER] = False
    np.testing.assert_array_equal(np.abs(to_tokens).max(-1) > 0, present)


def test_pooling_looks_at_the_ids_and_not_at_the_pseudo_tokens(params):
    ids = marked((13,), (13,))  # the marker stands where the text would end
    ids[:, 13] = END
    pseudo = np.ones((2, 24), np.float32)
    _, out = model.encode_text(TINY, params, ids, pseudo_tokens=pseudo, marker_id=END, intermediates=True)
    np.testing.assert_allclose(out["pooled"], out["last_hidden_state"][:, 13], atol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (3, 24), (2, 23), (2, 1, 23), (2, 1, 1, 24)])
def test_pseudo_tokens_of_another_shape_are_refused(params, shape):
    with pytest.raises(ValueError, match=r"pseudo tokens must be \(2, 24\) or \(2, n, 24\), got"):
        model.encode_text(TINY, params, marked((2,), (3,)), pseudo_tokens=np.ones(shape), marker_id=MARKER)


def test_pseudo_tokens_without_a_marker_are_refused(params):
    with pytest.raises(ValueError, match="pseudo tokens need the marker_id"):
        model.encode_text(TINY, params, marked((2,)), pseudo_tokens=np.ones((1, 24)))


def test_check_marker():
    model.check_marker(marked((2,), (3, 4)), MARKER)
    model.check_marker(marked((2, 9), (3, 4)), MARKER, 2)
    with pytest.raises(ValueError, match="text 1 has the marker 7 0 times; the pseudo tokens need it"):
        model.check_marker(marked((2,), (), ()), MARKER)
    with pytest.raises(ValueError, match="text 2 has the marker 7 3 times; the pseudo tokens need 1"):
        model.check_marker(marked((2,), (4,), (1, 2, 3)), MARKER, 1)
