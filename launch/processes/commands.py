"""How commands end: one line for a mistake, and an exit status.

    0      done; of a training also: stopped on request, all saved
    1      a failure: a disk that is full, a loss that is not finite, a member of a sweep that failed
    2      a mistake in what was asked for; nothing was done
    75     stopped, start the same command again: a sweep, a pod of Kubernetes, a run that lost a process
    130    Ctrl-C; a training has saved

A traceback is printed for faults of the program only.
"""

import contextlib
import errno
import linecache
import os
import signal
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from logging import LogRecord

from absl import flags, logging

from launch.reading import InputError, printable
from launch.stages import SettingError

FAILURE, MISUSE, AGAIN = 1, 2, os.EX_TEMPFAIL
_LONGEST = 4000  # characters of what a command ends with: a damaged file may hold names of any length
_FULL = (errno.ENOSPC, errno.EDQUOT)
# When raised by our own code; an ImportError names a package to install.
_MISTAKES = (ValueError, TypeError, FileNotFoundError, NotADirectoryError, ImportError)
_FAILURES = (RuntimeError, ArithmeticError, LookupError, OSError)


class Exit(SystemExit):
    """The end of a command: its line is printed, and its status is the process's."""

    def __init__(self, line: str, status: int):
        super().__init__(line)
        self.code = status


def leave(line: str, status: int) -> Exit:
    """Print why a command ends, and give the exception that ends it."""
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    print(line, file=sys.stderr, flush=True)
    return Exit(line, status)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the process on an error as the module's docstring says; a context manager and a decorator."""
    logging.get_absl_handler().addFilter(_is_news)
    sys.unraisablehook = _print_news
    # A write of a checkpoint that failed leaves the writes that were to follow it unstarted.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    try:
        yield
    except KeyboardInterrupt as error:
        raise leave("interrupted", 128 + signal.SIGINT) from error
    except Exception as error:
        if (full := full_disk(error)) is not None:
            threading.excepthook = sys.unraisablehook = lambda _: None  # what still writes logs fails, too
            raise leave(f"{full}; make room, the same command goes on", FAILURE) from error
        line = f"{type(error).__name__}: {error}"
        if _is_said(error):
            raise leave(line, MISUSE if isinstance(error, _MISTAKES) else FAILURE) from error
        if isinstance(error, OSError) and error.filename is not None:
            raise leave(f"{os.fsdecode(error.filename)}: {error.strerror}", FAILURE) from error
        traceback.print_exc()
        raise leave(f"This is a bug; please report it with the lines above: {line}", FAILURE) from error


def parse(argv: Sequence[str]) -> list[str]:
    """absl's flag parsing for `app.run(main, flags_parser=parse)`: what it refuses is one line.

    So are words that belong to no flag.
    """
    try:
        left = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise leave(" ".join(str(error).split()), MISUSE) from error
    if len(left) > 1:
        words = " ".join(map(printable, left[1:]))
        raise leave(f"not understood: {words}; settings are --NAME=VALUE, quote a text of several words", MISUSE)
    return left


def _is_news(record: LogRecord) -> bool:
    """Whether to log a record: libraries log the traceback of a full disk, which `ending` says in one line."""
    return not (record.exc_info and record.exc_info[1] and full_disk(record.exc_info[1]))


def _print_news(unraisable: "sys.UnraisableHookArgs") -> None:
    """Print an exception that nobody can catch, unless it only follows from another one.

    When a write of a checkpoint has failed, TensorStore reports the writes still in flight to an event loop that is
    already closed.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def full_disk(error: BaseException) -> str | None:
    """The line about a full disk or quota if one caused an error, with the file where it is known; else None."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        if isinstance(following, OSError) and following.errno in _FULL:
            place = f"{os.fsdecode(following.filename)}: " if following.filename else ""
            return f"{place}{following.strerror}"
        if os.strerror(errno.ENOSPC) in str(following):  # TensorStore's errors have no number
            return os.strerror(errno.ENOSPC)
        following = following.__cause__ or following.__context__
    return None


def _is_said(error: Exception) -> bool:
    """Whether a `raise` statement outside of the libraries made an error: then its text is meant for the user."""
    if not isinstance(error, _MISTAKES + _FAILURES) or isinstance(error, NotImplementedError | RecursionError):
        return False
    if isinstance(error, InputError | SettingError):
        return True  # perhaps from a worker process
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    file, line = frames[-1].filename, frames[-1].lineno
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return not file.startswith(libraries) and linecache.getline(file, line or 0).lstrip().startswith("raise")
