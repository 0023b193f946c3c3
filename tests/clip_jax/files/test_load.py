"""`load` and `Clip`: what a folder has to hold, what is refused with which words, and what a user does next."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax import preprocess, tokenizer
from tests.clip_jax import checkpoints


def edit(path, **changes):
    """Fields of a JSON file changed, or removed (None)."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        section = content
        *outer, last = key.split("__")
        for name in outer:
            section = section[name]
        section[last] = value
        if value is None:
            del section[last]
    path.write_text(json.dumps(content))


def test_round_trip(clip, folder):
    again = clip_jax.load(folder)
    checkpoints.equal(again.params, clip.params)
    assert again.config == clip.config and again.preprocessing == clip.preprocessing
    assert again.marker_id == clip.marker_id == 259
    texts = ["a red circle", "on grass", ""]
    np.testing.assert_array_equal(again.tokenize(texts), clip.tokenize(texts))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["clip"]  # nothing temporary is left
    again_folder = folder.parent / "again"
    clip_jax.save(again, again_folder)
    for path in folder.iterdir():
        assert (again_folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_outline_is_the_clip_without_its_weights(clip, folder):
    whole = clip_jax.load(folder)
    (folder / "model.safetensors").write_bytes(b"not read")
    outline = clip_jax.outline(folder)
    assert outline.config == whole.config and outline.preprocessing == whole.preprocessing
    assert outline.source == whole.source
    np.testing.assert_array_equal(outline.tokenize(["a red circle"]), whole.tokenize(["a red circle"]))
    described = lambda params: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), params)
    assert described(outline.params) == described(whole.params)


def test_use(clip):
    """What the methods add to `model` and `tokenizer`: this checkpoint's config, cut texts, its marker."""
    pixels, _ = checkpoints.inputs(clip.config)
    ids = clip.tokenize(["a red circle", "a $ circle $"])
    assert ids.dtype == np.int32 and ids.shape == (2, 12)
    long = replace(clip, config=replace(clip.config, text=replace(clip.config.text, context_length=40)))
    long = replace(long, tokenizer=replace(clip.tokenizer, context_length=40))
    assert long.tokenize(["a red circle"]).shape == (1, 16)
    np.testing.assert_array_equal(clip.tokenize("red"), clip.tokenize(["red"]))
    images = jax.jit(clip.encode_image)(clip.params, pixels)
    texts, out = jax.jit(partial(clip.encode_text, intermediates=True))(clip.params, ids)
    for ours, wanted in zip((images, texts), checkpoints.embed(clip, pixels, ids), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
    assert images.shape == (3, 28) and texts.shape == (2, 28) and out["pooled"].shape == (2, 20)
    assert images.dtype == texts.dtype == jnp.float32
    spec = clip.preprocessing
    picture = np.random.default_rng(0).integers(0, 256, (2, 17, 30, 3), np.uint8)
    np.testing.assert_array_equal(clip.preprocess(picture), preprocess.preprocess(spec, picture))
    assert clip.preprocess(picture[0]).shape == (1, 15, 15, 3)


def test_under_transformations(clip):
    """As a static argument, and under grad: a Clip and its methods compare and hash by identity."""
    pixels, ids = checkpoints.inputs(clip.config)
    encode = jax.jit(lambda clip, params, ids: clip.encode_text(params, ids), static_argnums=0)
    _, wanted = checkpoints.embed(clip, pixels, ids)
    np.testing.assert_allclose(encode(clip, clip.params, ids), wanted, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda params: clip.encode_text(params, ids).sum()))(clip.params)
    assert np.abs(gradients["text"]["projection"]["kernel"]).max() > 0
    assert np.abs(gradients["image"]["projection"]["kernel"]).max() == 0
    assert len({clip, replace(clip), clip}) == 2


