"""Attributions: how much each input value counts for one class's logit.

Two kinds of functions, both pure, jit-able, differentiable once more (attributions are attacked and trained through)
and vmappable over the classes:

    gradient, input_x_gradient, integrated_gradients, integrated_gradients_published, smoothgrad,
    expected_gradients                                                            (logits_fn, x, y, **options)
    guided_backprop, deconvnet, grad_cam                                          (model, variables, x, y, **options)

x (n, h, w, c) normalised, channels last; y int (n,), the class explained; `logits_fn(x) -> logits` (n, k) treats every
example by itself (evaluation mode). The result has x's shape, but for Grad-CAM's (n, h', w', 1). `heatmap` makes
(n, h, w) maps in [0, 1] of any of them; `create` picks one by name.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from flax import linen as nn
from jax import Array

from robustgrad_jax.attributions.backprop import deconvnet, guided_backprop
from robustgrad_jax.attributions.gradients import (
    RULES,
    draw_paths,
    expected_gradients,
    gradient,
    input_x_gradient,
    integrated_gradients,
    integrated_gradients_published,
    smoothgrad,
)
from robustgrad_jax.attributions.layers import grad_cam
from robustgrad_jax.metrics import heatmap

__all__ = [
    "NAMES",
    "RULES",
    "create",
    "deconvnet",
    "draw_paths",
    "expected_gradients",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "heatmap",
    "input_x_gradient",
    "integrated_gradients",
    "integrated_gradients_published",
    "smoothgrad",
]

_OF_LOGITS: dict[str, Callable[..., Array]] = {
    f.__name__: f
    for f in (
        gradient,
        input_x_gradient,
        integrated_gradients,
        integrated_gradients_published,
        smoothgrad,
        expected_gradients,
    )
}
OF_MODEL: dict[str, Callable[..., Array]] = {f.__name__: f for f in (guided_backprop, deconvnet, grad_cam)}
NAMES = (*_OF_LOGITS, *OF_MODEL)


class Attribution(Protocol):
    """An attribution of one network: (x, y, slots) -> (n, h, w, c); see `create`."""

    def __call__(self, x: Array, y: Array, slots: Array | None = None) -> Array: ...


def create(name: str, model: nn.Module, variables: Any, **options: Any) -> Attribution:
    """The attribution called `name` (one of `NAMES`) of a network.

    Args:
      model: linen module, (variables, x) -> (logits, out); guided_backprop and deconvnet need its field `activation`.
      variables: all its variables; may be traced.
      options: keyword arguments of the function called `name`, except `slots`.

    Returns:
      `attribution_fn(x, y, slots=None) -> (n, h, w, c)`. `slots`, int (n,), are the examples' places in the data set,
      by which smoothgrad and expected_gradients draw; the others ignore them.

    Raises:
      ValueError: name or option unknown, or an option missing; the message lists the valid ones.
    """
    if name not in NAMES:
        raise ValueError(f"unknown attribution {name!r}; valid names: {', '.join(map(repr, NAMES))}")
    function = _OF_LOGITS.get(name) or OF_MODEL[name]
    accepted = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    draws = accepted.pop("slots", None) is not None
    unknown = sorted(options.keys() - accepted.keys())
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; valid options: {', '.join(accepted) or 'none'}")
    missing = sorted(k for k, p in accepted.items() if p.default is p.empty and k not in options)
    if missing:
        raise ValueError(f"{name} needs the option {', '.join(missing)}")
    subject = (lambda x: model.apply(variables, x)[0],) if name in _OF_LOGITS else (model, variables)

    def attribution_fn(x: Array, y: Array, slots: Array | None = None) -> Array:
        return function(*subject, x, y, **options, **({"slots": slots} if draws else {}))

    return attribution_fn
