"""Crop, flip and normalisation against numpy on padded images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.data import augment

crop_flip = jax.jit(augment.crop_flip, static_argnames=("padding", "flip"))


def images(b=12, h=9, w=7, c=3):
    return np.random.default_rng(0).integers(1, 256, (b, h, w, c), np.uint8)  # no 0: the border is told apart


def windows(image, padding):
    """Every crop of the zero-padded image, and its mirror image, by (top, left, mirrored)."""
    h, w, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + h, left : left + w]
            yield (top, left, False), crop
            yield (top, left, True), crop[:, ::-1]


def which_window(image, found, padding):
    matches = [draw for draw, window in windows(image, padding) if np.array_equal(window, found)]
    assert len(matches) == 1
    return matches[0]


def test_every_image_is_a_window_of_its_padded_self():
    batch = images(b=200, h=5, w=6)
    found = np.asarray(crop_flip(jax.random.key(3), batch, np.arange(200), padding=2, flip=True))
    assert found.dtype == np.uint8 and found.shape == batch.shape
    draws = np.array([which_window(image, out, 2) for image, out in zip(batch, found, strict=True)])
    # Uniform: 200 draws of 5 offsets and of a fair coin, 5 standard deviations around their expectation.
    for axis in (0, 1):
        counts = np.bincount(draws[:, axis], minlength=5)
        assert np.all(np.abs(counts - 40) < 5 * np.sqrt(200 * 0.2 * 0.8))
    assert abs(draws[:, 2].sum() - 100) < 5 * np.sqrt(50)
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 5 / np.sqrt(200)


def test_crop_without_flip_and_flip_without_crop():
    batch, slots = images(b=16), np.arange(16)
    cropped = crop_flip(jax.random.key(0), batch, slots, padding=1, flip=False)
    assert not any(which_window(a, np.asarray(b), 1)[2] for a, b in zip(batch, cropped, strict=True))
    flipped = np.asarray(crop_flip(jax.random.key(0), batch, slots, padding=0, flip=True))
    kinds = [which_window(a, b, 0) for a, b in zip(batch, flipped, strict=True)]
    assert {kind[2] for kind in kinds} == {True, False}
    np.testing.assert_array_equal(crop_flip(jax.random.key(0), batch, slots, padding=0, flip=False), batch)


def test_draws_belong_to_slots_not_to_positions():
    batch, key = images(b=8), jax.random.key(1)
    whole = crop_flip(key, batch, np.arange(8), padding=2, flip=True)
    parts = [crop_flip(key, batch[i : i + 2], np.arange(i, i + 2), padding=2, flip=True) for i in (0, 2, 4, 6)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    other = crop_flip(jax.random.key(2), batch, np.arange(8), padding=2, flip=True)
    assert not np.array_equal(whole, other)


def test_under_vmap_and_shard_map():
    batch, slots, keys = images(b=4), np.arange(4), jax.random.split(jax.random.key(0), 3)

    def one(key, pixels, slots):
        return augment.crop_flip(key, pixels, slots, padding=2, flip=True)

    many = jax.jit(jax.vmap(one, in_axes=(0, None, None)))(keys, jnp.asarray(batch), slots)
    for key, found in zip(keys, many, strict=True):
        np.testing.assert_array_equal(found, crop_flip(key, batch, slots, padding=2, flip=True))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    spec = jax.sharding.PartitionSpec
    sharded = jax.jit(
        jax.shard_map(one, mesh=mesh, in_specs=(spec(), spec("data"), spec("data")), out_specs=spec("data"))
    )
    np.testing.assert_array_equal(sharded(keys[0], batch, slots), many[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalise(dtype):
    batch, mean, std = images(), (0.49, 0.48, 0.44), (0.2, 0.19, 0.21)
    expected = (batch.astype(np.float64) / 255 - mean) / std
    found = augment.normalize(batch, mean, std, dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=1e-6 if dtype == jnp.float32 else 0.05)
