"""The two views of an image: one decoding, each network's own preprocessing, batches that do not show."""

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax import spread
from launch.data import scenes as world
from tldr_jax.classifier import backbones, features
from tldr_jax.datasets import Part
from tldr_jax.datasets.captions import GapPairs
from tldr_jax.projector import gap


class Decoded:
    """Images of different sizes that count how often they are decoded."""

    def __init__(self, n):
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (20 + k, 30, 3), np.uint8) for k in range(n)]
        self.asked = [0] * n

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        self.asked[index] += 1
        return Image.fromarray(self.pixels[index])


def encoder(crop):
    return features.Encoder(crop, lambda stack: False, lambda stack: stack.reshape(len(stack), -1)[:, :5] / 1.0, 5)


def test_every_image_is_decoded_once_and_cropped_for_each_network():
    images = Decoded(7)
    zeros = np.zeros(7, np.int32)
    crops = {"a": lambda image: np.asarray(image.resize((4, 4))), "b": lambda image: np.asarray(image)[:6, :6]}
    encoders = {name: encoder(crop) for name, crop in crops.items()}
    rows = list(features.encode(Part(images, zeros, zeros), encoders, batch_size=3))
    assert images.asked == [1] * 7
    assert [(name, first, len(block)) for name, first, block in rows] == [
        (name, first, n) for first, n in ((0, 3), (3, 3), (6, 1)) for name in "ab"
    ]
    for name, crop in crops.items():
        found = np.concatenate([block for own, _, block in rows if own == name])
        wanted = [crop(Image.fromarray(p)).reshape(-1)[:5] for p in images.pixels]
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module")
def clip():
    return clip_jax.load(clip_jax.embedded("scenes"))


def test_both_networks_on_images_in_memory(clip):
    pairs = world.pairs(0, 6, held_out=False)
    zeros = np.zeros(6, np.int32)
    model = backbones.create("small_cnn", 2)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    backbone = backbones.Backbone("small_cnn", 32, mean=(0.5,) * 3, std=(0.27,) * 3)
    encoders = {
        "features": features.of_classifier(backbone, variables, outputs=2, batch_size=4),
        "images": features.of_clip(clip, 4),
    }
    rows = list(features.encode(Part(pairs.images, zeros, zeros), encoders, batch_size=4))
    found = {name: np.concatenate([b for own, _, b in rows if own == name]) for name in encoders}
    x = (pairs.images / 255 - 0.5) / 0.27
    wanted = jax.jit(model.apply)(variables, x.astype(np.float32))[1]["features"]
    np.testing.assert_allclose(found["features"], wanted, atol=1e-5)
    pixels = clip.preprocess(list(pairs.images))
    np.testing.assert_allclose(found["images"], jax.jit(clip.encode_image)(clip.params, pixels), atol=1e-3)


def test_networks_are_copied_to_the_devices_once_for_all_blocks(clip, monkeypatch):
    copies, original = [], spread._everywhere
    monkeypatch.setattr(spread, "_everywhere", lambda *args: (copies.append(1), original(*args))[1])
    pairs, zeros = world.pairs(0, 6, held_out=False), np.zeros(6, np.int32)
    encoders = {"images": features.of_clip(clip, 2)}
    assert len(list(features.encode(Part(pairs.images, zeros, zeros), encoders, batch_size=2))) == 3
    assert len(copies) == 1
    placed = clip_jax.placed(clip)
    for _ in range(2):
        clip_jax.embed_images(placed, pairs.images, batch_size=2, progress=False)
        clip_jax.embed_texts(placed, ["red"], progress=False)
    assert len(copies) == 2


def test_the_gap_is_images_less_captions(clip):
    pairs = world.pairs(1, 5, held_out=False)
    captions = [texts[0] for texts in pairs.captions]
    found = gap.differences(clip, GapPairs(pairs.images, captions), batch_size=2)
    image = jax.jit(clip.encode_image)(clip.params, clip.preprocess(list(pairs.images)))
    text = jax.jit(clip.encode_text)(clip.params, clip.tokenize(captions))
    np.testing.assert_allclose(found, np.asarray(image) - np.asarray(text), atol=1e-3)
    np.testing.assert_allclose(gap.rows(found, 1), [found.mean(0)], atol=1e-5)
    np.testing.assert_allclose(gap.rows(found, 2), [found[:3].mean(0), found[3:].mean(0)], atol=1e-5)
    assert gap.rows(found, 0) is None
    with pytest.raises(ValueError, match=r"projector\.gap_rows=6: take 0 to 5"):
        gap.rows(found, 6)
