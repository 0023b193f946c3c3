"""Robust attribution regularization, IG-NORM and IG-SUM-NORM (Chen et al., NeurIPS 2019)."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from launch.stages import stackable
from robustgrad_jax.gradients import Ball, Draws, Forward
from robustgrad_jax.regularizers.base import (
    Penalised,
    ascend,
    check_numbers,
    cross_entropy,
    in_network_units,
    loss_gradient,
)


@dataclass(frozen=True)
class IgNorm:
    """`ig_norm` with a weight.

    Attributes:
      radius: ε, in units of 1/255 of the pixel range.
      weight: of the term.
      beta: β of IG-SUM-NORM.
      steps: of sign ascent.
      path_steps, attack_path_steps: points of the path, in the penalty and in the ascent.
      sum: IG-SUM-NORM rather than IG-NORM.
    """

    radius: float = stackable(4.0)
    weight: float = stackable(1.0)
    beta: float = stackable(0.1)
    steps: int = 2
    path_steps: int = 5
    attack_path_steps: int = 3
    sum: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, steps=0, path_steps=1, attack_path_steps=1)

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised:
        value, logits, aux = ig_norm(
            logits_fn,
            params,
            x,
            y,
            Ball(in_network_units(self.radius, x, std)),
            draws,
            steps=self.steps,
            path_steps=self.path_steps,
            attack_path_steps=self.attack_path_steps,
            beta=self.beta if self.sum else None,
        )
        return self.weight * value, logits, aux, {"ig_norm": value}


def ig_norm(
    logits_fn: Forward,
    params: Any,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws,
    *,
    steps: int,
    path_steps: int,
    attack_path_steps: int | None = None,
    beta: Any = None,
    step_size: Any = None,
) -> tuple[Array, Array, Any]:
    """IG-NORM and IG-SUM-NORM of robust attribution regularization (Chen et al. 2019, arXiv 1905.09957).

        IG(x, x') = (x' − x) ⊙ 1/m Σ_{k=1..m} ∇ℓ(x + k/m (x' − x)),   ℓ the cross-entropy of y
        IG-NORM:      value = mean max_{x'} ‖IG(x, x')‖₁
        IG-SUM-NORM:  value = mean max_{x'} {ℓ(x') + β‖IG(x, x')‖₁} − ℓ(x)

    over the ball. The paper's objective is ℓ(x) + λ max s(IG) with s the norm, or, with λ = 1, sum + β norm: since IG
    sums to ℓ(x') − ℓ(x), the latter's total is max {ℓ(x') + β‖IG‖₁}, and that is what the caller gets by adding the
    second value, *with weight 1*, to the clean cross-entropy.

    The paper leaves the approximation of the maximum open; as in the authors' code, it is sign ascent from a random
    start (at x itself the norm's gradient vanishes), with `attack_path_steps` points of the path where the penalty has
    `path_steps`. Published for MNIST: radius 0.3 (of 1), 40 steps of 0.01, 50 points, 10 in the attack; λ = 1, β = 0.1.
    The program grows with steps · attack_path_steps + path_steps second-order passes.

    Args:
      logits_fn, params, x, y: see `robustgrad_jax.regularizers`.
      ball: around x, where x' may be.
      draws: of the random start, U(−1, 1)·radius, or the start itself.
      steps: of sign ascent; with 0, x' is the start.
      path_steps: m.
      attack_path_steps: m inside the maximisation; None for path_steps.
      beta: β of IG-SUM-NORM; None for IG-NORM.
      step_size: of one step; None for 2 · radius / steps.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """

    def objective(params, moved, points):
        norm = _path_norm(logits_fn, params, x, moved, y, points)
        return norm if beta is None else cross_entropy(logits_fn(params, moved)[0], y) + beta * norm

    points = attack_path_steps or path_steps
    total = lambda frozen, moved: jnp.sum(objective(frozen, moved, points))
    moved = ascend(total, params, x, ball, draws, steps=steps, step_size=step_size)
    logits, aux = logits_fn(params, x)
    value = objective(params, moved, path_steps)
    if beta is not None:
        value = value - cross_entropy(logits, y)
    return jnp.mean(value), logits, aux


def _path_norm(logits_fn: Forward, params: Any, x: Array, moved: Array, y: Array, points: int) -> Array:
    """‖IG(x, moved)‖₁ of the cross-entropy, right Riemann sum of `points` passes: (n,)."""
    attribution = integrated_gradients(logits_fn, params, x, moved, y, points)
    return jnp.sum(jnp.abs(attribution).reshape(len(x), -1), axis=-1)


def integrated_gradients(logits_fn: Forward, params: Any, x: Array, moved: Array, y: Array, points: int) -> Array:
    """Integrated gradients (n, …) of the cross-entropy from x to moved: a right Riemann sum of `points`."""
    total = jnp.zeros_like(x)
    for k in range(1, points + 1):
        total = total + loss_gradient(logits_fn, params, x + k / points * (moved - x), y)[0]
    return (moved - x) * total / points
