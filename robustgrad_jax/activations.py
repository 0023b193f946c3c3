"""Activations with derivatives of every order; `softplus` takes ReLU's place where curvature is trained on.

Local gradient alignment (Joo et al., AAAI 2023, arXiv 2211.15900) needs second derivatives of the network
with respect to its input, which ReLU does not have: softplus_beta(x) = log(1 + exp(beta x)) / beta replaces
it, as in Dombrowski et al. (2019, arXiv 1906.07983); beta -> infinity gives ReLU back.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_jvp
def _unit_softplus(x: jax.Array) -> jax.Array:
    # log1p(u), as log(1 + u) plus what rounding 1 + u lost: as accurate, in two thirds of the time on a CPU
    u = jnp.exp(-jnp.abs(x))
    v = 1 + u
    return jnp.maximum(x, 0) + (jnp.log(v) + (u - (v - 1)) / v)


@jax.custom_jvp
def _gate(x: jax.Array) -> jax.Array:
    """The logistic function, from the same exponential as softplus, which then is computed once."""
    u = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1, u) / (1 + u)


@_unit_softplus.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _unit_softplus(x), _gate(x) * dx


# Every derivative of the gate is a polynomial in the gate: no order costs another transcendental function,
# and nothing overflows, where differentiating the exponentials would give 0 * inf far from the origin.
@_gate.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    gate = _gate(x)
    return gate, gate * (1 - gate) * dx


def softplus(x: jax.Array, beta: float = 1.0) -> jax.Array:
    """log(1 + exp(beta x)) / beta, elementwise; finite, as are its derivatives, wherever beta x is.

    `beta` > 0 is the sharpness; it may be a traced scalar (vmapped or differentiated), which goes unchecked.
    PyTorch's `Softplus(beta, threshold=20)` returns x where beta x > 20: a difference below 3e-9 / beta.
    """
    _check_beta(beta)
    return _unit_softplus(x * beta) / beta


def _check_beta(beta: float) -> None:
    if not isinstance(beta, jax.core.Tracer) and not np.all(np.asarray(beta) > 0):
        raise ValueError(f"softplus: beta must be > 0, got {beta}")


_ACTIVATIONS = {
    "relu": jax.nn.relu,  # derivative 0 at 0, as in PyTorch
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # x Phi(x) with erf, PyTorch's default
    "silu": jax.nn.silu,
}


def get(name: str, beta: float = 1.0) -> Callable[[jax.Array], jax.Array]:
    """The elementwise activation called `name`: relu, softplus (of sharpness `beta`), gelu (exact) or silu.

    Raises ValueError for an unknown name, and for softplus with beta <= 0; the others ignore `beta`.
    """
    if name == "softplus":
        _check_beta(beta)
        return functools.partial(softplus, beta=beta)
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted([*_ACTIVATIONS, "softplus"]))
        raise ValueError(f"unknown activation {name!r}; known: {known}")
    return _ACTIVATIONS[name]
