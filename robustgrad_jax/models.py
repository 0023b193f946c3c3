"""Networks by name, and their weights from PyTorch.

Every model is `apply(variables, x, train=False) -> (logits, out)`: x (n, h, w, c) normalised, channels last;
logits (n, num_classes); `out` a dict with every named intermediate. See `launch.networks.cnn`.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from launch.networks import activations, dtypes, weights
from launch.networks.cnn import LeNet, ResNet

_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
NAMES = ("lenet", *(f"{name}_cifar" for name in _DEPTHS), *_DEPTHS)


def check(name: str) -> None:
    """Raise ValueError, listing the valid names, if there is no model called `name`."""
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}; valid names: {', '.join(map(repr, NAMES))}")


def create(
    name: str, *, num_classes: int, activation: str = "softplus", beta: float = 3.0, dtype: str = "float32"
) -> nn.Module:
    """The model called `name` (one of `NAMES`).

    Args:
      name: `lenet`, `resnet18_cifar`, … (3x3 stem) or `resnet18`, … (7x7 stem).
      num_classes: number of logits.
      activation: relu, softplus, gelu or silu.
      beta: sharpness of softplus, log(1 + exp(beta t)) / beta; 3 in Joo et al. 2023.
      dtype: of activations and products, one of `launch.networks.dtypes.DTYPES`.

    Raises:
      ValueError: the name or the dtype is unknown; the message lists the valid ones.
    """
    check(name)
    act, computed = activations.get(activation, beta), dtypes.get(dtype)
    if name == "lenet":
        return LeNet(num_classes, act, computed)
    depth = name.removesuffix("_cifar")
    return ResNet(num_classes, act, _DEPTHS[depth], depth == "resnet50", depth == name, computed)


def from_torch(name: str, tensors: Mapping[str, np.ndarray]) -> dict:
    """Our variables from a PyTorch state dict, strictly.

    Args:
      name: one of `NAMES`.
      tensors: name -> array as PyTorch lays it out. Names are torchvision's for the ImageNet ResNets and the
        published code's for LeNet (conv11 conv12 conv21 conv22 fc1 fc2) and the CIFAR ResNets (conv1 bn1
        layerK.J.convI shortcut.0 shortcut.1 linear). `num_batches_tracked` has no counterpart and is ignored.

    Returns:
      {"params": …, "batch_stats": …} (no "batch_stats" for LeNet), with the arrays' own dtype. The number of
      classes and of input channels, and LeNet's image size, are those of the tensors.

    Raises:
      ValueError: the model is unknown, or tensors are missing, extra or of another shape than the model's;
        the message lists them all.
    """
    check(name)
    tensors = {k: np.asarray(v) for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    num_classes, image_shape = weights.sizes(name, tensors)
    model = create(name, num_classes=num_classes)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    return weights.convert(name, tensors, template)


def load(name: str, path: str | Path) -> dict:
    """Our variables from a safetensors file with PyTorch's names; see `from_torch`.

    Raises:
      FileNotFoundError, ValueError: the file is absent, is not a whole safetensors file, or does not fit the
        model; the message names the file.
    """
    tensors = weights.read(path)
    try:
        return from_torch(name, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
