"""Terms added to the cross-entropy: local gradient alignment and the methods that it is compared with.

To add one: write a file with a frozen dataclass that is a `Penalty`, whose fields are its section of the config, and
give it a line in `_KINDS`.

Common to all, where the papers differ or are silent:
- x (n, h, w, c) is normalised, y int (n,). Every pass goes through the same `logits_fn(params, x) -> (logits, aux)`:
  with batch norm in training mode, each perturbed batch is normalised by its own statistics, and only the aux of the
  clean pass is returned.
- perturbed images are kept in the ℓ∞ ball and not clipped to the range of pixels, as in Joo et al. 2023.
- inner maximisations are constants to the outer derivative, and unrolled: the number of steps is static.
- random numbers are drawn per example from a key and the places of the examples in the global batch, so that they do
  not depend on how a batch is divided among devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from robustgrad_jax.gradients import Draws, Forward, draw_noise, hessian_vector_product, input_gradient
from robustgrad_jax.regularizers.alignment import Alignment, gradient_alignment
from robustgrad_jax.regularizers.atex import Atex
from robustgrad_jax.regularizers.base import Penalised, Penalty
from robustgrad_jax.regularizers.curvature import Curvature
from robustgrad_jax.regularizers.hessian import Hessian, hessian_norm
from robustgrad_jax.regularizers.ig_norm import IgNorm
from robustgrad_jax.regularizers.iga import Iga

__all__ = [
    "NAMES",
    "Alignment",
    "Atex",
    "Curvature",
    "Hessian",
    "IgNorm",
    "Iga",
    "Nothing",
    "Penalty",
    "create",
    "draw_noise",
    "gradient_alignment",
    "hessian_norm",
    "hessian_vector_product",
    "input_gradient",
    "kind",
]


@dataclass(frozen=True)
class Nothing:
    """Plain training."""

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised:
        del y, draws, std
        logits, aux = logits_fn(params, x)
        return jnp.zeros((), logits.dtype), logits, aux, {}


# name -> class, and the fields that the name itself sets
_KINDS: dict[str, tuple[type[Penalty], Mapping[str, Any]]] = {
    "none": (Nothing, {}),
    "l2": (Alignment, {"terms": ("l2",), "cosine_weight": 0.0}),
    "cosine": (Alignment, {"terms": ("cosine",), "l2_weight": 0.0}),
    "l2_cosine": (Alignment, {}),
    "hessian": (Hessian, {}),
    "iga": (Iga, {}),
    "atex": (Atex, {}),
    "ig_norm": (IgNorm, {}),
    "curvature": (Curvature, {}),
}
NAMES = tuple(_KINDS)


def kind(name: str) -> tuple[type[Penalty], Mapping[str, Any]]:
    """The class of the regulariser called `name`, and the fields that the name sets.

    Raises:
      ValueError: the name is unknown; the message lists the valid ones.
    """
    if name not in _KINDS:
        raise ValueError(f"unknown regularizer {name!r}; valid names: {', '.join(map(repr, NAMES))}")
    return _KINDS[name]


def create(name: str, **settings: Any) -> Penalty:
    """The regulariser called `name` (one of `NAMES`).

        create("l2_cosine", radius=8.0, cosine_weight=0.1)

    Args:
      name: of the regulariser.
      settings: fields of its class; the others have the defaults of the papers.

    Raises:
      ValueError: the name is unknown, or a setting cannot be used.
    """
    penalty, fixed = kind(name)
    return penalty(**{**settings, **fixed})
