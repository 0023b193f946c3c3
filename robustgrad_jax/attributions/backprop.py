"""Guided backpropagation and deconvnet: the network's gradient with another backward pass through its activations.

The network is rebuilt with an activation that computes the same values. Both methods were stated for ReLU. Here the
rule on signs applies to the gradient that comes in, and the activation's own derivative stays what it is, so that both
are defined for every activation: guided backpropagation through softplus is σ(βx) · max(gradient, 0).
"""

from collections.abc import Callable

import jax
from jax import Array

from robustgrad_jax.attributions.gradients import gradient


def guided_backprop(model, variables, x: Array, y: Array) -> Array:
    """Guided backpropagation (Springenberg et al. 2015, arXiv 1412.6806); x's shape.

    Args:
      model: linen module with a field `activation`, (variables, x) -> (logits, out).
      variables: all its variables.
      x: (n, h, w, c). y: int (n,).

    Raises:
      TypeError, ValueError: the model has no field `activation`; x or y as in `gradient`.
    """
    return _with_activation(_guided, model, variables, x, y)


def deconvnet(model, variables, x: Array, y: Array) -> Array:
    """Deconvnet (Zeiler & Fergus 2014, arXiv 1311.2901): activations pass back max(gradient, 0) alone; x's shape.

    It depends on x only through the switches of max pooling, so its derivative in x is zero: an attack that follows
    gradients finds nothing to climb. Its derivative in the weights is an ordinary one.

    Arguments and errors of `guided_backprop`.
    """
    return _with_activation(_deconvolved, model, variables, x, y)


def _with_activation(change: Callable, model, variables, x: Array, y: Array) -> Array:
    if not callable(getattr(model, "activation", None)):
        raise TypeError(
            f"{type(model).__name__} has no field `activation`: guided_backprop and deconvnet rebuild the model "
            "with another activation"
        )
    changed = model.clone(activation=change(model.activation))
    return gradient(lambda x: changed.apply(variables, x)[0], x, y)


def _guided(activation: Callable) -> Callable:
    return lambda x: _positive_gradient(activation(x))


def _deconvolved(activation: Callable) -> Callable:
    return lambda x: _as_value(x, activation(x))


@jax.custom_vjp
def _positive_gradient(x: Array) -> Array:
    """x, passing back only what is positive."""
    return x


_positive_gradient.defvjp(lambda x: (x, None), lambda _, g: (jax.nn.relu(g),))


@jax.custom_vjp
def _as_value(x: Array, value: Array) -> Array:
    """`value`, whose gradient goes to x instead, as far as it is positive."""
    return value


_as_value.defvjp(lambda x, value: (value, None), lambda _, g: (jax.nn.relu(g), None))