def test_pseudo_tokens_go_where_the_marker_is(clip):
    pixels, _ = checkpoints.inputs(clip.config)
    red = clip.params["text"]["tokens"][clip.tokenizer.encode("red")[0, 1]]
    _, wanted = checkpoints.embed(clip, pixels, clip.tokenize(["a red circle", "red on grass"]))
    ids, pseudo = clip.tokenize(["a $ circle", "$ on grass"]), jnp.stack([red, red])
    encode = jax.jit(clip.encode_text)
    other = jax.jit(partial(clip.encode_text, marker_id=5))
    for ours in (
        encode(clip.params, ids, pseudo_tokens=pseudo),
        encode(clip.params, ids, pseudo_tokens=pseudo[:, None]),
        other(clip.params, np.where(ids == 259, 5, ids), pseudo_tokens=pseudo),
    ):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_a_text_without_the_marker_is_refused(clip):
    ids = clip.tokenize(["a $ circle", "a red circle"])
    pseudo = jnp.zeros((2, 20))
    with pytest.raises(ValueError, match="text 1 has the marker 259 0 times"):
        clip.encode_text(clip.params, ids, pseudo_tokens=pseudo)
    with pytest.raises(ValueError, match="text 0 has the marker 259 1 times; the pseudo tokens need 2"):
        clip.encode_text(clip.params, jnp.asarray(ids), pseudo_tokens=jnp.zeros((2, 2, 20)))


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16])
def test_dtype(dtype, clip, folder):
    narrow = clip_jax.load(folder, dtype=dtype)
    name = jnp.dtype(dtype).name
    assert narrow.config == replace(clip.config, dtype=name)
    assert narrow.params["logit_scale"].dtype == jnp.float32
    kinds = {leaf.dtype.name for tower in ("image", "text") for leaf in jax.tree.leaves(narrow.params[tower])}
    assert kinds == {name}
    pixels, ids = checkpoints.inputs(clip.config)
    for ours, wanted in zip(checkpoints.embed(narrow, pixels, ids), checkpoints.embed(clip, pixels, ids), strict=True):
        assert 0 < np.abs(ours - wanted).max() < 0.1 * np.abs(wanted).max()


def test_unknown_dtype(clip, folder, tmp_path):
    for action in (
        lambda dtype: clip_jax.load(folder, dtype=dtype),
        lambda dtype: clip_jax.save(clip, tmp_path / "x", dtype=dtype),
    ):
        for dtype in ("int8", "half-ish"):
            with pytest.raises(
                ValueError, match=f"unknown dtype '{dtype}'; valid names: 'float32', 'bfloat16', 'float16'"
            ):
                action(dtype)
        with pytest.raises(ValueError, match=r"float64 needs jax\.config\.update"):
            action("float64")
    assert not (tmp_path / "x").exists()


def test_put_places_the_parameters(clip, folder):
    kept = clip_jax.load(folder, put=lambda path, leaf: (path, leaf))
    paths = {path: leaf for path, leaf in jax.tree.leaves(kept.params, is_leaf=lambda x: isinstance(x, tuple))}
    assert {type(leaf) for leaf in paths.values()} == {np.ndarray}
    checkpoints.equal(traverse_util.unflatten_dict(paths, sep="/"), clip.params)


# -- What a folder lacks ----------------------------------------------------------------------


