"""Query embeddings: the sentence, the pseudo token's place, both orders of two captions."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import model
from rtd_jax import phi
from rtd_jax.text import compose


@pytest.fixture(scope="module")
def clip():
    return clip_jax.load(clip_jax.embedded("scenes"))


@pytest.fixture(scope="module")
def network(clip):
    return phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))


@pytest.fixture(scope="module")
def images(clip):
    return 3 * np.random.default_rng(0).normal(size=(3, clip.config.projection)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encode(clip, network, image, sentence):
    """One text with one image's token, without batches."""
    ids = clip.tokenize([sentence])
    found = clip.encode_text(clip.params, ids, pseudo_tokens=network(image[None]))
    return unit(np.asarray(found)[0])


def test_queries(clip, network, images):
    texts = ["is blue", "has a red circle on the sand", "is large"]
    found = compose.queries(clip, network, images, texts)
    expected = [encode(clip, network, i, f"a photo of $ that {t}") for i, t in zip(images, texts, strict=True)]
    assert found.shape == (3, clip.config.projection) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    others = compose.queries(clip, network, images[::-1], texts)
    assert np.abs(found - others)[[0, 2]].max() > 0.01  # the images matter


def test_two_captions_are_used_in_both_orders(clip, network, images):
    texts = [("is blue", "is large"), ("is red", "is on the grass"), "is small"]
    found = compose.queries(clip, network, images, texts)
    expected = []
    for image, text in zip(images, texts, strict=True):
        first, second = (text, text) if isinstance(text, str) else (" and ".join(text), " and ".join(text[::-1]))
        both = [encode(clip, network, image, f"a photo of $ that {t}") for t in (first, second)]
        expected.append(unit(both[0] + both[1]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_phi_takes_can_be_prepared(clip, network, images):
    found = compose.queries(clip, network, images, ["is blue"] * 3, prepare=lambda x: 2 * x)
    np.testing.assert_array_equal(found, compose.queries(clip, network, 2 * images, ["is blue"] * 3))


def test_images_in_place_of_their_embeddings(clip, network):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    texts = ["is blue", "is red"]
    embedded = clip_jax.embed_images(clip, pixels, progress=False)
    found = compose.queries(clip, network, pixels, texts)
    np.testing.assert_array_equal(found, compose.queries(clip, network, embedded, texts))


def test_modifications_alone(clip):
    found = compose.modifications(clip, ["is blue", ("is red", "is large")])
    text = lambda t: unit(clip_jax.embed_texts(clip, [t], progress=False)[0])
    both = unit(text("is red and is large") + text("is large and is red"))
    np.testing.assert_allclose(found, [text("is blue"), both], atol=1e-5)


def test_the_prompt(clip):
    prompt = compose.prompt(clip)
    assert tuple(clip.tokenize("a photo of $")[0, : len(prompt.ids)]) == prompt.ids
    ids = compose.tokenize(clip, ["is blue", "is on the grass"])
    assert (ids[:, : len(prompt.prefix) + 1] == prompt.ids[:-1]).all()
    model.check_marker(ids, prompt.marker_id, 1)
    assert len(set(prompt.ids)) == len(prompt.ids) and prompt.ids[-2:] == (prompt.marker_id, prompt.end_id)


def test_a_blank_modification_is_a_query(clip, network, images):
    found = compose.queries(clip, network, images, ["is blue", " ", "is red"])
    pseudo = np.asarray(network(images[1:2]))
    bare = clip_jax.embed_texts(clip, ["a photo of $ that"], pseudo_tokens=pseudo, progress=False)
    np.testing.assert_allclose(found[1:2], bare / np.linalg.norm(bare), atol=1e-5)
    assert np.isfinite(compose.modifications(clip, ["", "is red"])).all()  # the row of the text alone


def test_no_queries(clip, network):
    none = np.empty((0, clip.config.projection), np.float32)
    assert compose.queries(clip, network, none, []).shape == none.shape


def test_mistakes_are_named(clip, network, images):
    with pytest.raises(ValueError, match=r"the marker '\$' stands for the image"):
        compose.queries(clip, network, images, ["is blue", "is like $", "is red"])
    with pytest.raises(ValueError, match=r"text 1: the marker"):
        compose.tokenize(clip, ["is blue", "is like $"])
    with pytest.raises(ValueError, match="a modification text is empty"):
        compose.check_length(clip, " ")
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        compose.queries(clip, network, images, ["is blue", "is red"])
    with pytest.raises(ValueError, match="query 1 has 3 captions"):
        compose.queries(clip, network, images, ["is blue", ("a", "b", "c"), "is red"])
    with pytest.raises(ValueError, match="texts must be a list"):
        compose.orders("is blue")
    wrong = phi.init("phi", clip.config.projection, clip.config.text.width + 1, jax.random.key(0))
    with pytest.raises(ValueError, match="take the φ that was trained with this CLIP"):
        compose.queries(clip, wrong, images, ["is blue"] * 3)


def test_a_clip_without_tokenizer(clip):
    with pytest.raises(FileNotFoundError, match="needs a tokenizer"):
        compose.prompt(replace(clip, tokenizer=None))
