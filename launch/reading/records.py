"""Rows and objects with their place in the file, and typed access to their fields.

    for record in jsons.records("queries.json"):
        target = records.field(record, "target", int)
        caption = records.text(record, "caption")
        members = records.items(record.child("img_set"), "members", str)

Types are those of JSON: a bool is no int, 1.7 is no id, an int is a float.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from launch.reading.errors import InputError, shown

T = TypeVar("T")
_NAMES = {str: "a text", int: "an integer", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Record:
    """A row of a table or an object of a JSON file.

    Attributes:
      file: where it stands.
      place: "entry 5", "entry 5, 'img_set'", …; a number is a line.
      values: by field.
    """

    file: str | Path
    place: str | int
    values: Mapping[str, Any]

    def error(self, reason: str, field: str = "", *, remedy: str = "") -> InputError:
        """An error in this record; with a field that it has, the value is shown."""
        known = {"value": self.values[field]} if field in self.values else {}
        return InputError(reason, file=self.file, place=self.place, field=field, remedy=remedy, **known)

    def child(self, name: str) -> "Record":
        """The object under a field, as a record."""
        return Record(self.file, _below(self.place, repr(name)), field(self, name, dict))

    def children(self, name: str, *, at_least: int = 0) -> list["Record"]:
        """The objects of a list under a field, as records."""
        objects = items(self, name, dict, at_least=at_least)
        return [Record(self.file, _below(self.place, f"{name!r}[{i}]"), values) for i, values in enumerate(objects)]


def field(record: Record, name: str, kind: type[T]) -> T:
    """The value of a field.

    Args:
      record: that should have it.
      name: of the field.
      kind: str, int, float (finite), bool, list, dict; object for any of them.

    Raises:
      InputError: the field is missing or has another type; names file, place, field and value.
    """
    if name not in record.values:
        raise record.error(f"no {name!r} among {', '.join(map(shown, list(record.values)[:20])) or 'nothing'}")
    return _typed(record, name, record.values[name], kind, "")


def optional(record: Record, name: str, kind: type[T], default: T) -> T:
    """As `field`; `default` where the field is missing."""
    return field(record, name, kind) if name in record.values else default


def text(record: Record, name: str) -> str:
    """A field's text, stripped, which must not be blank."""
    value = field(record, name, str).strip()
    if not value:
        raise record.error("must be a text that is not blank", name)
    return value


def texts(record: Record, name: str) -> list[str]:
    """A field with one text or a list of at least one; stripped, none blank."""
    value = record.values.get(name)
    if not isinstance(value, list):
        return [text(record, name)]
    stripped = [item.strip() for item in items(record, name, str, at_least=1)]
    if "" in stripped:
        raise record.error(f"text {stripped.index('')} of the list is blank", name)
    return stripped


def number(record: Record, name: str, kind: type[T], *, least: float = -math.inf, most: float = math.inf) -> T:
    """A field's int or float within bounds, both included."""
    value = field(record, name, kind)
    if not least <= value <= most:  # type: ignore[operator]
        raise record.error(f"must be {_bounds(least, most)}", name)
    return value


def items(
    record: Record,
    name: str,
    kind: type[T],
    *,
    length: int | None = None,
    at_least: int = 0,
    distinct: bool = False,
) -> list[T]:
    """A field's list, all of whose items have one type.

    Args:
      record, name: as of `field`.
      kind: of the items.
      length: that the list must have.
      at_least: items.
      distinct: no item may occur twice; of texts and numbers.

    Raises:
      InputError: as `field`; another length, an item of another type or one that occurs twice.
    """
    values = field(record, name, list)
    if length is not None and len(values) != length:
        raise record.error(f"must be a list of {length}, has {len(values)}", name)
    if len(values) < at_least:
        raise record.error(f"must be a list of at least {at_least}, has {len(values)}", name)
    values = [_typed(record, name, item, kind, f"item {i} ") for i, item in enumerate(values)]
    if distinct and len(set(values)) < len(values):
        seen: set[Any] = set()
        twice = next(item for item in values if item in seen or seen.add(item))
        raise record.error(f"{shown(twice)} occurs twice", name)
    return values


@overload
def one_of(record: Record, name: str, valid: Mapping[str, T]) -> T: ...
@overload
def one_of(record: Record, name: str, valid: Collection[str]) -> str: ...
def one_of(record: Record, name: str, valid: Mapping[str, T] | Collection[str]) -> T | str:
    """A field's text, which must be one of `valid`; of a mapping, what it stands for. White space around it is no
    part of it."""
    value = field(record, name, str).strip()
    if value not in valid:
        raise record.error(f"must be one of {', '.join(map(repr, valid))}", name)
    return valid[value] if isinstance(valid, Mapping) else value


def only(record: Record, known: Collection[str]) -> None:
    """Raise InputError if the record has a field that is not `known`."""
    if unknown := [name for name in record.values if name not in known]:
        raise record.error(f"unknown field {shown(unknown[0])}; valid fields: {', '.join(map(repr, known))}")


def _typed(record: Record, name: str, value: Any, kind: type[T], item: str) -> T:
    if kind is object:
        valid = True
    elif kind is float:
        valid = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    else:
        valid = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if valid:
        return float(value) if kind is float else value  # type: ignore[return-value]
    raise InputError(f"{item}must be {_NAMES[kind]}", file=record.file, place=record.place, field=name, value=value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float's range
        return False


def _bounds(least: float, most: float) -> str:
    if most == math.inf:
        return f"at least {least:g}"
    return f"at most {most:g}" if least == -math.inf else f"from {least:g} to {most:g}"


def _below(place: str | int, name: str) -> str:
    start = f"line {place}" if isinstance(place, int) else place
    return f"{start}, {name}" if start else name
