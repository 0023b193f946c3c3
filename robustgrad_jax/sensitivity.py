"""How much an attribution changes when the image does, and how well it predicts the change of the network's output.

Local stability over random draws x' around x: max- and average-sensitivity (Yeh et al. 2019, arXiv 1901.09392), the
local Lipschitz estimate (Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049) and relative input stability (Agarwal et
al. 2022, arXiv 2203.06877); and infidelity (Yeh et al. 2019). One number per example, nothing is averaged over the
batch. A NaN in an attribution makes the example's result NaN: count with `metrics.finite` and leave it out.

Perturbations are determined by (key, number of the draw, slot), so an example's result does not depend on its batch.
Several measures of one call of `stability` share draws and attributions. `robustgrad_jax.callables` makes functions
that compile once per model.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustgrad_jax.callables import AttributionFn, LogitsFn, as_pytree, check_labels, map_chunks
from robustgrad_jax.gradients import Ball, Draws, RandomKind, of_classes

MEASURES = ("max_sensitivity", "average_sensitivity", "local_lipschitz", "relative_input_stability")
NOISES = ("uniform", "gaussian")
SMALLEST = 1e-6  # ε_min of relative input stability, as in Quantus


def perturbation(draws: Draws, number: int | Array, x: Array, ball: Ball, noise: RandomKind = "uniform") -> Array:
    """The change x' − x of one draw, of x's shape: U(−radius, radius) or N(0, radius²) for every entry.

    Args:
      draws: key and slots.
      number: of the draw: 0, 1, …
      x: (n, …, c).
      ball: whose radius it is.
      noise: "uniform" or "gaussian".
    """
    if noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}; valid names: {', '.join(map(repr, NOISES))}")
    return draws.fold(number).noise(noise, x, ball.in_units_of(x).radius)


def stability(
    attribution_fn: AttributionFn,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws,
    *,
    samples: int = 10,
    noise: RandomKind = "uniform",
    measures: Sequence[str] = MEASURES,
    logits_fn: LogitsFn | None = None,
    chunk: int = 1,
) -> dict[str, Array]:
    """Measures of local stability from the same draws x'_j, j < samples: name -> (n,); lower is more stable.

    With φ the attribution and all norms ℓ2 over all entries of an example:
      max_sensitivity           max_j  ‖φ(x'_j) − φ(x)‖ / ‖φ(x)‖     as captum.metrics.sensitivity_max
      average_sensitivity       mean_j ‖φ(x'_j) − φ(x)‖ / ‖φ(x)‖
      local_lipschitz           max_j  ‖φ(x'_j) − φ(x)‖ / ‖x'_j − x‖
      relative_input_stability  max_j  ‖(φ(x) − φ(x'_j)) / φ(x)‖ / max(‖(x − x'_j) / x‖, 1e-6), divided entry by entry;
                                a divisor of 0 counts as 1e-6, as in Quantus
    An attribution of zeros has ‖φ(x)‖ = 1, as in captum: its sensitivity is the norm of the perturbed attribution.

    Args:
      attribution_fn: (x, y) -> (n, …); relative input stability needs no resemblance to x's shape either.
      x: (n, …). y: int (n,).
      ball: of the perturbations, without a range of values.
      draws: their key and slots.
      samples: number of draws.
      noise: "uniform" or "gaussian".
      measures: of `MEASURES`.
      logits_fn: if given, relative input stability is the maximum over those draws that leave the predicted class as it
        is, as defined by Agarwal et al.; NaN where there are none.
      chunk: draws in one call of attribution_fn, of chunk·n examples.

    Raises ValueError for an unknown measure or noise, and numbers that are not positive.
    """
    if unknown := [name for name in measures if name not in MEASURES]:
        raise ValueError(f"unknown measure {unknown[0]!r} of stability; valid names: {', '.join(map(repr, MEASURES))}")
    _check(x, y, ball, draws, samples, noise)
    check_labels(x, y, None, attribution_fn)
    logits_fn = None if logits_fn is None else as_pytree(logits_fn)
    attribution_fn, measures = as_pytree(attribution_fn), tuple(measures)
    values = _stability(attribution_fn, logits_fn, x, y, ball, draws, noise, samples, chunk, measures)
    return {name: values[name] for name in measures}  # jit sorts a dict's keys


def max_sensitivity(
    attribution_fn: AttributionFn, x: Array, y: Array, ball: Ball, draws: Draws, **options: Any
) -> Array:
    """max_j ‖φ(x'_j) − φ(x)‖ / ‖φ(x)‖, (n,); arguments and options as of `stability`."""
    return _alone("max_sensitivity", attribution_fn, x, y, ball, draws, options)


def average_sensitivity(
    attribution_fn: AttributionFn, x: Array, y: Array, ball: Ball, draws: Draws, **options: Any
) -> Array:
    """mean_j ‖φ(x'_j) − φ(x)‖ / ‖φ(x)‖, (n,); arguments and options as of `stability`."""
    return _alone("average_sensitivity", attribution_fn, x, y, ball, draws, options)


def local_lipschitz(
    attribution_fn: AttributionFn, x: Array, y: Array, ball: Ball, draws: Draws, **options: Any
) -> Array:
    """max_j ‖φ(x'_j) − φ(x)‖ / ‖x'_j − x‖, (n,); arguments and options as of `stability`."""
    return _alone("local_lipschitz", attribution_fn, x, y, ball, draws, options)


def relative_input_stability(
    attribution_fn: AttributionFn, x: Array, y: Array, ball: Ball, draws: Draws, **options: Any
) -> Array:
    """max_j of the relative change of φ over that of x, (n,); arguments and options as of `stability`."""
    return _alone("relative_input_stability", attribution_fn, x, y, ball, draws, options)


def _alone(
    name: str,
    attribution_fn: AttributionFn,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws,
    options: Mapping[str, Any],
) -> Array:
    return stability(attribution_fn, x, y, ball, draws, measures=(name,), **options)[name]


def infidelity(
    logits_fn: LogitsFn,
    attribution: Array,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws,
    *,
    samples: int = 10,
    noise: RandomKind = "gaussian",
    normalize: bool = False,
    chunk: int = 1,
) -> Array:
    """Infidelity of an attribution (Yeh et al. 2019), (n,): mean over draws I of (Iᵀφ − (f_y(x) − f_y(x − I)))².

    f_y is the logit of class y; equals captum.metrics.infidelity on the same draws. Lower is more faithful.

    Args:
      attribution: φ, of x's shape, that predicts changes of the logit: a gradient, not its absolute value.
      x: (n, h, w, c). y: int (n,).
      ball, draws: of I, as in `stability`.
      samples: number of draws.
      noise: "uniform" or "gaussian".
      normalize: scale φ by β = E[Iᵀφ·Δf] / E[(Iᵀφ)²], which makes the result independent of φ's scale; an
        attribution of zeros has β = 0.
      chunk: draws in one forward, of chunk·n examples.

    Raises ValueError for shapes that do not belong together, an unknown noise, and numbers that are not positive.
    """
    if attribution.shape != x.shape:
        raise ValueError(f"infidelity takes an attribution of x's shape {x.shape}, got {attribution.shape}")
    _check(x, y, ball, draws, samples, noise)
    check_labels(x, y, logits_fn)
    return _infidelity(as_pytree(logits_fn), attribution, x, y, ball, draws, noise, samples, chunk, normalize)


def _check(x: Array, y: Array, ball: Ball, draws: Draws, samples: int, noise: str) -> None:
    slots = (len(x),) if draws.slots is None else jnp.shape(draws.slots)
    if jnp.shape(y) != x.shape[:1] or slots != x.shape[:1]:
        got = f"{jnp.shape(y)} and {slots}"
        raise ValueError(f"{x.shape[0]} examples need as many labels and slots (n,), got shapes {got}")
    if ball.value_range is not None:
        raise ValueError("sensitivity is over all draws from the ball: give a Ball without value_range")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}; valid names: {', '.join(map(repr, NOISES))}")


@functools.partial(jax.jit, static_argnames=("noise", "samples", "chunk", "measures"))
def _stability(attribution_fn, logits_fn, x, y, ball, draws, noise, samples, chunk, measures) -> dict[str, Array]:
    clean = attribution_fn(x, y)
    norm = _norms(clean[None])
    predicted = None if logits_fn is None else jnp.argmax(logits_fn(x), axis=-1)

    def ratios(numbers: Array) -> dict[str, Array]:
        change = jax.vmap(lambda number: perturbation(draws, number, x, ball, noise))(numbers)
        moved = x + change
        change = moved - x  # the perturbation that is left after rounding
        flat = moved.reshape(-1, *x.shape[1:])
        difference = attribution_fn(flat, jnp.tile(y, len(numbers))).reshape(len(numbers), *clean.shape) - clean
        values = {
            "sensitivity": _norms(difference) / jnp.where(norm == 0, 1, norm),
            "local_lipschitz": _norms(difference) / _norms(change),
        }
        if "relative_input_stability" in measures:
            below = jnp.maximum(_norms(change / _away_from_zero(x)), SMALLEST)
            relative = _norms(difference / _away_from_zero(clean)) / below
            if logits_fn is not None:
                kept = jnp.argmax(logits_fn(flat), axis=-1).reshape(len(numbers), -1) == predicted
                relative = jnp.where(kept, relative, -1)
            values["relative_input_stability"] = relative
        return values

    each = map_chunks(ratios, samples, chunk)
    sensitivities = each.pop("sensitivity")
    largest = {name: jnp.max(values, axis=0) for name, values in each.items()}
    if "relative_input_stability" in largest:  # a maximum below 0: no draw has kept the prediction
        relative = largest["relative_input_stability"]
        largest["relative_input_stability"] = jnp.where(relative < 0, jnp.nan, relative)
    largest |= {"max_sensitivity": sensitivities.max(0), "average_sensitivity": sensitivities.mean(0)}
    return {name: largest[name] for name in measures}


def _norms(a: Array) -> Array:
    """ℓ2 norms of the examples of every draw: (draws, n, …) -> (draws, n)."""
    return jnp.sqrt(jnp.sum(jnp.square(a), axis=tuple(range(2, a.ndim))))


def _away_from_zero(a: Array) -> Array:
    return jnp.where(a == 0, SMALLEST, a)


@functools.partial(jax.jit, static_argnames=("noise", "samples", "chunk", "normalize"))
def _infidelity(logits_fn, attribution, x, y, ball, draws, noise, samples, chunk, normalize) -> Array:
    score = lambda x, y: of_classes(logits_fn(x), y)
    clean = score(x, y)

    def terms(numbers: Array) -> Array:
        """Iᵀφ and f(x) − f(x − I), side by side: (draws, 2n)."""
        change = jax.vmap(lambda number: perturbation(draws, number, x, ball, noise))(numbers)
        expected = jnp.sum(change * attribution, axis=tuple(range(2, change.ndim)))
        moved = score((x - change).reshape(-1, *x.shape[1:]), jnp.tile(y, len(numbers)))
        return jnp.concatenate([expected, clean - moved.reshape(len(numbers), -1)], axis=-1)

    expected, happened = map_chunks(terms, samples, chunk).reshape(samples, 2, -1).swapaxes(0, 1)
    if normalize:
        power = jnp.sum(jnp.square(expected), axis=0)
        scale = jnp.where(power == 0, 0, jnp.sum(expected * happened, axis=0) / jnp.where(power == 0, 1, power))
        expected = scale * expected
    return jnp.mean(jnp.square(expected - happened), axis=0)
