"""Augmentation inside jit: pure and keyed per example, so that results do not depend on how a batch is split."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from launch.training import keys


def crop_flip(key: jax.Array, images: jax.Array, slots: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Crop zero-padded images at random, and flip them horizontally with probability 1/2.

    As torchvision's RandomCrop(h, padding) and RandomHorizontalFlip on raw images: the border has pixel value
    0 before normalisation.

    Args:
      key: of the step; example i draws from fold_in(key, slots[i]).
      images: uint8, (b, h, w, c).
      slots: int32, (b,), positions in the global batch.
      padding: pixels on each side; 0 for no crop.
      flip: whether to flip.

    Returns:
      Same shape and dtype as `images`.
    """
    if padding == 0 and not flip:
        return images
    shift, mirrored = jax.vmap(_draw, (0, None))(keys.per_example(key, slots), padding)
    return _shift_mirror(images, shift, mirrored & flip)


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """(images / 255 - mean) / std.

    Args:
      images: uint8, (..., c).
      mean: per channel, in [0, 1] units.
      std: per channel, in [0, 1] units.
      dtype: of the result.
    """
    return (images.astype(dtype) / 255 - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)


def _draw(key: jax.Array, padding: int) -> tuple[jax.Array, jax.Array]:
    crop_key, flip_key = jax.random.split(key)
    shift = jax.random.randint(crop_key, (2,), -padding, padding + 1)
    return shift, jax.random.bernoulli(flip_key)


def _shift_mirror(images: jax.Array, shift: jax.Array, mirrored: jax.Array) -> jax.Array:
    """images[i, y + shift[i, 0], x + shift[i, 1]], 0 outside, then mirrored where `mirrored`: one gather per axis."""
    _, h, w, _ = images.shape
    x = jnp.where(mirrored[:, None], w - 1 - jnp.arange(w), jnp.arange(w)) + shift[:, 1:]
    y = jnp.arange(h) + shift[:, :1]
    inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None, :]
    rows = jnp.take_along_axis(images, y.clip(0, h - 1)[:, :, None, None], axis=1, mode="clip")
    moved = jnp.take_along_axis(rows, x.clip(0, w - 1)[:, None, :, None], axis=2, mode="clip")
    return jnp.where(inside[..., None], moved, jnp.zeros((), images.dtype))
