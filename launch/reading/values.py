"""Values of settings, against the types that fields are declared with.

The types are those of dataclass fields: bool, int, float, str, None, tuples of them, classes, unions. Besides values of
another type, values that no setting can have are refused: numbers that are not finite or do not fit into 32 bits, text
with NUL or half a surrogate pair, text longer than a path may be. Other types, such as protocols, are not checked.
"""

import functools
import types
import typing
from typing import Any

import numpy as np

from launch.reading.errors import shown

_LONGEST = 4096  # characters of a text: the longest path of Linux
_MOST = 100_000  # entries of a tuple
_LARGEST = 2.0**127  # of a float: within float32
_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", types.NoneType: "None"}


class Unfit(ValueError):
    """A value that a setting cannot be; the message says what it must be.

    Attributes:
      of_type: whether its type is the right one.
    """

    def __init__(self, reason: str, of_type: bool = False):
        super().__init__(reason)
        self.of_type = of_type


def checked(value: Any, declared: Any) -> Any:
    """A value as an instance of the type `declared`: integers become floats where needed, lists become tuples.

    Raises:
      Unfit: it has another type, or is no possible setting.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if typing.get_origin(declared) in (types.UnionType, typing.Union):
        return _any_of(value, typing.get_args(declared))
    if typing.get_origin(declared) is tuple:
        return _tuple(value, typing.get_args(declared))
    value = float(value) if declared is float and type(value) is int and abs(value) < _LARGEST else value
    if declared in _NAMES:
        if type(value) is not declared:
            raise Unfit(f"must be {_NAMES[declared]}")
        if problem := _problem(value):
            raise Unfit(problem, of_type=True)
    elif _is_class(declared) and not isinstance(value, declared):
        raise Unfit(f"must be {_described(declared)}")
    return value


def _is_class(declared: Any) -> bool:
    return isinstance(declared, type) and not getattr(declared, "_is_protocol", False)


@functools.cache
def types_of(kind: type) -> dict[str, Any]:
    """The declared types of a class's fields, by name."""
    return typing.get_type_hints(kind)


def _problem(value: Any) -> str:
    """Why a value of the right type is no possible setting; "" if it is one."""
    if isinstance(value, float) and not abs(value) < _LARGEST:
        return "must be a finite number, below 2**127"
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        return "must be below 2**31"
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"has {len(value):,} characters; {_LONGEST:,} are the most"
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        return "must be a text without NUL and half surrogate pairs"
    return ""


def _any_of(value: Any, parts: tuple[Any, ...]) -> Any:
    for part in parts:
        try:
            return checked(value, part)
        except Unfit as error:
            if error.of_type:
                raise
    raise Unfit(f"must be {' or '.join(map(_described, parts))}")


def _tuple(value: Any, declared: tuple[Any, ...]) -> tuple:
    """The entries of `tuple[int, ...]` or `tuple[int, str]`."""
    each = declared[0] if declared[-1] is Ellipsis else None
    if not isinstance(value, tuple | list):
        raise Unfit(f"must be {_described(tuple[declared])}")
    if each is None and len(value) != len(declared):
        raise Unfit(f"must have {len(declared)} entries")
    if len(value) > _MOST:
        raise Unfit(f"has {len(value):,} entries; {_MOST:,} are the most")
    entries = []
    for index, (entry, own) in enumerate(zip(value, declared if each is None else [each] * len(value), strict=True)):
        try:
            entries.append(checked(entry, own))
        except Unfit as error:
            raise Unfit(f"entry {index}, {shown(entry)}, {error}", of_type=True) from error
    return tuple(entries)


def _described(declared: Any) -> str:
    if typing.get_origin(declared) is tuple:
        first = typing.get_args(declared)[0]
        return f"a tuple, its entries {_described(first).removeprefix('a ')}s"
    return _NAMES.get(declared) or f"a {getattr(declared, '__name__', declared)}"
