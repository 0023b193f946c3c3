"""Attributions that need nothing but input gradients of the logits.

Those that average many gradients along a path or over noise take `chunk` points per image at a time. On accelerators
the chunks are the steps of one compiled loop; on CPU, where XLA runs convolutions in a loop several times slower than
outside, the loop is unrolled: same numbers, a longer compilation. Differentiated again, a chunk's intermediates are
recomputed rather than kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from launch.networks import loops
from launch.training import keys
from robustgrad_jax.callables import LogitsFn, check_classes
from robustgrad_jax.gradients import Forward, draw_noise, input_gradient

RULES = ("gausslegendre", "midpoint", "right")


def gradient(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    """∇g(x), the input gradient of class y's logit (Simonyan et al. 2014, arXiv 1312.6034); x's shape.

    Args:
      logits_fn: x -> logits (n, k).
      x: (n, ...), floating point. y: int (n,), classes below k.

    Raises:
      TypeError, ValueError: x or y has another type or shape, or (where y is not traced) a class does not exist.
    """
    check(x, y)
    return input_gradient(_checked(logits_fn, y), None, x, y)[0]


def input_x_gradient(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    """x · ∇g(x), elementwise (Shrikumar et al. 2016, arXiv 1605.01713); arguments and errors of `gradient`."""
    return x * gradient(logits_fn, x, y)


def integrated_gradients(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    steps: int = 50,
    baseline: float | Array = 0.0,
    rule: str = "gausslegendre",
    chunk: int = 10,
    unroll: bool | None = None,
) -> Array:
    """(x − x₀) · ∫₀¹ ∇g(x₀ + α (x − x₀)) dα (Sundararajan et al. 2017, arXiv 1703.01365); x's shape.

    Sums to g(x) − g(x₀) over an image, up to the error of the quadrature.

    Args:
      logits_fn, x, y: as in `gradient`.
      steps: evaluations of the gradient.
      baseline: x₀, broadcast to x; 0 is the mean colour of normalised images, as Joo et al. 2023 use it.
      rule: "gausslegendre" (captum's default, the most accurate on smooth networks), "midpoint", or "right", the sum
        of the paper: α = 1/steps, 2/steps … 1.
      chunk: steps that are held in memory at a time.
      unroll: chunks follow one another in the compiled program instead of in a loop; by default on CPU.

    Raises:
      TypeError, ValueError: as in `gradient`; rule unknown; steps or chunk below 1; baseline of another shape.
    """
    check(x, y)
    baseline = jnp.asarray(baseline, x.dtype)
    if np.broadcast_shapes(baseline.shape, x.shape) != x.shape:
        raise ValueError(f"integrated_gradients: a baseline of shape {baseline.shape} does not broadcast to {x.shape}")
    return (x - baseline) * _along_path(logits_fn, x, y, baseline, _quadrature(rule, steps), chunk, unroll)


def integrated_gradients_published(
    logits_fn: LogitsFn, x: Array, y: Array, *, steps: int = 50, chunk: int = 10, unroll: bool | None = None
) -> Array:
    """Integrated gradients as the code of Joo et al. 2023 has them, 1/steps · Σ ∇g(k x / steps) for k = 0 … steps.

    Of x's shape. Without the factor x, and with both ends of the path, so that the weights sum to 1 + 1/steps.

    Args:
      logits_fn, x, y, chunk, unroll: as in `integrated_gradients`.
      steps: one less than the evaluations of the gradient.

    Raises:
      As `integrated_gradients`.
    """
    check(x, y)
    _quadrature("right", steps)
    both_ends = np.arange(steps + 1) / steps, np.full(steps + 1, 1 / steps)
    return _along_path(logits_fn, x, y, jnp.zeros((), x.dtype), both_ends, chunk, unroll)


def smoothgrad(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    key: Array | None = None,
    slots: Array | None = None,
    noise: Array | None = None,
    samples: int = 50,
    level: float = 0.15,
    chunk: int = 10,
    unroll: bool | None = None,
) -> Array:
    """Mean of ∇g(x + z) over gaussian draws of z (SmoothGrad, Smilkov et al. 2017, arXiv 1706.03825); x's shape.

    Args:
      logits_fn, x, y: as in `gradient`.
      key: of the draws. Draw k of an example comes from (key, k, the example's slot).
      slots: int (n,), the examples' places in the data set; their places in the batch by default.
      noise: (samples, *x.shape) in x's units, instead of `key`.
      samples: number of draws.
      level: standard deviation of z, as a share of the image's range max(x) − min(x).
      chunk, unroll: as in `integrated_gradients`, of draws.

    Raises:
      TypeError, ValueError: as in `gradient`; not exactly one of key and noise; noise of another shape.
    """
    check(x, y)
    if key is not None and noise is None:
        places = _slots(slots, x)

        def draws(x: Array, ks: Array) -> Array:
            axes = tuple(range(1, x.ndim))
            sigma = level * (jnp.max(x, axes, keepdims=True) - jnp.min(x, axes, keepdims=True))
            draw = lambda k: draw_noise("gaussian", jax.random.fold_in(key, k), places, x.shape, sigma, x.dtype)
            return jax.vmap(draw)(ks)

    elif noise is not None and key is None:
        if noise.shape[1:] != x.shape:
            raise ValueError(f"smoothgrad: noise must be (samples, *{x.shape}), got {noise.shape}")
        samples, fixed = len(noise), jnp.asarray(noise, x.dtype)

        def draws(x: Array, ks: Array) -> Array:
            del x
            return fixed[ks]

    else:
        raise ValueError("smoothgrad needs exactly one of key (random draws) and noise (given ones)")
    term = lambda x, ks: jnp.sum(_gradients(logits_fn, x + draws(x, ks), y), axis=0)
    return _total(term, x, samples, chunk, unroll) / samples


def expected_gradients(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    references: Array,
    key: Array,
    slots: Array | None = None,
    samples: int = 50,
    chunk: int = 10,
    unroll: bool | None = None,
) -> Array:
    """Mean of (x − r) · ∇g(r + α (x − r)), r a random reference, α ~ U(0, 1) (Erion et al. 2021, arXiv 1906.10670).

    Sums to g(x) − mean g(r) over an image, in expectation.

    Args:
      logits_fn, x, y: as in `gradient`.
      references: (m, *x.shape[1:]), from which baselines are drawn with equal chances, with replacement.
      key, slots: of the draws, see `draw_paths`.
      samples: number of draws.
      chunk, unroll: as in `integrated_gradients`, of draws.

    Raises:
      TypeError, ValueError: as in `gradient`; references of another shape than x's.
    """
    check(x, y)
    if references.shape[1:] != x.shape[1:] or len(references) == 0:
        raise ValueError(f"expected_gradients: references must be (m, *{x.shape[1:]}), got {references.shape}")
    references, slots = jnp.asarray(references, x.dtype), _slots(slots, x)

    def term(x, ks):
        index, alpha = draw_paths(key, slots, ks, len(references), x.dtype)
        start = references[index]
        away = x - start
        points = start + alpha.reshape(*alpha.shape, *(1,) * (x.ndim - 1)) * away
        return jnp.sum(away * _gradients(logits_fn, points, y), axis=0)

    return _total(term, x, samples, chunk, unroll) / samples


def draw_paths(key: Array, slots: Array, draws: Array, references: int, dtype=jnp.float32) -> tuple[Array, Array]:
    """What expected_gradients draws: reference numbers in [0, references) and α ~ U(0, 1), each (len(draws), n).

    An example's draw number k comes from (key, k, the example's slot).
    """

    def each(key):
        which, where = jax.random.split(key)
        return jax.random.randint(which, (), 0, references), jax.random.uniform(where, (), dtype)

    return jax.vmap(lambda k: jax.vmap(each)(keys.per_example(jax.random.fold_in(key, k), slots)))(draws)


def check(x: Array, y: Array) -> None:
    """Raise TypeError or ValueError unless x is (n, ...) floating point and y int (n,)."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"attributions are derivatives: x must be floating point, got {x.dtype}")
    y = jnp.asarray(y) if not hasattr(y, "dtype") else y
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"y must be integers of shape {x.shape[:1]}, a class for every row of x {x.shape}; got {y.dtype} {y.shape}"
        )


