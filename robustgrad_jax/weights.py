"""PyTorch state dicts to our variables, strictly: what is missing, extra or mis-shaped is listed and refused."""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from robustgrad_jax import models

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def _torch_name(path: tuple[str, ...], cifar: bool) -> str:
    """('params', 'layer1_0', 'shortcut_bn', 'scale') -> 'layer1.0.downsample.1.weight' (torchvision) or
    'layer1.0.shortcut.1.weight' (the published CIFAR networks)."""
    collection, *modules, leaf = path
    shortcut = "shortcut" if cifar else "downsample"
    names = []
    for module in modules:
        module = re.sub(r"^(layer\d)_(\d+)$", r"\1.\2", module)
        module = {"shortcut_conv": f"{shortcut}.0", "shortcut_bn": f"{shortcut}.1"}.get(module, module)
        names.append("linear" if module == "fc" and cifar else module)
    return ".".join([*names, _LEAVES[collection, leaf]])


def _input_shape(name: str, tensors: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """The image shape (1, h, w, c) that the weights were made for; only LeNet's weights fix h and w."""
    stem = "conv11.weight" if name == "lenet" else "conv1.weight"
    channels = tensors[stem].shape[1]
    if name != "lenet":
        return (1, 32, 32, channels)
    side = round((tensors["fc1.weight"].shape[1] / 64) ** 0.5)
    return (1, 4 * side, 4 * side, channels)


def _to_ours(leaf: str, tensor: np.ndarray, channels: int | None) -> np.ndarray:
    if leaf != "kernel":
        return tensor
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)  # out, in, h, w -> h, w, in, out
    if channels:  # flattened as (c, h, w) there and as (h, w, c) here
        side = round((tensor.shape[1] / channels) ** 0.5)
        tensor = tensor.reshape(len(tensor), channels, side, side).transpose(0, 2, 3, 1).reshape(len(tensor), -1)
    return tensor.T


def from_torch(name: str, tensors: Mapping[str, np.ndarray]) -> dict:
    """Our variables from a PyTorch state dict.

    Args:
      name: one of `models.NAMES`.
      tensors: name -> array as PyTorch lays it out. Names are torchvision's for the ImageNet ResNets and the published
        code's for LeNet (conv11 conv12 conv21 conv22 fc1 fc2) and the CIFAR ResNets (conv1 bn1 layerK.J.convI
        shortcut.0 shortcut.1 linear). `num_batches_tracked` has no counterpart and is passed over.

    Returns:
      {"params": …, "batch_stats": …} (no "batch_stats" for LeNet), with the arrays' own dtype.

    Raises:
      ValueError: the model is unknown, or tensors are missing, extra or of another shape than the model's; the message
        lists them all.
    """
    head = {"lenet": "fc2"}.get(name, "linear" if name.endswith("_cifar") else "fc")
    tensors = {k: np.asarray(v) for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    # The three tensors that fix the architecture's free sizes come first, so that the rest can be checked by name.
    needed = {f"{head}.weight", "conv11.weight" if name == "lenet" else "conv1.weight"}
    needed |= {"fc1.weight"} if name == "lenet" else set()
    absent = sorted(needed - set(tensors))
    num_classes = 1 if absent else len(tensors[f"{head}.weight"])
    model = models.create(name, num_classes=num_classes)
    shape = (1, 32, 32, 3) if absent else _input_shape(name, tensors)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    template = traverse_util.flatten_dict(template)
    names = {path: _torch_name(path, name.endswith("_cifar")) for path in template}
    missing = sorted(set(names.values()) - set(tensors))
    extra = sorted(set(tensors) - set(names.values()))
    if missing or extra:
        raise ValueError(
            f"these weights do not fit {name}: missing {missing or 'nothing'}, extra {extra or 'nothing'}"
        )
    ours, wrong = {}, []
    for path, leaf in template.items():
        channels = 64 if name == "lenet" and path[-2] == "fc1" else None
        tensor = tensors[names[path]]
        rank = len(leaf.shape)
        if tensor.ndim == rank:
            array = _to_ours(path[-1], tensor, channels if tensor.ndim == 2 and tensor.shape[1] == leaf.shape[0] else None)
        if tensor.ndim != rank or array.shape != leaf.shape:
            wrong.append(f"{names[path]} is {tensor.shape}, the model's (channels last) is {leaf.shape}")
            continue
        ours[path] = np.ascontiguousarray(array)
    if wrong:
        raise ValueError(f"these weights do not fit {name}: " + "; ".join(wrong))
    return traverse_util.unflatten_dict(ours)


def load(name: str, path: str | Path) -> dict:
    """Our variables from a safetensors file with PyTorch's names; see `from_torch`.

    Raises:
      FileNotFoundError, ValueError: the file is absent, is not a whole safetensors file, or does not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        return from_torch(name, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
