"""Curvature regularization, CURE (Moosavi-Dezfooli et al., CVPR 2019)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from launch.stages import stackable
from robustgrad_jax.gradients import Draws, Forward
from robustgrad_jax.regularizers.base import Penalised, check_numbers, loss_gradient


@dataclass(frozen=True)
class Curvature:
    """`curvature` with a weight; h is a length (ℓ2) in the network's input."""

    weight: float = stackable(4.0)
    h: float = stackable(1.5)

    def __post_init__(self) -> None:
        check_numbers(self, positive=("h",))

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised:
        del draws, std
        value, logits, aux = curvature(logits_fn, params, x, y, h=self.h)
        return self.weight * value, logits, aux, {"curvature": value}


def curvature(logits_fn: Forward, params: Any, x: Array, y: Array, *, h: Any) -> tuple[Array, Array, Any]:
    """Curvature regularization (Moosavi-Dezfooli et al. 2019, arXiv 1811.09716).

        value = mean ‖∇L(x + h z) − ∇L(x)‖²,   z = sign(∇L(x)) / ‖sign(∇L(x))‖₂,   L the cross-entropy

    The finite difference's factor 1/h² is left to the weight. z is a constant; both gradients carry parameter
    gradients. Our reading: the passes of `robustgrad_jax.regularizers`, where the public implementation
    (F-Salehi/CURE_robustness) uses batch norm's running statistics and the unsquared norm. It raises h to 3 over the
    first epochs, with weight 4.

    Args:
      logits_fn, params, x, y: see `robustgrad_jax.regularizers`.
      h: length (ℓ2) of the step, in x's units.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """
    gradient, logits, aux = loss_gradient(logits_fn, params, x, y)
    sign = jnp.sign(jax.lax.stop_gradient(gradient)).reshape(len(x), -1)
    norm = jnp.maximum(jnp.linalg.norm(sign, axis=-1, keepdims=True), 1)  # 0 only where the gradient is
    other, _, _ = loss_gradient(logits_fn, params, x + h * (sign / norm).reshape(x.shape), y)
    difference = (other - gradient).reshape(len(x), -1)
    return jnp.mean(jnp.sum(jnp.square(difference), axis=-1)), logits, aux
