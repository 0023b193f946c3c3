"""Checkpoint files -> named tensors, without running anything that a file could contain.

Which of a folder's files are read is decided by `find`, in this order:

1. model.safetensors, model.safetensors.index.json                   with config.json
2. open_clip_model.safetensors, model.safetensors                    with open_clip_config.json
3. flax_model.msgpack                                                with config.json
4. pytorch_model.bin, pytorch_model.bin.index.json                   with config.json; needs PyTorch
5. open_clip_pytorch_model.bin, open_clip_pytorch_model.bin.index.json   with open_clip_config.json; needs PyTorch

A config.json that describes no CLIP does not count where there is an open_clip_config.json.

safetensors are mapped into memory and read tensor by tensor. PyTorch's files are pickles: they are only opened by
`torch.load(weights_only=True)`, which refuses anything but tensors.
"""

import importlib
import json
import math
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open

from clip_jax.files.layouts import Tensor

HUGGINGFACE_CONFIG, OPENCLIP_CONFIG = "config.json", "open_clip_config.json"
_INDEX = ".index.json"
_ORDER = (
    ("model.safetensors", HUGGINGFACE_CONFIG),
    ("model.safetensors.index.json", HUGGINGFACE_CONFIG),
    ("open_clip_model.safetensors", OPENCLIP_CONFIG),
    ("open_clip_model.safetensors.index.json", OPENCLIP_CONFIG),
    ("model.safetensors", OPENCLIP_CONFIG),
    ("flax_model.msgpack", HUGGINGFACE_CONFIG),
    ("pytorch_model.bin", HUGGINGFACE_CONFIG),
    ("pytorch_model.bin.index.json", HUGGINGFACE_CONFIG),
    ("open_clip_pytorch_model.bin", OPENCLIP_CONFIG),
    ("open_clip_pytorch_model.bin.index.json", OPENCLIP_CONFIG),
)
_SAFETENSORS_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class Found(NamedTuple):
    """The files of a checkpoint that are read.

    Attributes:
      weights: name of the weights file, or of the index of its parts.
      config: name of the file that describes the model: "config.json" or "open_clip_config.json", which also says
        whose tensor names the weights have.
    """

    weights: str
    config: str


@dataclass(frozen=True)
class Lazy:
    """A tensor still in its file: shape and dtype are known, numpy reads it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def find(files: Collection[str], folder: str | Path) -> Found | None:
    """Which files make up the checkpoint; None if there are no weights with their config.

    Args:
      files: names of all files of the checkpoint's folder.
      folder: where its config files are; the others may still have to be fetched.

    Raises:
      ValueError: there are both config files, and config.json cannot be read.
    """
    files = set(files)
    both = {HUGGINGFACE_CONFIG, OPENCLIP_CONFIG} <= files
    # timm puts the image tower alone, with a config.json of its own, beside OpenCLIP's files of both towers.
    if both and read_json(Path(folder) / HUGGINGFACE_CONFIG).get("model_type") != "clip":
        files.remove(HUGGINGFACE_CONFIG)
    return next((Found(*pair) for pair in _ORDER if set(pair) <= files), None)


def patterns(found: Found) -> list[str]:
    """Patterns of the names of the weights files that `found` stands for."""
    if not found.weights.endswith(_INDEX):
        return [found.weights]
    stem, _, suffix = found.weights.removesuffix(_INDEX).rpartition(".")
    return [found.weights, f"{stem}-*.{suffix}"]


def known_names() -> str:
    """The files that `find` looks for, for messages."""
    return "; ".join(f"{weights} with {config}" for weights, config in _ORDER)


def read(folder: str | Path, found: Found) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their stored names.

    Args:
      folder: of the checkpoint.
      found: by `find`.

    Raises:
      FileNotFoundError: parts that the index names are not there.
      ValueError: a file is corrupt, cut off, or holds something other than tensors; the message names it.
      ImportError: a PyTorch file without PyTorch.
    """
    path = Path(folder) / found.weights
    if not found.weights.endswith(_INDEX):
        return _reader(path)(path)
    parts = _parts(path)
    tensors = {part: _reader(part)(part) for part in sorted(set(parts.values()))}
    lost = sorted(f"{name} ({part.name})" for name, part in parts.items() if name not in tensors[part])
    unlisted = sorted(f"{name} ({part.name})" for part in tensors for name in tensors[part] if parts.get(name) != part)
    if lost or unlisted:
        problems = [f"not in the file it names: {', '.join(lost)}"] * bool(lost)
        problems += [f"in a file but not listed: {', '.join(unlisted)}"] * bool(unlisted)
        raise ValueError(f"{path} and its files contradict each other: {'; '.join(problems)}")
    return {name: tensors[part][name] for name, part in parts.items()}


