"""Settings and names that stand for files and folders."""

import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from launch.reading.errors import InputError, MissingInput, of_os, printable

_THREADS = 32  # questions to a file system at once: that of a cluster answers slowly


def path(value: Any, setting: str) -> Path:
    """A setting as a path, `~` expanded.

    Args:
      value: what was given.
      setting: its name, for errors: "--workdir", "data.path".

    Raises:
      InputError: empty, blank, no text, with a NUL, or `~name` of an unknown user.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError("must be a path", field=setting, value=value)
    text = os.fspath(value)
    if not isinstance(text, str) or "\0" in text:
        raise InputError("must be a path without NUL characters", field=setting, value=text)
    if not text.strip():
        raise InputError("is empty", field=setting, value=text, remedy="give a path; is a shell variable unset?")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError("names an unknown user after '~'", field=setting, value=text) from error


def file(value: Any, setting: str, *, endings: Sequence[str] = (), remedy: str = "") -> Path:
    """A setting as the path of a file that is there.

    Args:
      value: what was given.
      setting: its name, for errors.
      endings: valid file name endings, in lower case (".csv"); any by default.
      remedy: what to do if the file is missing.

    Raises:
      MissingInput: no such file.
      InputError: not a path, another ending, no regular file, not readable.
    """
    location = path(value, setting)
    if endings and location.suffix.lower() not in endings:
        raise InputError(f"must be a file that ends in {', '.join(endings)}", field=setting, value=str(value))
    _check_kind(location, setting, remedy, stat.S_ISREG, "a file", os.R_OK)
    return location


def folder(value: Any, setting: str, *, remedy: str = "") -> Path:
    """A setting as the path of a folder that is there; see `file`."""
    location = path(value, setting)
    _check_kind(location, setting, remedy, stat.S_ISDIR, "a folder", os.R_OK | os.X_OK)
    return location


def inside(root: str | Path, name: Any, *, listed: str | Path, place: str | int = "", field: str = "") -> Path:
    """The path of a file that an annotation names, which has to lie below `root`.

    "./a.jpg" and "a/../b.jpg" are taken, and an absolute path below `root`. Links are not followed: a data folder may
    hold links to other disks.

    Args:
      root: the folder that names are relative to.
      name: what the annotation says.
      listed: the annotation's file, for errors.
      place: of the name in it.
      field: its column or key.

    Raises:
      InputError: no text, blank, with a NUL, or a path out of `root`.
    """
    where = {"file": listed, "place": place, "field": field, "value": name}
    if not isinstance(name, str) or not name.strip():
        raise InputError("must be the name of a file", **where)
    if "\0" in name:
        raise InputError("must be the name of a file, without NUL characters", **where)
    base = os.fspath(root)
    relative = os.path.relpath(name, os.path.abspath(base)) if os.path.isabs(name) else os.path.normpath(name)
    if relative in (os.curdir, os.pardir) or relative.startswith(os.pardir + os.sep):
        raise InputError(f"is not below {printable(base)}", **where, remedy="names are relative to that folder")
    return Path(base, relative)


def absent(files: Iterable[str | Path]) -> list[int]:
    """Positions of the paths that are not files, asked for in parallel."""
    paths = list(files)
    with ThreadPoolExecutor(_THREADS) as pool:
        there = list(pool.map(os.path.isfile, paths, chunksize=max(1, min(256, len(paths) // _THREADS))))
    return [i for i, is_file in enumerate(there) if not is_file]


def check_present(files: Iterable[str | Path], *, listed: str | Path, remedy: str = "") -> None:
    """Raise MissingInput if files that `listed` names are not there: how many, and the first."""
    paths = list(files)
    if missing := absent(paths):
        count = f"{len(missing):,} of {len(paths):,} files that it names are missing"
        raise MissingInput(f"{count}, the first is {printable(paths[missing[0]])}", file=listed, remedy=remedy)


def open_regular(file: str | bytes | Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which might never end, is refused.

    Raises:
      MissingInput, InputError: it is not there, not a regular file or not readable.
    """
    try:
        # O_NONBLOCK: opening a pipe without a writer would wait for ever. It means nothing for regular files.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise of_os(error, file) from error
    except ValueError as error:
        raise InputError("is not a valid path: it contains a NUL or half of a surrogate pair", file=file) from error
    if stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise InputError(f"is {_kind(mode)}; a regular file is needed", file=file)


def _check_kind(location: Path, setting: str, remedy: str, is_kind, kind: str, access: int) -> None:
    try:
        mode = os.stat(location).st_mode
    except OSError as error:
        raise of_os(error, location, field=setting, remedy=remedy) from error
    except ValueError as error:
        raise InputError("is not a valid path", field=setting, value=str(location)) from error
    if not is_kind(mode):
        raise InputError(f"is {_kind(mode)}; {kind} is needed", file=location, field=setting, remedy=remedy)
    if not os.access(location, access):
        raise InputError("cannot be read: no permission", file=location, field=setting)


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a pipe, socket or device"
