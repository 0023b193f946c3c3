"""The map from CLIP's embedding space to a classifier's features, in closed form (Park et al., WACV 2025).

Ridge regression from embeddings X (n, d) to features Y (n, f), with directions taken out that it must not see, the rows
of the modality gap G (m, d):

    A = (XᵀX + λI)⁻¹,  β̂ = A XᵀY,  W = β̂ − A Gᵀ (G A Gᵀ)⁻¹ G β̂,  b = mean(Y − X W),   so that G W = 0.

X is neither normalised nor centred, and b is not penalised. W is the minimiser of ‖XW − Y‖² + λ‖W‖² subject to G W = 0.
Everything is float64 on the host; the data enters through its `Moments` only, a sum over images, so that n never has to
fit in memory and a set of ridges and gaps is solved after one pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import struct

from tldr_jax import heads

_ROWS = 8192  # rows of an array that are converted to float64 at a time

Array = np.ndarray | jax.Array


class FeatureMap(Protocol):
    """A projector of any kind, a pytree: from CLIP's embeddings (…, d) to the classifier's features (…, f)."""

    def __call__(self, x: jax.Array, /) -> jax.Array: ...


@struct.dataclass
class Projector:
    """An affine map, followed by ReLU where the features are post-ReLU; a pytree.

    Attributes:
      weight: (d, f), float64 as `solve` returns it. With a leading axis in both arrays, a stack (see `stack`).
      bias: (f,).
      relu: whether ReLU follows.
    """

    weight: Array
    bias: Array
    relu: bool = struct.field(pytree_node=False)

    def affine(self, x: jax.Array) -> jax.Array:
        """x (…, d) -> (…, f), before the ReLU. Affine maps and means commute."""
        return jnp.matmul(x, self.weight, precision="highest") + self.bias

    def activate(self, x: jax.Array) -> jax.Array:
        """What follows the affine map."""
        return jax.nn.relu(x) if self.relu else x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activate(self.affine(x))


@dataclass(frozen=True)
class Moments:
    """Sums over images, float64: all that the closed form needs.

    Attributes:
      count: n.
      x, y: sums of embeddings (d,) and features (f,).
      xx, xy: XᵀX (d, d) and XᵀY (d, f).
    """

    count: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of images, for shards that different hosts have seen."""
        if self.xy.shape != other.xy.shape:
            raise ValueError(f"moments of widths (d, f) = {self.xy.shape} and {other.xy.shape} do not add up")
        return Moments(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def moments_of(shards: Iterable[tuple[np.ndarray, np.ndarray]]) -> Moments:
    """Sums over shards of (embeddings (n_i, d), features (n_i, f)), of any float type, one shard in memory at a time.

    Raises:
      ValueError: no image; rows that do not pair up, widths that change, or a value that is not finite, each with the
        shard's number.
    """
    total = None
    for index, (x, y) in enumerate(shards):
        if np.ndim(x) != 2 or np.ndim(y) != 2 or len(x) != len(y):
            raise ValueError(
                f"shard {index}: embeddings (n, d) and features (n, f) of the same images, "
                f"got shapes {np.shape(x)} and {np.shape(y)}"
            )
        for start in range(0, len(x), _ROWS):
            a, b = (np.asarray(rows[start : start + _ROWS], np.float64) for rows in (x, y))
            for what, rows in (("embedding", a), ("feature", b)):
                if len(bad := np.flatnonzero(~np.isfinite(rows).all(1))):
                    raise ValueError(f"shard {index}: the {what} of image {start + bad[0]} is not finite")
            part = Moments(len(a), a.sum(0), b.sum(0), a.T @ a, a.T @ b)
            try:
                total = part if total is None else total + part
            except ValueError as error:
                raise ValueError(f"shard {index}: {error}") from error
    if total is None:
        raise ValueError("no images to fit a projector on")
    return total


def solve(moments: Moments, gap: np.ndarray | None, *, ridge: float, relu: bool) -> Projector:
    """The projector of these moments, by Cholesky decomposition.

    Args:
      moments: of the training images.
      gap: (m, d), directions of the embedding space that the features must not depend on; None for none. Rows that
        depend on one another do no harm.
      ridge: λ, at least 0; 50 as published for ViT-B/32 embeddings of n = 4,795 images.
      relu: whether the features are post-ReLU.

    Returns:
      A Projector, float64. ‖G W‖ is rounding error, also where XᵀX + λI is ill-conditioned; in float32, which JAX
      computes in, about 1e-7 of ‖G‖·‖W‖.

    Raises:
      ValueError: a singular Gram matrix (more embedding directions than images, and ridge 0), a negative or
        non-finite ridge, a gap of the wrong width, not finite, or spanning the whole embedding space.
    """
    width = len(moments.xx)
    if not (np.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a finite number, at least 0, not {ridge}")
    gram = moments.xx + ridge * np.eye(width)
    factor = _cholesky(gram, moments.count, ridge)
    weight = scipy.linalg.cho_solve(factor, moments.xy)
    basis = gap_basis(gap, width)
    if len(basis):
        # G counts through its row space only; an orthonormal basis of it keeps G A Gᵀ as well-conditioned as A is.
        across = scipy.linalg.cho_solve(factor, basis.T)
        weight -= across @ scipy.linalg.solve(basis @ across, basis @ weight, assume_a="pos")
        weight -= basis.T @ (basis @ weight)  # removes what rounding has left
    bias = (moments.y - moments.x @ weight) / moments.count
    return Projector(weight, bias, relu)


def fit(
    image_embeddings: np.ndarray,
    features: np.ndarray,
    gap: np.ndarray | None,
    *,
    ridge: float,
    relu: bool,
) -> Projector:
    """`solve` of the moments of image_embeddings (n, d) and features (n, f): the closed form as a whole.

    Raises:
      ValueError: see `moments_of` and `solve`.
    """
    return solve(moments_of([(image_embeddings, features)]), gap, ridge=ridge, relu=relu)


def stack(projectors: Sequence[Any]) -> Any:
    """Projectors of one kind and shape, with a leading axis in every array, as `retrain.sweep` takes them.

    Raises:
      ValueError: no projector, or projectors that differ in kind, in shape or in the ReLU.
    """
    if not projectors:
        raise ValueError("no projector to stack: give at least one")
    kinds = [(jax.tree.structure(p), [np.shape(leaf) for leaf in jax.tree.leaves(p)]) for p in projectors]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(f"projector {index} differs from the first in kind, shape or ReLU")
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *projectors)


def apply(projector: FeatureMap, x: Array) -> jax.Array:
    """Features (…, f) of embeddings x (…, d), of images or of texts, in x's precision.

    Raises:
      ValueError: embeddings of the wrong width.
    """
    if isinstance(projector, Projector) and np.shape(x)[-1] != projector.weight.shape[-2]:
        raise ValueError(f"the projector takes embeddings of width {projector.weight.shape[-2]}, got {np.shape(x)}")
    return projector(jnp.asarray(x))


def diagnostics(
    projector: FeatureMap,
    gap: np.ndarray | None,
    *,
    image_embeddings: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    head: heads.Head,
) -> Mapping[str, float]:
    """Quality of a projector on images that it was not fitted on.

    Args:
      projector: from `fit`.
      gap: (m, d) or None.
      image_embeddings, features, labels: (n, d), (n, f) and (n,), validation images.
      head: the classifier's own head.

    Returns:
      `gap_norm`, ‖G W‖ in the Frobenius norm, and `gap_norm_relative`, that over ‖G‖·‖W‖ (both absent without a gap
      and for projectors that have no W); `nmse`, the squared error over that of the mean feature (1 − R²);
      `accuracy`, of the head on the features, `accuracy_projected`, on the projected embeddings, and
      `accuracy_retained`, the second over the first.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    projected = np.asarray(apply(projector, np.asarray(image_embeddings, np.float32)))
    of_gap = {}
    if gap is not None and isinstance(projector, Projector):
        weight = np.asarray(projector.weight, np.float64)
        norm = np.linalg.norm(np.atleast_2d(gap) @ weight)
        scale = np.linalg.norm(gap) * np.linalg.norm(weight)
        of_gap = {"gap_norm": float(norm), "gap_norm_relative": float(norm / scale) if scale else 0.0}
    spread = np.sum((features - features.mean(0)) ** 2)
    if not spread > 0:
        raise ValueError("the validation features are all the same: their explained variance is not defined")
    plain, new = (
        float(np.mean(heads.predictions(head, np.asarray(x, np.float32)) == labels)) for x in (features, projected)
    )
    if not plain > 0:
        raise ValueError("the head classifies no validation image correctly: head, features and labels do not match")
    return of_gap | {
        "nmse": float(np.sum((features - projected) ** 2) / spread),
        "accuracy": plain,
        "accuracy_projected": new,
        "accuracy_retained": new / plain,
    }


def gap_basis(gap: np.ndarray | None, width: int) -> np.ndarray:
    """An orthonormal basis (r, d) of the row space of the gap (m, d), float64; r = 0 for None.

    Raises:
      ValueError: a gap of another width, with values that are not finite, of zeros, or spanning everything.
    """
    if gap is None:
        return np.zeros((0, width))
    gap = np.asarray(gap, np.float64)
    if gap.ndim != 2 or gap.shape[1] != width:
        raise ValueError(f"the gap must be (m, {width}), rows of the embedding space, got shape {gap.shape}")
    if not np.isfinite(gap).all():
        raise ValueError("the gap has values that are not finite")
    _, sizes, rows = np.linalg.svd(gap, full_matrices=False)
    rank = int(np.sum(sizes > sizes.max(initial=0) * max(gap.shape) * np.finfo(np.float64).eps))
    if not rank:
        raise ValueError("the gap is zero: pass None for no constraint")
    if rank == width:
        raise ValueError(
            f"the {len(gap)} gap rows span all {width} dimensions, so nothing is left to project; "
            "average them (one row is published) or keep fewer than the embedding has dimensions"
        )
    return rows[:rank]


def _cholesky(gram: np.ndarray, count: int, ridge: float) -> tuple[np.ndarray, bool]:
    """The factor of XᵀX + λI, for `scipy.linalg.cho_solve`."""
    try:
        factor, lower = scipy.linalg.cho_factor(gram, lower=True)
        (pocon,) = scipy.linalg.get_lapack_funcs(("pocon",), (factor,))
        # Rounding can let a singular matrix through: the estimated condition number shows it.
        inverse_condition, _ = pocon(factor, np.linalg.norm(gram, 1), uplo="L")
    except np.linalg.LinAlgError:
        inverse_condition = 0.0
    if not inverse_condition > len(gram) * np.finfo(np.float64).eps:
        raise ValueError(
            f"the Gram matrix of {count} embeddings of width {len(gram)} is singular with ridge={ridge:g}: "
            "set a larger ridge (50 is published)"
        )
    return factor, lower
