"""The error of all readers, and values as they are shown in it."""

import enum
import errno
import os
import reprlib
from pathlib import Path
from typing import Any

_LONGEST = 80  # characters of a value that is shown


class _Absent(enum.Enum):
    """Stands for a value that was not given, where None may be one."""

    ABSENT = enum.auto()


class InputError(ValueError):
    """An input that cannot be used.

    Its text is one line: where, what is wrong, the value, the way out.

    Args:
      reason: what is wrong, and what is valid.
      file: the file or folder; None where the input is not one.
      place: "line 3", "entry 5", …; a number is a line.
      field: column, key or setting.
      value: what was given.
      remedy: what to do.

    Attributes:
      reason, file, place, field, value, remedy: as given; `file` and `place` as text, "" if absent, `value` None if
        absent.
    """

    def __init__(
        self,
        reason: str,
        *,
        file: str | bytes | Path | None = None,
        place: str | int = "",
        field: str = "",
        value: Any = _Absent.ABSENT,
        remedy: str = "",
    ):
        self.reason, self.field, self.remedy = reason, field, remedy
        self.file = "" if file is None else printable(file)
        self.place = f"line {place}" if isinstance(place, int) else place
        self.value = None if value is _Absent.ABSENT else value
        field_shown = repr(field) if field else ""
        where = ", ".join(filter(None, (self.file, _one_line(self.place), field_shown)))
        text = reason if value is _Absent.ABSENT else f"{reason}, got {shown(value)}"
        text = f"{where}: {text}" if where else text
        super().__init__(_one_line(f"{text}; {remedy}" if remedy else text))
        self._given = (reason, file, place, field, value, remedy)

    def __reduce__(self):  # worker processes send it to their parent
        return _again, (type(self), *self._given)


class MissingInput(InputError, FileNotFoundError):
    """A file or folder that is not there."""


def of_os(error: OSError, file: str | bytes | Path, *, field: str = "", remedy: str = "") -> InputError:
    """The operating system's refusal to open or read `file`."""
    absent = isinstance(error, FileNotFoundError | NotADirectoryError)
    reason = "no such file or folder" if absent else f"cannot be read ({error.strerror or error})"
    if error.errno == errno.ELOOP:
        reason = "is a link that leads to itself"
    return (MissingInput if absent else InputError)(reason, file=file, field=field, remedy=remedy)


def shown(value: Any) -> str:
    """A value in a message: one short line of printable characters, whatever it is."""
    return _one_line(_SHORT.repr(value))


def printable(name: str | bytes | Path) -> str:
    r"""A file's name as text that any terminal and any UTF-8 file takes: bytes that are not UTF-8 as \xe9."""
    try:
        text = os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair that does not stand for a byte
        text = str(name)
    return _one_line(text)


def _one_line(text: str) -> str:
    """Control characters, line breaks and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


class _Short(reprlib.Repr):
    """Short forms of values: neither huge integers nor deep nesting make it fail."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 3, 4, 4, 4
        self.maxstring, self.maxother, self.maxlong = _LONGEST, _LONGEST, 40

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 4000:  # Python refuses to print more than 4,300 digits
            return f"an integer of {x.bit_length()} bits"
        return super().repr_int(x, level)

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= _LONGEST else repr(x[: _LONGEST - 1]) + "…"


_SHORT = _Short()


def _again(kind: type[InputError], reason, file, place, field, value, remedy) -> InputError:
    return kind(reason, file=file, place=place, field=field, value=value, remedy=remedy)
