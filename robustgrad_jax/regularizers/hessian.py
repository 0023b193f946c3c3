"""The norm of the Hessian, the baseline of Dombrowski et al. 2022 (arXiv 2012.10425)."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from launch.stages import stackable
from robustgrad_jax.gradients import Draws, Forward, hessian_vector_product, squared_norm
from robustgrad_jax.regularizers.base import Penalised, check_numbers


@dataclass(frozen=True)
class Hessian:
    """`hessian_norm` for one direction v ~ N(0, I) per image."""

    weight: float = stackable(1e-3)

    def __post_init__(self) -> None:
        check_numbers(self)

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised:
        del std
        _, product, logits, aux = hessian_vector_product(logits_fn, params, x, y, draws.noise("gaussian", x, 1.0))
        value = jnp.mean(squared_norm(product))
        return self.weight * value, logits, aux, {"hessian": value}


def hessian_norm(logits_fn: Forward, params: Any, x: Array, y: Array, direction: Array) -> Array:
    """mean ‖Hv‖², H the Hessian of the true-class logit, one direction v per image (Dombrowski et al. 2022).

    With v ~ N(0, I) its expectation is the mean squared Frobenius norm of H.

    Args:
      logits_fn, params, x, y: as in `gradient_alignment`.
      direction: v, of x's shape.

    Returns:
      A scalar, exact under `jax.grad` with respect to params.
    """
    return jnp.mean(squared_norm(hessian_vector_product(logits_fn, params, x, y, direction)[1]))
