"""Arrays kept on disk, found again by what they were computed from."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from launch import files
from launch.reading import MissingInput

_DIGEST = 32  # bytes of a SHA-256, which stands after the array in an entry's file


class MakeArray(Protocol):
    """Computes the array of an entry: float32."""

    def __call__(self) -> np.ndarray: ...


def fetch(folder: str | Path, description: Mapping[str, Any], shape: Sequence[int], make: MakeArray) -> np.ndarray:
    """An array from the cache, or made and put there.

    An entry is `folder`/HASH.npy, which appears whole or not at all; `numpy.load` reads it. A damaged entry is made
    again, with a warning in the log; what killed writes left in the folder is removed by the next one. Processes of one
    run look for it and make it together, and the first one writes it.

    Args:
      folder: created if necessary.
      description: everything that the array depends on, as JSON values; its hash is the entry's name.
      shape: of the array, without a 0.
      make: computes the array.

    Returns:
      The array, float32, read-only, mapped from the file into memory.
    """
    name = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    path, found = Path(folder) / f"{name}.npy", None
    if path.is_file():
        try:
            found = _read(path, tuple(shape))
        except ValueError as error:
            logging.warning("cache entry %s is damaged (%s); computing it again", path, error)
    if _all_have(found):
        return found
    made = make()
    if jax.process_index() == 0:
        _write(path, made)
        return _read(path, tuple(shape))
    made.flags.writeable = False
    return made


def digest(array: np.ndarray) -> str:
    """A hash of every byte of an array."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def fingerprint(tree: Any) -> str:
    """A hash of a tree of arrays: of its paths, types, shapes and every byte (about a second for a gigabyte)."""

    def describe(item) -> str:
        path, leaf = item
        array = np.asarray(leaf)
        return f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}{digest(array)}"

    with ThreadPoolExecutor() as pool:
        digests = pool.map(describe, jax.tree_util.tree_leaves_with_path(tree))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def file_list(paths: Sequence[str | Path]) -> str:
    """A hash of files by their absolute path, size and time of modification; their content is not read.

    Raises:
      FileNotFoundError: a file does not exist; the error names the first.
    """
    entries = []
    for path in paths:
        try:
            state = os.stat(path)
        except FileNotFoundError as error:
            raise MissingInput("no such image", file=path) from error
        entries.append((os.path.abspath(path), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _all_have(entry: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Whether every process has found an entry: they have to make it together or not at all."""
    here = entry is not None
    return here if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if path.stat().st_size <= _DIGEST:
        raise ValueError("it is too short")
    content = np.memmap(path, np.uint8, "r")
    if hashlib.sha256(content[:-_DIGEST].data).digest() != content[-_DIGEST:].tobytes():
        raise ValueError("its checksum does not match")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"it holds {array.dtype} {array.shape}, not float32 {shape}")
    return array


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.sweep_leftovers(path.parent)
    with files.writing(path) as file:
        np.save(file, array)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").digest())  # pyright: ignore[reportArgumentType] - it is a file
