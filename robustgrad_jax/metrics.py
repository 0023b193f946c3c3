"""Similarity of attributions, one number per example.

Inputs are (n, ...) arrays of one shape; everything after the first axis belongs to the example. Nothing here
averages over the batch. All functions are jit-able; all but the rank statistics are differentiable, with finite
gradients at zero maps. A map with an entry that is not finite has a result that is not finite either: leave it out
with `finite` and report how many there were, rather than average it away. Zero maps have a defined result everywhere:
0 for the correlations and the intersection, which a constant map leaves undefined, and the formula's for the others.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustgrad_jax.measures.curves import adversarial_insertion_curve as adversarial_insertion_curve
from robustgrad_jax.measures.curves import area as area
from robustgrad_jax.measures.curves import deletion_curve as deletion_curve
from robustgrad_jax.measures.curves import insertion_curve as insertion_curve

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
    clamped range the gradient is that of the clamped function (torch's still differentiates the norm).
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
    centered = jnp.where(constant, 0, rows - jnp.mean(rows, axis=-1, keepdims=True))
    # Scaled to a largest entry of 1 before squaring: the result does not depend on the scale, and neither
    # does its gradient, so the scale is a constant.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(centered), axis=-1, keepdims=True))
    centered = centered / jnp.where(scale > 0, scale, 1)
    squared = jnp.sum(jnp.square(centered), axis=-1, keepdims=True)
    return centered / jnp.sqrt(jnp.where(constant, 1, squared))


def spearman(a: Array, b: Array) -> Array:
    """Spearman's rank correlation over all entries of an example, (n,): `pearson` of the ranks, ties averaged.

    Equals scipy.stats.spearmanr, but for a constant map, where that is NaN and this 0. Piecewise constant: without
    a gradient.
    """
    _same_shape("spearman", a, b)
    n = a.shape[0]
    a, b = jax.lax.stop_gradient((a.reshape(n, -1), b.reshape(n, -1)))
    valid = finite(a) & finite(b)
    dtype = jnp.result_type(a, b, jnp.float32)
    # Sorting by one map and carrying the other along pairs the ranks without any scatter.
    a, b = jax.lax.sort((a, b), dimension=1, num_keys=1)
    b, rank_a = jax.lax.sort((b, _ranks_of_sorted(a, dtype)), dimension=1, num_keys=1)
    return jnp.where(valid, pearson(rank_a, _ranks_of_sorted(b, dtype)), jnp.nan)


def _ranks_of_sorted(rows: Array, dtype) -> Array:
    """Ranks 0, 1, … of ascending rows; equal entries get the mean of theirs."""
    places = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    new = rows[:, 1:] != rows[:, :-1]
    edge = jnp.ones((len(rows), 1), bool)
    first = jax.lax.cummax(jnp.where(jnp.concatenate([edge, new], 1), places, 0), axis=1)
    last = jax.lax.cummin(jnp.where(jnp.concatenate([new, edge], 1), places, rows.shape[1]), axis=1, reverse=True)
    return (first + last).astype(dtype) / 2


def top_k_members(a: Array, k: int) -> Array:
    """Which entries are among the k largest of their example: bool, of a's shape (n, …).

    Of equal entries the first in row-major order counts as larger. Raises ValueError unless 1 <= k <= entries.
    """
    n = a.shape[0]
    rows = a.reshape(n, -1)
    if not 1 <= k <= rows.shape[1]:
        raise ValueError(f"top k: k must lie between 1 and the {rows.shape[1]} entries of an example, got {k}")
    _, largest = jax.lax.top_k(rows, k)
    return jnp.zeros(rows.shape, bool).at[jnp.arange(n)[:, None], largest].set(True).reshape(a.shape)


def top_k_intersection(a: Array, b: Array, k: int | None = None) -> Array:
    """Fraction of the k largest entries of a that are among the k largest of b, (n,) (Ghorbani et al. 2019).

    Meant for maps (n, h, w). k is by default a fiftieth of the entries, about Ghorbani et al.'s 1000 of 224x224. Ties
    as in `top_k_members`; 0 where either map is constant and has no largest entries.
    Piecewise constant: without a gradient.
    """
    _same_shape("top_k_intersection", a, b)
    k = max(1, round(a[0].size / 50)) if k is None else k
    common = (top_k_members(a, k) & top_k_members(b, k)).reshape(a.shape[0], -1)
    share = jnp.sum(common, axis=-1) / jnp.asarray(k, jnp.result_type(a, jnp.float32))
    share = jnp.where(_constant(a) | _constant(b), 0, share)
    return jnp.where(finite(a) & finite(b), share, jnp.nan)


def _constant(a: Array) -> Array:
    rows = a.reshape(a.shape[0], -1)
    return jnp.max(rows, axis=-1) == jnp.min(rows, axis=-1)


def mass_center(maps: Array) -> Array:
    """Centre of mass of non-negative maps (n, h, w) in pixels: (n, 2), row and column; a zero map's is the middle."""
    if maps.ndim != 3:
        raise ValueError(f"mass_center takes maps (n, h, w), got shape {maps.shape}")
    total = jnp.sum(maps, axis=(1, 2), keepdims=True)
    weights = jnp.where(total == 0, 1 / maps[0].size, maps / jnp.where(total == 0, 1, total))
    down, across = (jnp.arange(side, dtype=maps.dtype) for side in maps.shape[1:])
    return jnp.stack([jnp.sum(weights.sum(2) * down, -1), jnp.sum(weights.sum(1) * across, -1)], axis=-1)


