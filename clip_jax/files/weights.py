"""Checkpoint files -> named tensors, without running anything that a file could contain.

`find` decides which of a folder's files are read, in this order:

1. model.safetensors, model.safetensors.index.json                   with config.json
2. open_clip_model.safetensors, model.safetensors                    with open_clip_config.json
3. flax_model.msgpack                                                with config.json
4. pytorch_model.bin, pytorch_model.bin.index.json                   with config.json; needs PyTorch
5. open_clip_pytorch_model.bin, open_clip_pytorch_model.bin.index.json   with open_clip_config.json; needs PyTorch

A config.json that does not describe a CLIP is ignored beside an open_clip_config.json.

safetensors are mapped into memory and read tensor by tensor. PyTorch's files are pickles: they are opened only by
`torch.load(weights_only=True)`, which refuses anything but tensors.
"""

import importlib
import math
import pickle
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open

from clip_jax.files.layouts import Tensor
from launch.reading import jsons, paths

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


class CheckpointFiles(NamedTuple):
    """The files of a checkpoint that are read.

    Attributes:
      weights: name of the weights file, or of the index of its parts.
      config: name of the file that describes the model, "config.json" or "open_clip_config.json"; it also decides which
        names the tensors have.
    """

    weights: str
    config: str


class ReadTensor(Protocol):
    """Reads a tensor from its file."""

    def __call__(self) -> np.ndarray: ...


class ReadTensors(Protocol):
    """Reads a file's tensors by their stored names; they may be lazy."""

    def __call__(self, path: Path, /) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file: shape and dtype are known, NumPy reads it."""

    shape: tuple[int, ...]
    dtype: str
    read: "ReadTensor"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def find(files: Collection[str], folder: str | Path) -> CheckpointFiles | None:
    """The files that make up the checkpoint; None if no weights come with their config.

    Args:
      files: names of all files of the checkpoint's folder.
      folder: with its config files; the others may still have to be fetched.

    Raises:
      ValueError: the folder has both config files, and config.json cannot be read.
    """
    names = set(files)
    both = {HUGGINGFACE_CONFIG, OPENCLIP_CONFIG} <= names
    # timm puts the image tower, with its own config.json, beside OpenCLIP's files of both towers.
    if both and read_json(Path(folder) / HUGGINGFACE_CONFIG).get("model_type") != "clip":
        names.remove(HUGGINGFACE_CONFIG)
    return next((CheckpointFiles(*pair) for pair in _ORDER if set(pair) <= names), None)


def patterns(files: CheckpointFiles) -> list[str]:
    """Patterns of the names of a checkpoint's weights files."""
    if not files.weights.endswith(_INDEX):
        return [files.weights]
    stem, _, suffix = files.weights.removesuffix(_INDEX).rpartition(".")
    return [files.weights, f"{stem}-*.{suffix}"]


def known_names() -> str:
    """The files that `find` looks for, as text for messages."""
    return "; ".join(f"{weights} with {config}" for weights, config in _ORDER)


def read(folder: str | Path, files: CheckpointFiles) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their stored names.

    Args:
      folder: of the checkpoint.
      files: by `find`.

    Raises:
      FileNotFoundError: parts that the index names are missing.
      ValueError: a file is corrupt, truncated, or holds something other than tensors; the message names it.
      ImportError: a PyTorch file, and PyTorch is not installed.
    """
    path = Path(folder) / files.weights
    if not files.weights.endswith(_INDEX):
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
    """Tensor -> the file of the index that holds it; every file exists."""
    content = read_json(index)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    files = sorted(set(names.values()))
    suffix = Path(index.name.removesuffix(_INDEX)).suffix
    if odd := [file for file in files if Path(file).name != file or Path(file).suffix != suffix]:
        raise ValueError(f"{index} names files that are not {suffix} files of its folder: {', '.join(odd)}")
    sizes = {file: (index.parent / file).stat().st_size for file in files if (index.parent / file).is_file()}
    if missing := [file for file in files if file not in sizes]:
        metadata = content.get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        whole = f", {_size(total)} in all" if isinstance(total, int | float) else ""
        present = ", ".join(f"{file} ({_size(size)})" for file, size in sizes.items()) or "none of them"
        raise FileNotFoundError(
            f"{index} names {len(files)} files{whole}; missing: {', '.join(missing)}; present: {present}"
        )
    return {name: index.parent / file for name, file in names.items()}


def _reader(path: Path) -> ReadTensors:
    readers: dict[str, ReadTensors] = {
        ".safetensors": _read_safetensors,
        ".msgpack": _read_msgpack,
        ".bin": _read_torch,
    }
    paths.open_regular(path).close()  # the libraries would wait for a pipe for ever
    return readers[path.suffix]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        file = safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} ({_size(path.stat().st_size)}) is not a complete safetensors file: {error}"
        ) from error
    tensors: dict[str, Tensor] = {}
    for name in file.keys():  # noqa: SIM118  (it is not a mapping)
        part = file.get_slice(name)
        kind = str(part.get_dtype())
        shape = tuple(part.get_shape())
        read = lambda name=name: file.get_tensor(name)
        tensors[name] = LazyTensor(shape, _SAFETENSORS_TYPES.get(kind, kind), read)
    return tensors


def _read_msgpack(path: Path) -> dict[str, Tensor]:
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # damaged bytes fail anywhere: in msgpack, in the names of types, in shapes
        raise ValueError(f"{path} ({_size(path.stat().st_size)}) is not a complete msgpack file: {error!r}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}, not parameters by name")
    leaves: dict[Any, Any] = dict(traverse_util.flatten_dict(tree))
    tensors = {".".join(map(str, keys)): value for keys, value in leaves.items()}
    _check_tensors(path, tensors, (np.ndarray, np.generic))
    return tensors


def _read_torch(path: Path) -> dict[str, Tensor]:
    torch = _torch(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is corrupt, or holds more than tensors. It could run code, so it is not opened: {error}"
        ) from error
    except Exception as error:  # a damaged file fails anywhere in PyTorch's parsers: IndexError, AssertionError, ...
        raise ValueError(f"{path} ({_size(path.stat().st_size)}) is not a complete PyTorch file: {error}") from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, not tensors by name")
    _check_tensors(path, tensors, (torch.Tensor,))

    def numpy(tensor) -> np.ndarray:  # PyTorch does not convert bfloat16 to NumPy; float32 holds its values
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()

    return {
        str(name): LazyTensor(
            tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda tensor=tensor: numpy(tensor)
        )
        for name, tensor in tensors.items()
    }


def _torch(path: Path) -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"{path} is a PyTorch file and PyTorch is not installed. Install it (pip install torch); or fetch the "
            "checkpoint's model.safetensors instead; or convert the folder once, on a machine with PyTorch, with "
            f"clip_jax.save(clip_jax.load({str(path.parent)!r}), NEW_FOLDER)"
        ) from error


def _check_tensors(path: Path, tensors: Mapping[Any, Any], kinds: tuple[type, ...]) -> None:
    if other := sorted(str(name) for name, value in tensors.items() if not isinstance(value, kinds)):
        raise ValueError(f"{path} holds more than tensors: {', '.join(other)}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; see `launch.reading.jsons.read`."""
    return jsons.read(path, top=dict)


def _size(n: float) -> str:
    """3200000000 -> "3.2 GB"."""
    power = min(int(math.log10(n) // 3), 4) if n >= 1 else 0
    return f"{n / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
