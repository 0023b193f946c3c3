"""Adversarial training on explanations, ATEX (Tang et al., Frontiers in Big Data 2022)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from launch.stages import stackable
from robustgrad_jax.gradients import Ball, Draws, Forward, input_gradient
from robustgrad_jax.regularizers.base import Penalised, check_numbers, in_network_units


@dataclass(frozen=True)
class Atex:
    """`atex` with a weight.

    Attributes:
      radius: ε, in units of 1/255 of the pixel range.
      weight: of the term.
      temperature: of the constant side.
      draws: perturbations per image.
    """

    radius: float = stackable(4.0)
    weight: float = stackable(1.0)
    temperature: float = stackable(1.0)
    draws: int = 1

    def __post_init__(self) -> None:
        check_numbers(self, draws=1, positive=("temperature",))

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised:
        ball = Ball(in_network_units(self.radius, x, std))
        value, logits, aux = atex(
            logits_fn, params, x, y, ball, draws, samples=self.draws, temperature=self.temperature
        )
        return self.weight * value, logits, aux, {"atex": value}


def atex(
    logits_fn: Forward, params, x: Array, y: Array, ball: Ball, draws: Draws, *, samples: int = 1, temperature=1.0
) -> tuple[Array, Array, Any]:
    """Adversarial training on explanations (Tang et al. 2022, arXiv 2111.04303).

        value = mean_{draws, batch} KL(softmax(f(x)/T) ‖ softmax(f(x + δ))),   δ ⊥ ∇f_y(x),   f(x) a constant

    Moving at right angles to the explanation must not change the prediction: only predictions are constrained, and no
    second derivative is taken. δ is uniform noise less its component along the gradient (`orthogonal`), as in the
    authors' code, so that single entries may exceed the radius by what the projection adds.

    Our reading: the paper distils a second, already trained network f₀, at points x + t∇ along its SmoothGrad, into the
    network that is trained. Here both are the network itself, at x, with its plain gradient over all channels together
    (their code projects every channel by itself), so that it is a penalty like the others. KL is a sum over classes
    (theirs a mean: ours is k times as large).

    Args:
      logits_fn, params, x, y: see `robustgrad_jax.regularizers`.
      ball: of the noise before projection; x + δ is clipped to its range of values.
      draws: of the noise; or `start`, the noise itself, (samples, n, …) before projection.
      samples: δ's per image, one pass each (theirs: 8 to 16).
      temperature: T, of the constant side only, as in the authors' code.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """
    local = ball.in_units_of(x)
    if draws.start is None:
        noise = [draws.fold(sample).noise("uniform", x, local.radius) for sample in range(samples)]
    else:
        if draws.start.shape != (samples, *x.shape):
            shapes = f"{(samples, *x.shape)} (samples first), got {draws.start.shape}"
            raise ValueError(f"atex: start must have shape {shapes}")
        noise = [draws.start[sample] for sample in range(samples)]
    gradient, logits, aux = input_gradient(logits_fn, params, x, y)
    gradient = jax.lax.stop_gradient(gradient)
    target = jax.nn.log_softmax(jax.lax.stop_gradient(logits) / temperature)
    total = jnp.zeros((), target.dtype)
    for each in noise:
        moved, _ = logits_fn(params, local.clip(x + orthogonal(each, gradient)))
        divergence = jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(moved)), axis=-1)
        total = total + jnp.mean(divergence)
    return total / samples, logits, aux


def orthogonal(noise: Array, gradient: Array) -> Array:
    """Each example's noise less its component along its gradient; all of it where the gradient is 0.

    Args:
      noise, gradient: (n, …), of one shape.
    """
    shape = noise.shape
    noise, gradient = (a.reshape(shape[0], -1) for a in (noise, gradient))
    norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
    unit = gradient / jnp.where(norm > 0, norm, 1)
    return (noise - jnp.sum(noise * unit, axis=-1, keepdims=True) * unit).reshape(shape)