def finite(a: Array) -> Array:
    """Whether all entries of an example are finite: (n, …) -> bool (n,)."""
    return jnp.all(jnp.isfinite(a.reshape(a.shape[0], -1)), axis=-1)


def accuracy(logits_fn: Callable[[Array], Array], x: Array, y: Array) -> Array:
    """1 where the predicted class of x (n, …), attacked or not, is y (n,), else 0; logits that are not finite are 0."""
    logits = logits_fn(x)
    right = (jnp.argmax(logits, axis=-1) == y) & finite(logits)
    return right.astype(jnp.result_type(logits, jnp.float32))


def mse(a: Array, b: Array) -> Array:
    """Mean squared difference over all entries of an example, (n,)."""
    _same_shape("mse", a, b)
    return jnp.mean(jnp.square(a - b).reshape(a.shape[0], -1), axis=-1)


def mse_published(a: Array, b: Array) -> Array:
    """Squared difference summed over all entries of an example, (n,): what Joo et al. 2023's code calls MSE."""
    _same_shape("mse_published", a, b)
    return jnp.sum(jnp.square(a - b).reshape(a.shape[0], -1), axis=-1)


def sumnorm_mse(a: Array, b: Array) -> Array:
    """`mse_published` of maps (n, h, w) divided by their sums: "sumnorm_mse" in Joo et al. 2023's code."""
    return mse_published(_sum_normalised(a), _sum_normalised(b))


def sumnorm_ssim(a: Array, b: Array) -> Array:
    """`ssim_published` of maps (n, h, w) divided by their sums: "sumnorm_ssim" in Joo et al. 2023's code."""
    return ssim_published(_sum_normalised(a), _sum_normalised(b))


def _sum_normalised(maps: Array) -> Array:
    return maps / (jnp.sum(jnp.abs(maps), axis=(1, 2), keepdims=True) + 1e-8)


def ssim(
    a: Array,
    b: Array,
    *,
    data_range: float | Array = 1.0,
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
        wholly inside, as Wang et al. do; the outer (window - 1)/2 pixels then hardly count. "zero" centres a
        window on every pixel and takes what lies outside the image as 0.

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


def ssim_published(a: Array, b: Array) -> Array:
    """SSIM as Joo et al. 2023's code computes it, (n,), for comparison with their figures; `ssim` is the right one.

    Window of 7 pixels, sigma 1.5, zeros beyond the edges, and the data range max(a) - min(a) of the *whole batch* of
    first maps: an image's value depends on what else is in the batch. The range of a constant batch counts as 1.

    Args: as for `ssim`.
    """
    spread = jnp.max(a) - jnp.min(a)
    return ssim(a, b, data_range=jnp.where(spread == 0, 1, spread), window=7, sigma=1.5, boundary="zero")


def _smoothing(size: int, window: int, sigma: float, boundary: str) -> np.ndarray:
    """The gaussian window over an axis of `size` pixels, as a (positions, size) matrix."""
    if boundary not in ("reflect", "valid", "zero"):
        raise ValueError(f"ssim: boundary {boundary!r} is unknown; valid names: 'reflect', 'valid', 'zero'")
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
    columns = np.arange(size)[:, None] + offsets
    inside = (columns >= 0) & (columns < size)
    columns = size - 1 - np.abs(size - 1 - np.abs(columns))
    weights = np.where(inside | (boundary != "zero"), weights / weights.sum(), 0)
    np.add.at(matrix, (np.arange(size)[:, None], columns), weights)
    return matrix[half : size - half] if boundary == "valid" else matrix


def heatmap(attribution: Array) -> Array:
    """Channel sum of |attribution| divided by its maximum, per image: (n, h, w, c) -> (n, h, w) in [0, 1].

    A map of zeros stays zeros.
    """
    if attribution.ndim != 4:
        raise ValueError(f"heatmap takes (n, h, w, c) attributions, got shape {attribution.shape}")
    total = jnp.sum(jnp.abs(attribution), axis=-1)
    peak = jnp.max(total, axis=(1, 2), keepdims=True)
    return total / jnp.where(peak > 0, peak, 1)
