"""Files and folders that are either whole or absent, and trees of arrays in them.

What is being written has a temporary name beside its place, `.NAME.MACHINE-PID-START-RANDOM.partial`. A write that is
killed leaves it behind; `sweep_leftovers` tells it by its name from one that goes on.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from launch.reading import InputError, MissingInput, jsons

_ARRAY, _TUPLE, _KEYS = "__array__", "__tuple__", "__keys__"
_MAPPED = 1 << 20  # bytes: larger arrays are memory-mapped when they are read, smaller ones copied
_PARTIAL = ".partial"
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-(\d+)-[a-z0-9_]+\.partial", re.DOTALL)
_ABANDONED = 24 * 3600  # seconds without a change, of what another machine wrote


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write `content` beside `path`, flush it to the disk and move it into place."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """An open file that takes the place of `path` when the block ends; an exception leaves `path` as it was."""
    path = Path(path)
    _sweep_beside(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=_PARTIAL)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which colleagues on a cluster could not read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends; an exception leaves `folder` as it was."""
    folder = Path(folder)
    _sweep_beside(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_prefix(folder), suffix=_PARTIAL))
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp gives 0700
        if folder.exists():  # moved aside first: deleting it may take long, and a kill must not leave half of it
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_prefix(folder), suffix=_PARTIAL))
            os.replace(folder, old)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sweep_leftovers(folder: str | Path) -> list[Path]:
    """Remove what killed writes left in a folder and below it.

    A temporary file or folder goes if the process that wrote it ran on this machine and does not run any more; if it
    ran elsewhere, after a day in which nothing in it changed. Links are not followed, and nothing else is touched.

    Returns:
      What was removed.
    """
    removed = []
    for base, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(base, name)
            if not _is_leftover(path):
                continue
            if name in folders:
                folders.remove(name)  # os.walk does not enter it
            _remove(path)
            removed.append(path)
    return removed


def _sweep_beside(path: Path) -> None:
    """Remove what killed writes of `path` left: its folder may be nobody's, who would sweep it."""
    begin = _beginning(path)
    for name in os.listdir(path.parent):
        if name.startswith(begin) and _is_leftover(path.parent / name):
            _remove(path.parent / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)  # by another process that sweeps at the same time


def save_tree(folder: str | Path, tree: Any) -> None:
    """Write a tree as `tree.json` and one .npy a leaf array into `folder`, which appears whole or not at all.

    Args:
      folder: replaced if it exists.
      tree: nested dicts (string keys), lists and tuples of arrays (NumPy or JAX) and JSON values. A NumPy memory map
        is not copied: its file, which must be on the same file system and hold nothing else, is moved.
    """
    with writing_folder(folder) as temporary:
        arrays: list[Any] = []
        text = json.dumps(_outline(tree, arrays), indent=1)
        for number, array in enumerate(arrays):
            _save_array(temporary / f"{number}.npy", array)
        write_atomically(temporary / "tree.json", text + "\n")


def load_json(path: str | Path, *, top: type = dict, remedy: str = "remove it to go on") -> Any:
    """The content of a small JSON file that a command wrote; NaN and infinities count as numbers.

    Args:
      path: the file.
      top: dict or list.
      remedy: what to do if it is damaged.

    Raises:
      MissingInput: no such file.
      InputError: it is damaged; named, with the remedy.
    """
    try:
        return jsons.read(path, top=top, nonfinite=True)
    except MissingInput:
        raise
    except InputError as error:
        raise InputError(f"is damaged ({error.reason})", file=path, place=error.place, remedy=remedy) from error


def load_tree(folder: str | Path) -> Any:
    """What `save_tree` wrote; large arrays are memory-mapped, all are read-only.

    Raises:
      InputError: tree.json is damaged.
      OSError, ValueError: an array is missing or damaged.
    """
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

    file = folder / "tree.json"
    try:  # not `jsons.read`: names of files that are not UTF-8 are halves of surrogate pairs, and are kept
        return rebuild(json.loads(file.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"is damaged ({error})", file=file, remedy=f"remove {folder.parent}: it is made again"
        ) from error


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
    dtype = array.dtype
    native = dtype.isbuiltin != 2  # 2: registered with NumPy by a library
    if not native:
        # Types such as bfloat16 have no name in the .npy format: their bytes are kept, and the name beside them.
        array = array.reshape(-1).view(np.uint8).reshape(*array.shape, dtype.itemsize)
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


def _prefix(path: Path) -> str:
    """How the temporary name for `path` begins, up to its random part."""
    return f"{_beginning(path)}{_machine()}-{os.getpid()}-{_start(os.getpid())}-"


def _beginning(path: Path) -> str:
    """How the temporary names for `path` of all processes begin; a file name has at most 255 bytes."""
    return f".{os.fsdecode(os.fsencode(path.name)[:180])}."


@functools.cache
def _machine() -> str:
    """8 hexadecimal digits for this host since its last start, and for this container: where process ids are unique."""
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):  # not on Linux
            parts.append(read())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _start(pid: int) -> int:
    """When a process started, in ticks since the host did; 0 where that cannot be seen, -1 if it does not run."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if state in "ZX" else int(numbers[18])  # a zombie, which nobody has waited for, writes no more
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return -1
    except OSError:
        pass  # there is one, of another user
    return 0


def _is_leftover(path: Path) -> bool:
    named = _TEMPORARY.fullmatch(path.name)
    if named is None:
        return False
    if named[1] == _machine():
        start = _start(int(named[2]))
        return start == -1 or (start > 0 and int(named[3]) > 0 and start != int(named[3]))
    try:
        times = [path.lstat().st_mtime]
        if path.is_dir():
            times += [file.lstat().st_mtime for file in path.rglob("*")]
    except OSError:  # it is just being moved to its place
        return False
    return time.time() - max(times) > _ABANDONED
