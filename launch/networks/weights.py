"""PyTorch's weights as variables of our networks; `robustgrad_jax.models.from_torch` is the public function."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_LENET_CHANNELS = 64  # of the maps that LeNet's first dense layer takes, flattened


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
      FileNotFoundError, ValueError: the file does not exist, is not a complete safetensors file, or has a tensor with
        NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} has {np.sum(~np.isfinite(tensor))} values that are NaN or infinite")
    return tensors


def sizes(name: str, tensors: Mapping[str, np.ndarray]) -> tuple[int, tuple[int, int, int]]:
    """The number of classes and the image shape (h, w, c) of a network with these weights.

    Only LeNet's weights determine h and w. For a tensor that is missing or has too few dimensions a usual size is
    assumed: `convert` lists it with all other problems.
    """

    def size(tensor: str, axis: int, otherwise: int) -> int:
        shape = np.shape(tensors.get(tensor, ()))
        return shape[axis] if axis < len(shape) and shape[axis] else otherwise

    head = {"lenet": "fc2"}.get(name, "linear" if name.endswith("_cifar") else "fc")
    classes = size(f"{head}.weight", 0, size(f"{head}.bias", 0, 10))
    if name != "lenet":
        return classes, (32, 32, size("conv1.weight", 1, 3))
    inputs = size("fc1.weight", 1, _LENET_CHANNELS * 64)
    side = max(1, round((inputs / _LENET_CHANNELS) ** 0.5))
    return classes, (4 * side, 4 * side, size("conv11.weight", 1, 3))


def convert(name: str, tensors: Mapping[str, np.ndarray], template: Mapping) -> dict:
    """The tensors in the layout of a model's variables.

    Args:
      name: of the model.
      tensors: PyTorch's name -> array.
      template: the model's variables as shapes.

    Raises:
      ValueError: tensors are missing, extra or of another shape; the message lists them all.
    """
    flat: Any = traverse_util.flatten_dict(template)
    names = {path: _torch_name(path, name.endswith("_cifar")) for path in flat}
    problems = []
    if missing := sorted(set(names.values()) - set(tensors)):
        problems.append(f"missing {', '.join(missing)}")
    if extra := sorted(set(tensors) - set(names.values())):
        problems.append(f"not in the model {', '.join(extra)}")
    ours = {}
    for path, leaf in flat.items():
        if names[path] not in tensors:
            continue
        tensor, expected = tensors[names[path]], _torch_shape(path[-1], leaf)
        flattened = name == "lenet" and path[-2:] == ("fc1", "kernel")
        if tensor.shape == expected:
            ours[path] = np.ascontiguousarray(_to_ours(tensor, path[-1], flattened))
        else:
            hint = " (for square images, the only ones it takes)" if flattened else ""
            problems.append(f"{names[path]} has shape {tensor.shape}, the model's has {expected}{hint}")
    if problems:
        raise ValueError(f"these weights do not fit {name}: " + "; ".join(problems))
    return traverse_util.unflatten_dict(ours)


def _torch_name(path: tuple[str, ...], cifar: bool) -> str:
    """PyTorch's name of a leaf.

    ('params', 'layer1_0', 'shortcut_bn', 'scale') -> 'layer1.0.downsample.1.weight' (torchvision) or
    'layer1.0.shortcut.1.weight' (the published networks for CIFAR).
    """
    collection, *modules, leaf = path
    shortcut = "shortcut" if cifar else "downsample"
    names = []
    for module in modules:
        module = re.sub(r"^(layer\d)_(\d+)$", r"\1.\2", module)
        module = {"shortcut_conv": f"{shortcut}.0", "shortcut_bn": f"{shortcut}.1"}.get(module, module)
        names.append("linear" if module == "fc" and cifar else module)
    return ".".join([*names, _LEAVES[collection, leaf]])


def _torch_shape(leaf: str, ours: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """PyTorch's shape of a leaf."""
    if leaf != "kernel":
        return ours.shape
    *window, inputs, outputs = ours.shape
    return (outputs, inputs, *window)


def _to_ours(tensor: np.ndarray, leaf: str, flattened: bool) -> np.ndarray:
    """A tensor with channels last; `flattened`: its inputs are an image, (c, h, w) in PyTorch and (h, w, c) here."""
    if leaf != "kernel":
        return tensor
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)  # out, in, h, w -> h, w, in, out
    if flattened:
        side = round((tensor.shape[1] / _LENET_CHANNELS) ** 0.5)
        images = tensor.reshape(len(tensor), _LENET_CHANNELS, side, side)
        tensor = images.transpose(0, 2, 3, 1).reshape(len(tensor), -1)
    return tensor.T
