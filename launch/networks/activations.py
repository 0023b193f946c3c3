"""Activations with derivatives of every order; `softplus` replaces ReLU where curvature is part of the loss.

Local gradient alignment (Joo et al., AAAI 2023, arXiv 2211.15900) needs second derivatives of the network with respect
to its input, which ReLU does not have: softplus_beta(x) = log(1 + exp(beta x)) / beta replaces it, as in Dombrowski et
al. (2019, arXiv 1906.07983); beta -> infinity gives ReLU.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Activation(Protocol):
    """Elementwise; any shape."""

    def __call__(self, x: jax.Array, /) -> jax.Array: ...


@jax.custom_jvp
def _unit_softplus(x: jax.Array) -> jax.Array:
    # log1p(u) = 2 artanh(u / (2 + u)) as a power series: the argument is at most 1/3, so few terms are exact up to
    # rounding, and without a logarithm XLA's CPU backend fuses everything into the surrounding loop.
    u = jnp.exp(-jnp.abs(x))
    ratio = u / (2 + u)
    square = ratio * ratio
    series = jnp.zeros_like(x)
    for odd in range(_SERIES_END[jnp.finfo(x.dtype).bits], 0, -2):
        series = series * square + 1 / odd
    return jnp.maximum(x, 0) + 2 * ratio * series


# The largest exponent of the series, by the bits of the type: (1/3)^odd / odd is below half a unit of rounding.
_SERIES_END = {16: 13, 32: 13, 64: 31}


@jax.custom_jvp
def _gate(x: jax.Array) -> jax.Array:
    # Not from softplus's exponential: XLA would compute it once and keep it in memory between the two passes, which
    # costs more than a second transcendental function inside loops that read x anyway.
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


@_unit_softplus.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _unit_softplus(x), _gate(x) * dx


# Every derivative of the gate is a polynomial in the gate: no order needs another transcendental function, and nothing
# overflows. Differentiating the exponentials would give 0 * inf far from the origin.
@_gate.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    gate = _gate(x)
    return gate, gate * (1 - gate) * dx


def softplus(x: jax.Array, beta: float = 1.0) -> jax.Array:
    """log(1 + exp(beta x)) / beta, elementwise; finite, like its derivatives, wherever beta x is.

    PyTorch's `Softplus(beta, threshold=20)` returns x where beta x > 20: a difference below 3e-9 / beta.

    Args:
      x: any shape.
      beta: the sharpness, > 0; a traced scalar (vmapped or differentiated) is not checked.
    """
    _check_beta(beta)
    return _unit_softplus(x * beta) * (1 / beta)


def _check_beta(beta: Any) -> None:
    if not isinstance(beta, Tracer) and not np.all(np.asarray(beta) > 0):
        raise ValueError(f"softplus: beta must be > 0, got {beta}")


_ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,  # derivative 0 at 0, as in PyTorch
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # x Phi(x) with erf, PyTorch's default
    "silu": jax.nn.silu,
}


def get(name: str, beta: float = 1.0) -> Activation:
    """The activation called `name`: relu, softplus (of sharpness `beta`), gelu (exact) or silu.

    Raises:
      ValueError: an unknown name, or softplus with beta <= 0; the others ignore `beta`.
    """
    if name == "softplus":
        _check_beta(beta)
        return functools.partial(softplus, beta=beta)
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted([*_ACTIVATIONS, "softplus"]))
        raise ValueError(f"unknown activation {name!r}; valid names: {known}")
    return _ACTIVATIONS[name]
