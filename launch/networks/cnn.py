"""LeNet and ResNets in Linen, with the module names of the PyTorch originals.

Every model is `apply(variables, x, train=False) -> (logits, out)`: x (n, h, w, c) normalised, channels last; logits
(n, num_classes); `out` a dict with every named intermediate, so that attributions need no hooks. With `train=True`
batch norm uses the statistics of the batch, and the caller passes `mutable=["batch_stats"]`.
`robustgrad_jax.models` builds them by name. `dtype` is that of `launch.networks.dtypes.get`; None for the arrays' own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from launch.networks import conv, dtypes, pooling
from launch.networks.activations import Activation


class Initializer(Protocol):
    """Initial values of a parameter."""

    def __call__(self, key: Any, shape: Any, dtype: Any = ..., /) -> jax.Array: ...


def _uniform_fan_in(fan_in: int) -> Initializer:
    """PyTorch's default for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _conv(
    x: jax.Array,
    features: int,
    size: int,
    name: str,
    *,
    stride: int = 1,
    bias: bool = False,
    init: Initializer | None = None,
    dtype: Any = None,
) -> jax.Array:
    """A square convolution padded by size // 2, as in the originals."""
    init = init or _uniform_fan_in(size * size * x.shape[-1])
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=bias,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        conv_general_dilated=conv.conv_general_dilated,
        name=name,
    )(x)


def _dense(x: jax.Array, features: int, name: str, dtype: Any = None) -> jax.Array:
    init = _uniform_fan_in(x.shape[-1])
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)(x)


class LeNet(nn.Module):
    """Four 3x3 convolutions (32-32-pool-64-64-pool) and two dense layers: Joo et al. 2023's small network."""

    num_classes: int
    activation: Activation
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        del train  # no layer behaves differently
        if min(x.shape[1:3]) < 4:
            raise ValueError(f"lenet halves the image twice and needs at least 4x4 pixels, got {x.shape}")
        out = {}
        for stage, width in ((1, 32), (2, 64)):
            for index in (1, 2):
                name = f"conv{stage}{index}"
                x = out[name] = self.activation(_conv(x, width, 3, name, bias=True, dtype=self.dtype))
            x = out[f"pool{stage}"] = pooling.max_pool(x, 2)
        x = x.reshape(len(x), -1)
        x = out["fc1"] = self.activation(_dense(x, 256, "fc1", self.dtype))
        x = out["logits"] = _dense(dtypes.wide(x), self.num_classes, "fc2")
        return x, out


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 with four times the width as output, and a shortcut.

    The first 3x3 convolution has the stride, as in torchvision.
    """

    width: int
    stride: int
    bottleneck: bool
    activation: Activation
    conv_init: Initializer | None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        conv = partial(_conv, init=self.conv_init, dtype=self.dtype)
        layers = ((self.width, 3, self.stride), (self.width, 3, 1))
        if self.bottleneck:
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1))
        shortcut = x
        for i, (features, size, stride) in enumerate(layers, 1):
            x = conv(x, features, size, f"conv{i}", stride=stride)
            x = norm(name=f"bn{i}")(x)
            if i < len(layers):
                x = self.activation(x)
        if self.stride != 1 or shortcut.shape[-1] != x.shape[-1]:
            shortcut = conv(shortcut, x.shape[-1], 1, "shortcut_conv", stride=self.stride)
            shortcut = norm(name="shortcut_bn")(shortcut)
        return self.activation(x + shortcut)


class ResNet(nn.Module):
    """Residual network (He et al. 2016).

    With `imagenet_stem` the first convolution is 7x7 with stride 2, followed by a 3x3 max pool; otherwise it is 3x3
    with stride 1.
    """

    num_classes: int
    activation: Activation
    depths: Sequence[int]
    bottleneck: bool
    imagenet_stem: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        # torchvision's initialisation; the networks for CIFAR have PyTorch's default.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal") if self.imagenet_stem else None
        out = {}
        size, stride = (7, 2) if self.imagenet_stem else (3, 1)
        x = _conv(x, 64, size, "conv1", stride=stride, init=init, dtype=self.dtype)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="bn1")(x)
        x = out["stem"] = self.activation(x)
        if self.imagenet_stem:
            x = out["pool"] = pooling.max_pool(x, 3, 2, 1)
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                x = ResidualBlock(
                    64 * 2**stage,
                    2 if stage > 0 and index == 0 else 1,
                    self.bottleneck,
                    self.activation,
                    init,
                    self.dtype,
                    name=f"layer{stage + 1}_{index}",
                )(x, train)
                out[f"layer{stage + 1}_{index}"] = x
        x = out["features"] = dtypes.wide(x).mean((1, 2))
        x = out["logits"] = _dense(x, self.num_classes, "fc")
        return x, out
