"""Input gradient spatial alignment, IGA, of attributional robustness training (Singh et al., ECCV 2020)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from launch.stages import stackable
from robustgrad_jax import metrics
from robustgrad_jax.gradients import Ball, Draws, Forward
from robustgrad_jax.regularizers.base import Penalised, ascend, check_numbers, in_network_units


@dataclass(frozen=True)
class Iga:
    """`input_gradient_spatial_alignment` with a weight.

    Attributes:
      radius: ε, in units of 1/255 of the pixel range.
      weight: of the term.
      steps: of sign ascent; 0 takes the triplet loss of the clean image.
    """

    radius: float = stackable(4.0)
    weight: float = stackable(0.5)
    steps: int = 3

    def __post_init__(self) -> None:
        check_numbers(self, steps=0)

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised:
        ball = Ball(in_network_units(self.radius, x, std))
        value, logits, aux = input_gradient_spatial_alignment(logits_fn, params, x, y, ball, draws, steps=self.steps)
        return self.weight * value, logits, aux, {"iga": value}


def input_gradient_spatial_alignment(
    logits_fn: Forward,
    params,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws | None = None,
    *,
    steps: int,
    step_size=None,
) -> tuple[Array, Array, Any]:
    """Attributional robustness training, ART or IGA (Singh et al., ECCV 2020, arXiv 1911.13073).

        L(x̃) = log(1 + exp(−(d(x̃, ∇f_r(x̃)) − d(x̃, ∇f_y(x̃))))),   d(u, v) = 1 − cos(u, v),
        value = mean L(x̃),   x̃ = argmax L over the ball,   r = argmax_{i ≠ y} f_i(x̃)

    Gradients are of logits with respect to x̃. The paper adds L to the cross-entropy *at x̃*; here, as for every other
    penalty, the caller adds it to the cross-entropy of the clean pass. The authors' code moreover takes the cosines of
    the inner maximisation over the 1000 strongest entries, and of x and x̃ the harder one for each image; neither is
    done here. Their figures for CIFAR-10: radius 8/255, 3 steps of 5/255, weight 0.5.

    Args:
      logits_fn, params, x, y: see `robustgrad_jax.regularizers`.
      ball: around x, where x̃ may be.
      draws: of the random start, U(−1, 1)·radius, or the start itself.
      steps: of sign ascent; with 0, x̃ = x and nothing is drawn.
      step_size: of one step; None for 2 · radius / steps.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """
    if steps == 0:
        loss, logits, aux = _triplet(logits_fn, params, x, y)
        return jnp.mean(loss), logits, aux
    total = lambda frozen, moved: jnp.sum(_triplet(logits_fn, frozen, moved, y)[0])
    moved = ascend(total, params, x, ball, draws or Draws(), steps=steps, step_size=step_size)
    logits, aux = logits_fn(params, x)
    return jnp.mean(_triplet(logits_fn, params, moved, y)[0]), logits, aux


def _triplet(logits_fn: Forward, params: Any, x: Array, y: Array) -> tuple[Array, Array, Any]:
    """Soft-margin triplet loss (n,) of x against the gradients of true and runner-up logit; logits, aux."""
    logits, pullback, aux = jax.vjp(lambda x: logits_fn(params, x), x, has_aux=True)
    true = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    runner_up = jnp.argmax(jnp.where(true > 0, -jnp.inf, logits), axis=-1)
    (positive,) = pullback(true)
    (negative,) = pullback(jax.nn.one_hot(runner_up, logits.shape[-1], dtype=logits.dtype))
    # d(x, negative) − d(x, positive); softplus(−margin) is log(1 + exp(−margin)) without overflow.
    margin = metrics.cosine(x, positive) - metrics.cosine(x, negative)
    return jax.nn.softplus(-margin), logits, aux
