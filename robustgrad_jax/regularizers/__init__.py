"""What is added to the cross-entropy: local gradient alignment and the methods that it is compared with.

To add one: write a pure function of `logits_fn(params, x) -> (logits, aux)` that gives its value and the clean pass,
give it an adapter and a line in `_TERMS`, and its weight a field in `configs/robustgrad/base.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from robustgrad_jax.regularizers import neighbours
from robustgrad_jax.regularizers.alignment import (
    draw_noise,
    gradient_alignment,
    hessian_norm,
    hessian_vector_product,
    input_gradient,
    squared_norm,
)

__all__ = [
    "NAMES",
    "create",
    "draw_noise",
    "gradient_alignment",
    "hessian_norm",
    "hessian_vector_product",
    "input_gradient",
]


@dataclass(frozen=True)
class _Inputs:
    """What a term sees: the step's function, data and random key."""

    logits_fn: Callable
    params: Any
    x: jax.Array
    y: jax.Array
    key: jax.Array
    slots: jax.Array
    radius: jax.Array  # the config's radius in x's units: ε / (255 σ), per channel
    config: Mapping

    @property
    def pass_(self):
        return self.logits_fn, self.params, self.x, self.y


def _none(i: _Inputs):
    logits, aux = i.logits_fn(i.params, i.x)
    return jnp.zeros((), logits.dtype), logits, aux, {}


def _alignment(*terms: str) -> Callable:
    def term(i: _Inputs):
        noise = draw_noise(i.config.noise, i.key, i.slots, i.x.shape, i.radius, i.x.dtype)
        l2, cosine, logits, aux = gradient_alignment(
            *i.pass_, noise, detach_source=i.config.detach_source, variant=i.config.variant
        )
        weights = {"l2": i.config.l2_weight, "cosine": i.config.cosine_weight}
        parts = {k: v for k, v in {"l2": l2, "cosine": cosine}.items() if k in terms}
        return sum(weights[k] * v for k, v in parts.items()), logits, aux, parts

    return term


def _hessian(i: _Inputs):
    direction = draw_noise("gaussian", i.key, i.slots, i.x.shape, 1.0, i.x.dtype)
    _, product, logits, aux = hessian_vector_product(*i.pass_, direction)
    value = jnp.mean(squared_norm(product))
    return i.config.hessian_weight * value, logits, aux, {"hessian": value}


def _iga(i: _Inputs):
    value, logits, aux = neighbours.input_gradient_spatial_alignment(
        *i.pass_, radius=i.radius, steps=i.config.iga_steps, key=i.key, slots=i.slots
    )
    return i.config.iga_weight * value, logits, aux, {"iga": value}


def _atex(i: _Inputs):
    value, logits, aux = neighbours.atex(
        *i.pass_,
        radius=i.radius,
        draws=i.config.atex_draws,
        temperature=i.config.atex_temperature,
        key=i.key,
        slots=i.slots,
    )
    return i.config.atex_weight * value, logits, aux, {"atex": value}


def _ig_norm(i: _Inputs):
    value, logits, aux = neighbours.ig_norm(
        *i.pass_,
        radius=i.radius,
        steps=i.config.ig_norm_steps,
        path_steps=i.config.ig_norm_path_steps,
        attack_path_steps=i.config.ig_norm_attack_path_steps,
        sum_norm=i.config.ig_norm_sum,
        beta=i.config.ig_norm_beta,
        key=i.key,
        slots=i.slots,
    )
    return i.config.ig_norm_weight * value, logits, aux, {"ig_norm": value}


def _curvature(i: _Inputs):
    value, logits, aux = neighbours.curvature(*i.pass_, h=i.config.curvature_h)
    return i.config.curvature_weight * value, logits, aux, {"curvature": value}


_TERMS = {
    "none": _none,
    "l2": _alignment("l2"),
    "cosine": _alignment("cosine"),
    "l2_cosine": _alignment("l2", "cosine"),
    "hessian": _hessian,
    "iga": _iga,
    "atex": _atex,
    "ig_norm": _ig_norm,
    "curvature": _curvature,
}
NAMES = tuple(_TERMS)


def create(config: Mapping) -> Callable:
    """The penalty that a config names.

    Args:
      config: name, its weights, `radius` (ε, in units of 1/255 of the pixel range) and options; see
        `configs/robustgrad/base.py`. Weights and radius may be traced numbers.

    Returns:
      `penalty(logits_fn, params, x, y, key, slots, *, std) -> (value, logits, aux, parts)`: the weighted scalar, the
      clean pass's logits (n, k) and aux, and the unweighted terms for the log. `std` is what the images were divided
      by, per channel: radius / (255 std) is the radius in the network's input.

    Raises:
      ValueError: the name is unknown; the message lists those that exist.
    """
    if config.name not in _TERMS:
        raise ValueError(f"unknown regularizer {config.name!r}; there are {', '.join(NAMES)}")
    term = _TERMS[config.name]

    def penalty(logits_fn, params, x, y, key, slots, *, std):
        radius = config.radius / (255 * jnp.asarray(std, x.dtype))
        return term(_Inputs(logits_fn, params, x, y, key, slots, radius, config))

    return penalty
