"""The networks as lists of layers, with batch norm merged into the convolutions: the form that relevance needs.

Layer-wise rules need every linear map, sum and pooling as a separate layer, with its input and output, which
the modules in `launch.networks.cnn` do not give. Tests check that the two descriptions give the same logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from launch.networks import activations, conv, pooling
from launch.networks.cnn import LeNet, ResNet

BATCH_NORM_EPSILON = 1e-5  # what the networks add to the variance
_NONNEGATIVE = (jax.nn.relu, activations.softplus)  # activations that never return less than 0

Product = Callable[[Array, Array], Array]  # (x, kernel) -> their product


@dataclass(frozen=True)
class Layer:
    """One step of a network; `forward` maps its input to its output.

    A layer with weights computes forward(x) = product(x, kernel) + bias. `product` is bilinear and takes kernels
    with other numbers of channels too: x (n, …, c), kernel (…, c, o), result (n, …, o). A sum's input is the pair
    (branch, shortcut).
    """

    kind: str
    name: str
    forward: Callable[[Any], Array]
    kernel: Array | None = None
    bias: Array | None = None
    product: Product | None = None
    nonnegative: bool = False
    """Whether no input can be below 0, as after ReLU: rules then need not treat negative inputs."""


@dataclass(frozen=True)
class Residual:
    """A sum of two paths from one input; an empty shortcut is the identity."""

    branch: tuple[Layer, ...]
    shortcut: tuple[Layer, ...]
    sum: Layer


Network = tuple[Layer | Residual, ...]


def merge_batch_norm(model: nn.Module, variables: Mapping) -> dict:
    """The parameters of the same function without batch norm (in evaluation mode).

    y = scale (W x - mean) / sqrt(var + epsilon) + bias is a convolution with kernel W scale / sqrt(var + epsilon):
    relevance has to see that kernel. The published code passes relevance unchanged through batch norm and
    propagates by the unscaled W instead.

    Args:
      model: one of the package's networks.
      variables: its {"params": …, "batch_stats": …}.

    Returns:
      The parameters by layer: every convolution with its own "kernel" (h, w, c, o) and "bias" (o,), no batch norm.

    Raises:
      TypeError: the model is not one of the package's. ValueError: "params" or "batch_stats" are missing.
    """
    _checked(model)
    needed = ("params",) if isinstance(model, LeNet) else ("params", "batch_stats")
    if missing := [key for key in needed if key not in variables]:
        raise ValueError(f"{type(model).__name__}'s variables need {', '.join(needed)}; missing: {', '.join(missing)}")
    return _merge(variables["params"], variables.get("batch_stats", {}))


def _checked(model: nn.Module) -> LeNet | ResNet:
    if not isinstance(model, LeNet | ResNet):
        raise TypeError(f"relevance propagation knows the layers of LeNet and ResNet, not of {type(model).__name__}")
    return model


def _merge(params: Mapping, statistics: Mapping) -> dict:
    merged = {}
    for name, child in params.items():
        norm = name.replace("conv", "bn")
        if "scale" in child:
            continue  # a batch norm: merged with its convolution
        if "kernel" not in child:
            merged[name] = _merge(child, _child(statistics, name))
        elif norm != name and norm in params:
            merged[name] = _merge_one(child["kernel"], params[norm], _child(statistics, norm))
        else:
            merged[name] = dict(child)
    return merged


def _merge_one(kernel: Array, norm: Mapping, statistics: Mapping) -> dict:
    scale = norm["scale"] / jnp.sqrt(statistics["var"] + BATCH_NORM_EPSILON)
    return {"kernel": kernel * scale, "bias": norm["bias"] - statistics["mean"] * scale}


def _child(tree: Mapping, name: str) -> Mapping:
    if name not in tree:
        raise ValueError(f"the variables have no {name!r} where the model has one; they have {', '.join(tree)}")
    return tree[name]


def layers(model: nn.Module, params: Mapping) -> Network:
    """The model as layers, from the image to the logits.

    `params` are those of `merge_batch_norm`. The kinds are conv, dense, activation, max_pool, average_pool, sum and
    flatten. Raises TypeError for a model that is not one of the package's, ValueError for absent parameters.
    """
    known = _checked(model)
    return _lenet(known, params) if isinstance(known, LeNet) else _resnet(known, params)


def _lenet(model: LeNet, params: Mapping) -> Network:
    nonnegative = _is_nonnegative(model.activation)
    activate = _activation(model)
    network = []
    for stage in (1, 2):
        for index in (1, 2):
            name = f"conv{stage}{index}"
            network += [_conv(params, name, nonnegative=nonnegative and bool(network)), activate]
        network.append(Layer("max_pool", f"pool{stage}", partial(pooling.max_pool, window=2)))
    network.append(Layer("flatten", "flatten", lambda x: x.reshape(len(x), -1)))
    network += [_dense(params, "fc1", nonnegative), activate, _dense(params, "fc2", nonnegative)]
    return tuple(network)


def _resnet(model: ResNet, params: Mapping) -> Network:
    nonnegative = _is_nonnegative(model.activation)
    activate = _activation(model)
    network = [_conv(params, "conv1", stride=2 if model.imagenet_stem else 1), activate]
    if model.imagenet_stem:
        network.append(Layer("max_pool", "pool", partial(pooling.max_pool, window=3, strides=2, padding=1)))
    for stage, depth in enumerate(model.depths):
        for index in range(depth):
            name = f"layer{stage + 1}_{index}"
            stride = 2 if stage > 0 and index == 0 else 1
            network += [_block(model, _child(params, name), name, stride, nonnegative), activate]
    network.append(Layer("average_pool", "features", lambda x: x.mean((1, 2))))
    network.append(_dense(params, "fc", nonnegative))
    return tuple(network)


def _block(model: ResNet, params: Mapping, name: str, stride: int, nonnegative: bool) -> Residual:
    strides = (1, stride, 1) if model.bottleneck else (stride, 1)
    branch = []
    for i, s in enumerate(strides, 1):
        branch += [_activation(model)] if i > 1 else []
        branch.append(_conv(params, f"conv{i}", stride=s, nonnegative=nonnegative, block=f"{name}."))
    shortcut = ()
    if "shortcut_conv" in params:
        shortcut = (_conv(params, "shortcut_conv", stride=stride, nonnegative=nonnegative, block=f"{name}."),)
    return Residual(tuple(branch), shortcut, Layer("sum", name, lambda pair: pair[0] + pair[1]))


def _activation(model: LeNet | ResNet) -> Layer:
    return Layer("activation", "activation", model.activation)


def _is_nonnegative(activation: activations.Activation) -> bool:
    return getattr(activation, "func", activation) in _NONNEGATIVE  # softplus comes as a partial, with its beta


def _conv(params: Mapping, name: str, *, stride: int = 1, nonnegative: bool = False, block: str = "") -> Layer:
    product = partial(_convolve, stride=stride)
    return _linear("conv", block + name, _child(params, name), product, nonnegative)


def _dense(params: Mapping, name: str, nonnegative: bool) -> Layer:
    return _linear("dense", name, _child(params, name), jnp.matmul, nonnegative)


def _linear(kind: str, name: str, params: Mapping, product: Product, nonnegative: bool) -> Layer:
    kernel, bias = params["kernel"], params["bias"]
    return Layer(kind, name, lambda x: product(x, kernel) + bias, kernel, bias, product, nonnegative)


def _convolve(x: Array, kernel: Array, *, stride: int) -> Array:
    pads = tuple((size // 2, size // 2) for size in kernel.shape[:2])
    return conv.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
