"""The rules of layer-wise relevance propagation: how the relevance of a layer's output is shared among its inputs.

A rule is `rule(call, relevance) -> relevance of call.x`, with the relevance of call.y given; any function of that
signature will do. With the contributions c_ij = x_i w_ij of input i to output j, their positive and negative parts
c+ and c-, z_j = sum_i c_ij + b_j, and stab(z) = z + epsilon sign(z), sign(0) = 1 (as zennit has it):

    epsilon       sum_j c_ij / stab(z_j) R_j                                            Bach et al. 2015
    zplus         sum_j c+_ij / stab(sum_i c+_ij + b+_j) R_j                            Montavon et al. 2017
    alpha_beta    sum_j (alpha c+_ij / stab(sum_i c+_ij + b+_j) - beta c-_ij / stab(sum_i c-_ij + b-_j)) R_j
    gamma         as epsilon with c + gamma c+ (b + gamma b+) for c (b) where z_j > 0, with c- and b- where z_j < 0
    plain_gamma   as epsilon with w + gamma w+ for w and b + gamma b+ for b               Montavon et al. 2019
    zbox          as epsilon with c_ij - low_i w+_ij - high_i w-_ij for c_ij, without bias
    flat          the same share for every input that an output sees                    Lapuschkin et al. 2019

Each is one product with the layer's modified kernels side by side, and one transposed product; epsilon needs the
latter only. They are plain functions of x, so that relevance can be differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from robustgrad_jax.lrp.layers import Layer, Product


@dataclass(frozen=True)
class Call:
    """A layer as the forward pass ran it: y = layer.forward(x); `pullback` maps a cotangent of y to one of x.

    x (n, …, c), or a pair of such arrays for a sum; y (n, …, o).
    """

    layer: Layer
    x: Array | tuple[Array, Array]
    y: Array
    pullback: Callable[[Array], Any]


Rule = Callable[[Call, Array], Array]


def call(layer: Layer, x: Array | tuple[Array, Array]) -> Call:
    """Run a layer forwards."""
    y, vjp = jax.vjp(layer.forward, x)
    return Call(layer, x, y, lambda cotangent: vjp(cotangent)[0])


# rules that need no weights


def pass_through(call: Call, relevance: Array) -> Array:
    """Relevance passes unchanged: the rule of elementwise layers."""
    return relevance


def gradient(call: Call, relevance: Array) -> Array:
    """Relevance passes back like a gradient; through max pooling, that is all of it to the winner."""
    return call.pullback(relevance)


def epsilon(epsilon: float = 1e-6) -> Rule:
    """Shares by contribution to the output, damped by `epsilon` > 0 where outputs are small. For any linear layer."""
    _check_positive("epsilon", epsilon)

    def rule(call: Call, relevance: Array) -> Array:
        slopes = call.pullback(relevance / _stabilize(call.y, epsilon))
        return jax.tree.map(jnp.multiply, call.x, slopes)

    return rule


def norm(stabilizer: float = 1e-6) -> Rule:
    """The epsilon rule for sums and average pools, which have no weights: shares by contribution."""
    _check_positive("stabilizer", stabilizer)
    return epsilon(stabilizer)


# rules with weights


def zplus(stabilizer: float = 1e-6) -> Rule:
    """Shares by positive contribution; negative ones get nothing. `stabilizer` > 0 is added to the denominator."""
    _check_positive("stabilizer", stabilizer)

    def rule(call: Call, relevance: Array) -> Array:
        linear = _linear(call, "zplus")
        kernel, bias = linear.kernel, linear.bias
        parts = _signed_parts(linear)
        kernel = _beside_inputs(_positive(kernel), _negative(kernel), parts=len(parts))
        return _share(linear, parts, kernel, lambda z: relevance / _stabilize(z + _positive(bias), stabilizer))

    return rule


def alpha_beta(alpha: float = 2.0, beta: float = 1.0, stabilizer: float = 1e-6) -> Rule:
    """`alpha` times the relevance shared by positive contributions, less `beta` times by negative ones.

    Raises ValueError unless alpha - beta = 1 (relevance would not be conserved), both are >= 0 and stabilizer > 0.
    """
    _check_positive("stabilizer", stabilizer)
    if min(alpha, beta) < 0 or abs(alpha - beta - 1) > 1e-9:
        raise ValueError(f"alpha_beta: alpha and beta must be >= 0 and alpha - beta = 1, got {alpha=}, {beta=}")

    def rule(call: Call, relevance: Array) -> Array:
        linear = _linear(call, "alpha_beta")
        kernel, bias = linear.kernel, linear.bias
        # Each sign has its own denominator; the published code's residual rule mixes one up.
        kernels, biases = (_positive(kernel), _negative(kernel)), (_positive(bias), _negative(bias))
        passed_on = jnp.concatenate([alpha * relevance, -beta * relevance], axis=-1)
        return _share_by_sign(linear, kernels, biases, passed_on, stabilizer)

    return rule


def gamma(gamma: float = 0.25, stabilizer: float = 1e-6) -> Rule:
    """Contributions of the output's own sign count 1 + `gamma` times.

    The generalised rule (Andéol et al. 2021), which for positive inputs and outputs is that of Montavon et al.
    2019. Outputs that are exactly 0 pass nothing on. Raises ValueError for gamma < 0 and stabilizer <= 0.
    """
    _check_positive("stabilizer", stabilizer)
    _check_gamma(gamma)

    def rule(call: Call, relevance: Array) -> Array:
        linear = _linear(call, "gamma")
        kernel, bias = linear.kernel, linear.bias
        kernels = (kernel + gamma * _positive(kernel), kernel + gamma * _negative(kernel))
        biases = (bias + gamma * _positive(bias), bias + gamma * _negative(bias))
        signs = jnp.concatenate([call.y > 0, call.y < 0], axis=-1)
        passed_on = jnp.where(signs, jnp.concatenate([relevance, relevance], axis=-1), 0)
        return _share_by_sign(linear, kernels, biases, passed_on, stabilizer)

    return rule


def plain_gamma(gamma: float = 0.25, stabilizer: float = 1e-6) -> Rule:
    """Positive weights count 1 + `gamma` times, whatever the signs of input and output are (Montavon et al. 2019).

    What the code of Joo et al. 2023 calls gamma. Where inputs are negative it favours the contributions that hinder.
    Raises ValueError for gamma < 0 and stabilizer <= 0.
    """
    _check_positive("stabilizer", stabilizer)
    _check_gamma(gamma)

    def rule(call: Call, relevance: Array) -> Array:
        linear = _linear(call, "plain_gamma")
        kernel = linear.kernel + gamma * _positive(linear.kernel)
        bias = linear.bias + gamma * _positive(linear.bias)
        return _share(linear, (linear.x,), kernel, lambda z: relevance / _stabilize(z + bias, stabilizer))

    return rule


def zbox(low: Array | float, high: Array | float, stabilizer: float = 1e-6) -> Rule:
    """For the layer that reads the image, whose pixels lie between `low` and `high`.

    The bounds are in the units of x (normalised pixels), numbers or arrays that broadcast to (h, w, c): with
    pixels in [0, 1] before normalisation, (0 - mean) / std and (1 - mean) / std, shape (c,). Raises ValueError where
    a bound does not broadcast.
    """
    _check_positive("stabilizer", stabilizer)

    def rule(call: Call, relevance: Array) -> Array:
        linear = _linear(call, "zbox")  # the bias cancels: it is part of all three products of the formula
        bounds = [_bound(name, value, linear.x) for name, value in (("low", low), ("high", high))]
        # (x - low) w+ + (x - high) w-: the formula's three terms summed up, none of them negative
        parts = tuple(linear.x - bound for bound in bounds)
        kernel = _beside_inputs(_positive(linear.kernel), _negative(linear.kernel), parts=2)
        return _share(linear, parts, kernel, lambda z: relevance / _stabilize(z, stabilizer))

    return rule


def flat(stabilizer: float = 1e-6) -> Rule:
    """The same share for every input that an output sees, whatever the weights and inputs are: for the first layer."""
    _check_positive("stabilizer", stabilizer)

    def rule(call: Call, relevance: Array) -> Array:
        linear = _linear(call, "flat")
        # Channels are alike, in and out: one of each is enough.
        ones = jnp.ones((*linear.x.shape[:-1], 1), linear.kernel.dtype)
        window = jnp.ones((*linear.kernel.shape[:-2], 1, 1), linear.kernel.dtype)
        seen, pull = jax.vjp(lambda x: linear.product(x, window), ones)
        total = relevance.sum(-1, keepdims=True)
        (shares,) = pull(total / _stabilize(linear.x.shape[-1] * seen, stabilizer))
        return jnp.broadcast_to(shares, linear.x.shape)

    return rule


# parts of the rules


@dataclass(frozen=True)
class _Linear:
    """What a rule with weights reads from a call: its input (n, …, c) and the fields of its conv or dense layer."""

    x: Array
    kernel: Array
    bias: Array
    product: Product
    nonnegative: bool


def _linear(call: Call, rule: str) -> _Linear:
    layer = call.layer
    if layer.kernel is None or layer.bias is None or layer.product is None or isinstance(call.x, tuple):
        raise ValueError(
            f"the rule {rule} is for conv and dense layers; {layer.name!r} is a layer of kind {layer.kind!r}, "
            "without weights"
        )
    return _Linear(call.x, layer.kernel, layer.bias, layer.product, layer.nonnegative)


def _share(linear: _Linear, parts: tuple[Array, ...], kernel: Array, slopes: Callable[[Array], Array]) -> Array:
    """sum over parts of part * kernel^T slopes(kernel part): parts (n, …, c) lie beside each other for the product."""
    x = jnp.concatenate(parts, axis=-1)
    z, pull = jax.vjp(lambda x: linear.product(x, kernel), x)
    shares = x * pull(slopes(z))[0]
    return shares.reshape(*linear.x.shape[:-1], len(parts), -1).sum(-2)


def _share_by_sign(
    linear: _Linear, kernels: tuple[Array, Array], biases: tuple[Array, Array], wanted: Array, stabilizer: float
) -> Array:
    """The two kinds of contribution, each with its kernel for positive inputs, and its bias.

    For negative inputs the kernels change places. `wanted` (n, …, 2 o): the relevance each kind passes on.
    """
    up, down = kernels
    parts = _signed_parts(linear)
    kernel = jnp.concatenate(
        [_beside_inputs(up, down, parts=len(parts)), _beside_inputs(down, up, parts=len(parts))], axis=-1
    )
    bias = jnp.concatenate(biases)
    return _share(linear, parts, kernel, lambda z: wanted / _stabilize(z + bias, stabilizer))


def _signed_parts(linear: _Linear) -> tuple[Array, ...]:
    """(positive part, negative part) of the input; the input alone where it has no negative part."""
    return (linear.x,) if linear.nonnegative else (_positive(linear.x), _negative(linear.x))


def _beside_inputs(first: Array, second: Array, *, parts: int) -> Array:
    """The kernel for one or two parts of the input beside each other."""
    return first if parts == 1 else jnp.concatenate([first, second], axis=-2)


def _positive(a: Array) -> Array:
    return jnp.maximum(a, 0)


def _negative(a: Array) -> Array:
    return jnp.minimum(a, 0)


def _stabilize(z: Array, epsilon: float) -> Array:
    return z + jnp.where(z < 0, -epsilon, epsilon).astype(z.dtype)


def _bound(name: str, value: Array | float, x: Array) -> Array:
    value = jnp.asarray(value, x.dtype)
    try:
        return jnp.broadcast_to(value, x.shape[1:])
    except ValueError as error:
        raise ValueError(f"zbox: {name} of shape {value.shape} does not broadcast to images {x.shape[1:]}") from error


def _check_positive(name: str, value: float) -> None:
    if not isinstance(value, Tracer) and not value > 0:
        raise ValueError(f"{name} must be > 0 (outputs can be 0, and relevance is divided by them), got {value}")


def _check_gamma(gamma: float) -> None:
    if not isinstance(gamma, Tracer) and gamma < 0:
        raise ValueError(f"gamma must be >= 0, got {gamma}")