def test_without_a_tokenizer(clip, tmp_path):
    clip_jax.save(replace(clip, tokenizer=None), tmp_path / "clip")
    loaded = clip_jax.load(tmp_path / "clip")
    pixels, ids = checkpoints.inputs(clip.config)
    for ours, wanted in zip(checkpoints.embed(loaded, pixels, ids), checkpoints.embed(clip, pixels, ids), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    marked, pseudo = clip.tokenize(["a $ circle"]), jnp.ones((1, 20))
    ours, wanted = (c.encode_text(c.params, marked, pseudo_tokens=pseudo) for c in (loaded, clip))
    np.testing.assert_array_equal(ours, wanted)  # the marker is that of CLIP's vocabulary
    with pytest.raises(FileNotFoundError) as error:
        loaded.tokenize(["x"])
    for name in (str(tmp_path / "clip"), "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        assert name in str(error.value)


def test_no_marker_in_a_vocabulary_that_is_not_clips(clip):
    text = replace(clip.config.text, vocab_size=99, end_rule="largest_id", eos_token_id=None)
    small = replace(clip, config=replace(clip.config, text=text), tokenizer=None)
    with pytest.raises(ValueError, match="no tokenizer, and its vocabulary of 99 is not CLIP's: pass a marker_id"):
        _ = small.marker_id


def test_without_preprocessing(clip, folder):
    (folder / "preprocessor_config.json").unlink()
    assert clip_jax.load(folder).preprocessing == preprocess.Preprocessing(size=15, crop=15)


def test_wrong_tokenizer(folder):
    tokenizer.build(["other words"], context_length=12).save(folder)
    with pytest.raises(ValueError, match=r"the tokenizer in .* has \d+ tokens, the text tower's vocabulary \d+"):
        clip_jax.load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(projection_dim=None), "projection_dim is missing"),
        (dict(text_config=None), "text_config is missing"),
        (
            dict(vision_config__patch_size=None, vision_config__hidden_act=None, vision_config__model_type=None),
            "vision_config lacks hidden_act, patch_size",
        ),
        (dict(text_config__hidden_act="relu"), "hidden_act is unknown: 'relu'"),
        (dict(model_type="siglip"), "model_type is 'siglip'"),
        (dict(model_type="clip_text_model"), "this is only the text tower of a CLIP"),
        (dict(model_type="clip_vision_model"), "this is only the image tower of a CLIP"),
        (dict(text_config__hidden_size=21), "width 21 is not divisible by 5 heads"),
    ],
)
def test_bad_config(change, message, folder):
    edit(folder / "config.json", **change)
    with pytest.raises(ValueError) as error:
        clip_jax.load(folder)
    assert str(folder / "config.json") in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model_type=["clip"]), "model_type is ['clip']; only 'clip' can be read"),
        (dict(projection_dim=True), "projection_dim is not an integer"),
        (dict(text_config=[1]), "text_config is not an object"),
        (dict(text_config_dict="x"), "text_config_dict is not an object, got 'x'"),
        (dict(text_config__hidden_act=["gelu"]), "text_config.hidden_act is unknown: ['gelu']"),
        (dict(text_config__hidden_size="20"), "text_config.hidden_size must be an integer, got '20'"),
        (dict(vision_config__patch_size=5.0), "vision_config.patch_size must be an integer, got 5.0"),
        (dict(vision_config__layer_norm_eps="1e-5"), "vision_config: norm_eps must be a positive number, got '1e-5'"),
        (dict(text_config__eos_token_id=[40]), "text_config: end_rule 'eos_token_id' needs one eos_token_id, got [40]"),
        (dict(vision_config__image_size=10**400), "vision_config: image_size must be at most 16,777,216"),
        (dict(text_config__num_hidden_layers=10**9), "text_config: layers must be at most 1,024"),
    ],
)
def test_types_of_the_config(change, message, folder):
    content = json.loads((folder / "config.json").read_text())
    if "text_config_dict" in change:
        (folder / "config.json").write_text(json.dumps(content | change))
    else:
        edit(folder / "config.json", **change)
    with pytest.raises(ValueError) as error:
        clip_jax.load(folder)
    assert str(folder / "config.json") in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_link_that_leads_nowhere_is_not_taken_for_a_file_that_is_absent(name, folder):
    (folder / name).unlink()
    (folder / name).symlink_to("blobs/absent")
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        clip_jax.load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_weights_that_are_not_finite(dtype, value, folder):
    name = "text_model.encoder.layers.1.self_attn.k_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3, 4] = value
    save_file(tensors, folder / "model.safetensors")
    if value == 1e30 and dtype != "float16":  # which alone cannot hold it
        clip_jax.load(folder, dtype=dtype)
        return
    with pytest.raises(ValueError) as error:
        clip_jax.load(folder, dtype=dtype)
    message = str(error.value)
    assert (
        str(folder / "model.safetensors") in message and name in message and "1 values are NaN or infinite" in message
    )


def test_config_is_not_json(folder):
    (folder / "config.json").write_text("{'a'")
    with pytest.raises(ValueError, match=f"{folder / 'config.json'}, line 1, column 2: invalid JSON"):
        clip_jax.load(folder)


def test_weights_of_another_config(folder):
    edit(folder / "config.json", text_config__num_hidden_layers=2, text_config__intermediate_size=48)
    with pytest.raises(ValueError) as error:
        clip_jax.load(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / 'model.safetensors'}: the tensors do not fit")
    assert "not in the model text_model.encoder.layers.2.layer_norm1.bias" in message
    assert "of shape (44,) where the config asks for (48,): text_model.encoder.layers.[0-1].mlp.fc1.bias" in message


def test_no_weights(folder):
    (folder / "model.safetensors").rename(folder / "model.safetensors.part")
    with pytest.raises(FileNotFoundError) as error:
        clip_jax.load(folder)
    message = str(error.value)
    assert f"{folder} is not a CLIP checkpoint. It holds config.json, merges.txt, model.safetensors.part, " in message
    assert "needed: model.safetensors with config.json; " in message


def test_safetensors_go_before_everything_else(clip, folder):
    """Files that would fail if they were opened."""
    for name in ("flax_model.msgpack", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_config.json"):
        (folder / name).write_bytes(b"not read")
    checkpoints.equal(clip_jax.load(folder).params, clip.params)


def test_a_stored_buffer_is_passed_over(clip, folder):
    """The first published checkpoints hold the position ids as well."""
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = np.arange(12)[None]
    save_file(tensors, folder / "model.safetensors")
    checkpoints.equal(clip_jax.load(folder).params, clip.params)
