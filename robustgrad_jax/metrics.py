"""Similarity of attributions, one number per example.

Inputs are (n, ...) arrays of one shape; everything after the first axis belongs to the example. Nothing here
averages over the batch. All functions are jit-able and differentiable, with finite gradients at zero maps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

COSINE_EPS = 1e-8  # torch.nn.functional.cosine_similarity's default
SSIM_WINDOW = 11  # pixels, Wang et al. 2004


def _same_shape(name: str, a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name} compares arrays of one shape, got {a.shape} and {b.shape}")
    if a.ndim < 2:
        raise ValueError(f"{name} takes (n, ...) arrays, got shape {a.shape}")


def _unit(rows: Array) -> Array:
    """Rows divided by their norm, clamped from below; clamped under the root, gradients stay finite."""
    squared = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    return rows / jnp.sqrt(jnp.maximum(squared, COSINE_EPS**2))


def cosine(a: Array, b: Array) -> Array:
    """Cosine similarity over all entries of an example, (n,); each norm is clamped at 1e-8.

    Values equal torch.nn.functional.cosine_similarity; a zero vector has similarity 0 with everything. In the
    clamped range the gradient is that of the clamped function (torch's goes on differentiating the norm).
    """
    _same_shape("cosine", a, b)
    n = a.shape[0]
    return jnp.sum(_unit(a.reshape(n, -1)) * _unit(b.reshape(n, -1)), axis=-1)


def cosine_distance(a: Array, b: Array) -> Array:
    """(1 - cosine)/2 per example, (n,): in [0, 1] (Joo et al. 2023)."""
    return (1 - cosine(a, b)) / 2


def pearson(a: Array, b: Array) -> Array:
    """Pearson correlation over all entries of an example, (n,).

    Undefined for a constant map (scipy returns NaN); defined as 0 here, so that one dead attribution does not
    spoil the mean of a test set. Independent of the scale of either map, however small.
    """
    _same_shape("pearson", a, b)
    return jnp.sum(_standard_rows(a) * _standard_rows(b), axis=-1)


def _standard_rows(a: Array) -> Array:
    """Rows of (n, ...) with mean 0 and norm 1; rows of zeros where the example is constant."""
    rows = a.reshape(a.shape[0], -1)
    # The mean of equal numbers is rounded, so a constant row must be recognised before it is subtracted.
    constant = jnp.max(rows, axis=-1, keepdims=True) == jnp.min(rows, axis=-1, keepdims=True)
    centred = jnp.where(constant, 0, rows - jnp.mean(rows, axis=-1, keepdims=True))
    # Scaled to a largest entry of 1 before squaring: the result does not depend on the scale, and neither
    # does its gradient, so the scale is a constant.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(centred), axis=-1, keepdims=True))
    centred = centred / jnp.where(scale > 0, scale, 1)
    squared = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.where(constant, 1, squared))


def mse(a: Array, b: Array) -> Array:
    """Mean squared difference over all entries of an example, (n,)."""
    _same_shape("mse", a, b)
    return jnp.mean(jnp.square(a - b).reshape(a.shape[0], -1), axis=-1)


def ssim(
    a: Array,
    b: Array,
    *,
    data_range: float = 1.0,
    window: int = SSIM_WINDOW,
    sigma: float = 1.5,
    boundary: str = "reflect",
) -> Array:
    """Structural similarity (Wang et al. 2004), (n,): the mean over channels and window positions.

    Args:
      a, b: (n, h, w) or (n, h, w, c), with values that span `data_range` (1 for what `heatmap` returns).
      window, sigma: side (odd) and standard deviation in pixels of the gaussian window. K1 = 0.01, K2 = 0.03.
      boundary: "reflect" centres a window on every pixel and mirrors the image at its edges: with the default
        window, torchmetrics' structural_similarity_index_measure. "valid" keeps to the windows that lie
        wholly inside, as Wang et al. do; the outer (window - 1)/2 pixels then hardly count.

    Raises ValueError for an even window, and for images smaller than the window.
    """
    _same_shape("ssim", a, b)
    if a.ndim not in (3, 4):
        raise ValueError(f"ssim takes (n, h, w) or (n, h, w, c) arrays, got shape {a.shape}")
    if a.ndim == 3:
        a, b = a[..., None], b[..., None]
    down, across = (_smoothing(size, window, sigma, boundary) for size in a.shape[1:3])
    dtype = jnp.result_type(a, b, jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    maps = jnp.stack([a, b, a * a, b * b, a * b])
    # The window is separable: two products with banded matrices, on CPU 2 to 8 times as fast as convolutions
    # of so few channels. Variances are differences of close numbers, so half precision will not do on
    # accelerators.
    maps = jnp.einsum("ih,knhwc->kniwc", down.astype(dtype), maps, precision="highest")
    maps = jnp.einsum("jw,kniwc->knijc", across.astype(dtype), maps, precision="highest")
    mean_a, mean_b, aa, bb, ab = maps
    variance_a = jnp.maximum(aa - mean_a**2, 0)
    variance_b = jnp.maximum(bb - mean_b**2, 0)
    covariance = ab - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _smoothing(size: int, window: int, sigma: float, boundary: str) -> np.ndarray:
    """The gaussian window over an axis of `size` pixels, as a (positions, size) matrix."""
    if boundary not in ("reflect", "valid"):
        raise ValueError(f"ssim: boundary {boundary!r} is not known; there are 'reflect' and 'valid'")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"ssim: the window must have an odd, positive number of pixels, got {window}")
    if size < window:
        raise ValueError(
            f"ssim: an image side of {size} pixels is smaller than the window of {window}; "
            f"pass window={size - 1 + size % 2} or less"
        )
    half = window // 2
    offsets = np.arange(-half, half + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((size, size))
    columns = np.abs(np.arange(size)[:, None] + offsets)
    columns = size - 1 - np.abs(size - 1 - columns)
    np.add.at(matrix, (np.arange(size)[:, None], columns), weights / weights.sum())
    return matrix if boundary == "reflect" else matrix[half : size - half]


def heatmap(attribution: Array) -> Array:
    """Channel sum of |attribution| divided by its maximum, per image: (n, h, w, c) -> (n, h, w) in [0, 1].

    A map of zeros stays zeros.
    """
    if attribution.ndim != 4:
        raise ValueError(f"heatmap takes (n, h, w, c) attributions, got shape {attribution.shape}")
    total = jnp.sum(jnp.abs(attribution), axis=-1)
    peak = jnp.max(total, axis=(1, 2), keepdims=True)
    return total / jnp.where(peak > 0, peak, 1)