def _parts(index: Path) -> dict[str, Path]:
    """Tensor -> the file of the index that holds it; all those files are there."""
    content = read_json(index)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    files = sorted(set(names.values()))
    suffix = Path(index.name.removesuffix(_INDEX)).suffix
    if odd := [file for file in files if Path(file).name != file or Path(file).suffix != suffix]:
        raise ValueError(f"{index} names what is no {suffix} file of its folder: {', '.join(odd)}")
    there = {file: (index.parent / file).stat().st_size for file in files if (index.parent / file).is_file()}
    if missing := [file for file in files if file not in there]:
        metadata = content.get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        whole = f", {_size(total)} in all" if isinstance(total, int | float) else ""
        present = ", ".join(f"{file} ({_size(size)})" for file, size in there.items()) or "none of them"
        raise FileNotFoundError(
            f"{index} names {len(files)} files{whole}; missing: {', '.join(missing)}; there: {present}"
        )
    return {name: index.parent / file for name, file in names.items()}


def _reader(path: Path) -> Callable[[Path], dict[str, Tensor]]:
    return {".safetensors": _read_safetensors, ".msgpack": _read_msgpack, ".bin": _read_torch}[path.suffix]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        file = safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} ({_size(path.stat().st_size)}) is not a whole safetensors file: {error}") from error
    tensors = {}
    for name in file.keys():  # noqa: SIM118  (it is no mapping)
        part = file.get_slice(name)
        kind = part.get_dtype()
        shape = tuple(part.get_shape())
        read = lambda name=name: file.get_tensor(name)
        tensors[name] = Lazy(shape, _SAFETENSORS_TYPES.get(kind, kind), read)
    return tensors


def _read_msgpack(path: Path) -> dict[str, Tensor]:
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # damaged bytes stumble anywhere: in msgpack, in the names of types, in shapes
        raise ValueError(f"{path} ({_size(path.stat().st_size)}) is not a whole msgpack file: {error!r}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}, not parameters by name")
    tensors = {".".join(map(str, keys)): value for keys, value in traverse_util.flatten_dict(tree).items()}
    _only_tensors(path, tensors, lambda value: isinstance(value, np.ndarray | np.generic))
    return tensors


def _read_torch(path: Path) -> dict[str, Tensor]:
    torch = _torch(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is corrupt, or holds more than tensors, which could run code, and is not opened: {error}"
        ) from error
    except Exception as error:  # a damaged file stumbles anywhere in PyTorch's parsers: IndexError, AssertionError, ...
        raise ValueError(f"{path} ({_size(path.stat().st_size)}) is not a whole PyTorch file: {error}") from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, not tensors by name")
    _only_tensors(path, tensors, lambda value: isinstance(value, torch.Tensor))

    def numpy(tensor) -> np.ndarray:  # numpy has no bfloat16 of PyTorch's, float32 holds its values
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()

    return {
        name: Lazy(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda tensor=tensor: numpy(tensor))
        for name, tensor in tensors.items()
    }


def _torch(path: Path) -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"{path} is a PyTorch file and PyTorch is not installed. Install it (pip install torch); or fetch the "
            "checkpoint's model.safetensors instead; or rewrite the folder once, where PyTorch is installed, with "
            f"clip_jax.save(clip_jax.load({str(path.parent)!r}), NEW_FOLDER)"
        ) from error


def _only_tensors(path: Path, tensors: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> None:
    if other := sorted(str(name) for name, value in tensors.items() if not is_tensor(value)):
        raise ValueError(f"{path} holds more than tensors: {', '.join(other)}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      ValueError: it does not; the message names the file.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def _size(n: float) -> str:
    """3200000000 -> "3.2 GB"."""
    power = min(int(math.log10(n) // 3), 4) if n >= 1 else 0
    return f"{n / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
