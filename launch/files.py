"""Files and folders that are either whole or absent, and trees of arrays in them."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ARRAY, _TUPLE, _KEYS = "__array__", "__tuple__", "__keys__"
_MAPPED = 1 << 20  # bytes: larger arrays are memory-mapped when they are read, smaller ones copied


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write `content` beside `path`, flush it to the disk and move it into place."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which colleagues on a cluster could not read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save_tree(folder: str | Path, tree: Any) -> None:
    """Write a tree as `tree.json` and one .npy a leaf array into `folder`, which appears whole or not at all.

    Args:
      folder: replaced if it exists.
      tree: nested dicts (string keys), lists and tuples of arrays (NumPy or JAX) and JSON values. A NumPy memory map
        is not copied: its file, which must be on the same file system and hold nothing else, is moved.
    """
    folder = Path(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        arrays: list[Any] = []
        text = json.dumps(_outline(tree, arrays), indent=1)
        for number, array in enumerate(arrays):
            _save_array(temporary / f"{number}.npy", array)
        write_atomically(temporary / "tree.json", text + "\n")
        os.chmod(temporary, 0o755)  # mkdtemp gives 0700
        if folder.exists():  # moved aside first: deleting it may take long, and a kill must not leave half of it
            old = Path(tempfile.mkdtemp(dir=temporary.parent, prefix=f".{folder.name}."))
            os.replace(folder, old)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed calls of `save_tree` and `write_atomically` left beside `folder`, while no other one runs."""
    folder = Path(folder)
    for path in folder.parent.glob(f".{folder.name}.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def load_tree(folder: str | Path) -> Any:
    """What `save_tree` wrote; large arrays are memory-mapped, all are read-only."""
    folder = Path(folder)

    def rebuild(node: Any) -> Any:
        if isinstance(node, list):
            return [rebuild(item) for item in node]
        if not isinstance(node, dict):
            return node
        if _ARRAY in node:
            return _load_array(folder / f"{node[_ARRAY]}.npy")
        if _TUPLE in node:
            return tuple(rebuild(item) for item in node[_TUPLE])
        items = node.get(_KEYS, node)
        return {key: rebuild(item) for key, item in items.items()}

    return rebuild(json.loads((folder / "tree.json").read_text()))


def _outline(node: Any, arrays: list[Any]) -> Any:
    """The tree as JSON, each array replaced by its number in `arrays`."""
    if isinstance(node, Mapping):
        items = {_text(key): _outline(item, arrays) for key, item in node.items()}
        return {_KEYS: items} if {_ARRAY, _TUPLE, _KEYS} & items.keys() else items
    if isinstance(node, tuple):
        return {_TUPLE: [_outline(item, arrays) for item in node]}
    if isinstance(node, list):
        return [_outline(item, arrays) for item in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if not hasattr(node, "shape") or not hasattr(node, "dtype"):
        raise TypeError(f"a {type(node).__name__} cannot be saved; encode it as arrays, dicts, lists or JSON values")
    arrays.append(node)
    return {_ARRAY: len(arrays) - 1}


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys of a saved tree are strings, not {key!r}")
    return key


def _save_array(path: Path, array: Any) -> None:
    if isinstance(array, np.memmap) and _is_whole(array):
        array.flush()
        os.replace(str(array.filename), path)
        return
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise TypeError("arrays of Python objects cannot be saved")
    native = array.dtype.isbuiltin != 2  # 2: registered with NumPy by a library
    if not native:
        # Types such as bfloat16 have no name in the .npy format: their bytes are kept, and the name beside them.
        array, dtype = array.reshape(-1).view(np.uint8).reshape(*array.shape, array.dtype.itemsize), array.dtype
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    if not native:
        path.with_suffix(".dtype").write_text(dtype.name)


def _is_whole(array: np.memmap) -> bool:
    """Whether an array is a whole .npy file that is mapped for writing, and not a view of it or of a part of it."""
    if array.mode not in ("w+", "r+"):
        return False
    try:
        file = np.load(str(array.filename), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False  # no .npy file, or moved already: the tree has the array twice
    return (file.shape, file.strides, file.dtype) == (array.shape, array.strides, array.dtype)


def _load_array(path: Path) -> np.ndarray:
    mapped = path.stat().st_size > _MAPPED
    array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    named = path.with_suffix(".dtype")
    if named.exists():
        import ml_dtypes  # comes with JAX

        array = array.reshape(-1).view(getattr(ml_dtypes, named.read_text())).reshape(array.shape[:-1])
    array.flags.writeable = False
    return array