def _checked(logits_fn: LogitsFn, y: Array) -> Forward:
    """The function in the form that input_gradient takes, with its logits checked."""

    def apply(_: Any, x: Array, /) -> tuple[Array, None]:
        logits = logits_fn(x)
        check_classes(y, logits)
        return logits, None

    return apply


def _slots(slots: Array | None, x: Array) -> Array:
    return jnp.arange(len(x)) if slots is None else jnp.asarray(slots)


def _column(values: Array, x: Array) -> Array:
    """(c,) -> (c, 1, ..., 1), to be broadcast against x behind a leading axis."""
    return values.reshape(-1, *(1,) * x.ndim)


def _along_path(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    baseline: Array,
    quadrature: tuple[np.ndarray, np.ndarray],
    chunk: int,
    unroll: bool | None,
) -> Array:
    """Weighted sum of ∇g over nodes between a baseline and x."""
    alphas, weights = (jnp.asarray(v, x.dtype) for v in quadrature)

    def term(x: Array, ks: Array) -> Array:
        points = baseline + _column(alphas[ks], x) * (x - baseline)
        return jnp.tensordot(weights[ks], _gradients(logits_fn, points, y), 1)

    return _total(term, x, len(alphas), chunk, unroll)


def _quadrature(rule: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]; the weights sum to 1."""
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r} of integrated gradients; valid names: {', '.join(map(repr, RULES))}")
    if steps < 1:
        raise ValueError(f"integrated_gradients: steps must be at least 1, got {steps}")
    if rule == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return (1 + nodes) / 2, weights / 2
    shift = 0.5 if rule == "midpoint" else 1.0
    return (np.arange(steps) + shift) / steps, np.full(steps, 1 / steps)


def _gradients(logits_fn: LogitsFn, points: Array, y: Array) -> Array:
    """∇g at several points of every image, (c, n, ...) -> the same shape, in one batch.

    The batch keeps an image's points together, so that a batch sharded over its images stays where it is.
    """
    c, n = points.shape[:2]
    batch = jnp.swapaxes(points, 0, 1).reshape(n * c, *points.shape[2:])
    gradients, _, _ = input_gradient(_checked(logits_fn, y), None, batch, jnp.repeat(jnp.asarray(y), c))
    return jnp.swapaxes(gradients.reshape(n, c, *points.shape[2:]), 0, 1)


def _total(term: Callable[[Array, Array], Array], x: Array, count: int, chunk: int, unroll: bool | None) -> Array:
    """Sum of term(x, ks) over chunks ks of 0 … count − 1, where term sums over its ks."""
    if count < 1 or chunk < 1:
        raise ValueError(f"there must be at least one sample and one in a chunk, got {count} and chunk={chunk}")
    chunk = min(chunk, count)
    unroll = not loops.in_program(x) if unroll is None else unroll
    ks, whole = jnp.arange(count), count // chunk
    term = jax.checkpoint(term)
    if not unroll and whole > 1:
        loop = lambda total, ks: (total + term(x, ks), None)
        total, _ = jax.lax.scan(loop, jnp.zeros_like(x), ks[: whole * chunk].reshape(whole, chunk))
        return total + term(x, ks[whole * chunk :]) if count % chunk else total
    total = term(x, ks[:chunk])
    for start in range(chunk, count, chunk):
        # The sum so far, times zero: XLA's CPU backend ignores its own barriers and would hold all chunks at once.
        total = total + term(x + 0 * total, ks[start : start + chunk])
    return total
