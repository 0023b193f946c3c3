"""JSON and JSON Lines, strictly.

Each key of an object once, no NaN, texts without NUL and without halves of surrogate pairs, nesting up to `MAX_DEPTH`.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.reading import text
from launch.reading.errors import InputError, shown
from launch.reading.records import Record

MAX_DEPTH = 100  # of lists and objects in each other
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number", bool: "true or false"}
_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")  # escapes of surrogates, paired or not, and of NUL


def read(file: str | Path, *, top: type | tuple[type, ...] = (dict, list), nonfinite: bool = False) -> Any:
    """The content of a JSON file.

    Args:
      file: its path.
      top: what the content must be: dict, list or both; object for any value.
      nonfinite: accept NaN and infinities, which Python writes but JSON does not allow; for our own files.

    Raises:
      MissingInput: no such file.
      InputError: not UTF-8, no JSON (with line and column), a key twice in an object, a number that is not finite, a
        text that cannot be written as UTF-8, nesting beyond `MAX_DEPTH`, another type.
    """
    content = text.read(file)
    try:
        return parse(content, file=file, top=top, nonfinite=nonfinite)
    except InputError as error:
        if "Extra data" in error.reason and Path(file).suffix.lower() == ".json":
            raise InputError(
                error.reason, file=file, place=error.place, remedy="if each line is an object, name the file .jsonl"
            ) from error
        raise


def parse(
    content: str,
    *,
    file: str | Path | None = None,
    place: str | int = "",
    top: type | tuple[type, ...] = (dict, list),
    nonfinite: bool = False,
) -> Any:
    """A JSON value from text: a file's, a line's or a language model's reply; see `read`.

    Args:
      content: the text.
      file, place: where it stands, for errors.
      top, nonfinite: as of `read`.
    """
    if not content or content.isspace():
        raise InputError("is empty; JSON is needed", file=file, place=place)
    try:
        value = _DECODERS[nonfinite].decode(content)
    except json.JSONDecodeError as error:
        column = f"column {error.colno}"
        at = f"line {error.lineno}, {column}" if not place else f"{_place(place)}, {column}"
        raise InputError(f"invalid JSON: {error.msg}", file=file, place=at, remedy=_hint(content, error.pos)) from error
    except _Refused as error:
        raise InputError(error.reason, file=file, place=place) from error
    except RecursionError as error:
        raise _too_deep(file, place) from error
    except ValueError as error:  # an integer with more digits than Python takes
        raise InputError(f"invalid JSON: {error}", file=file, place=place) from error
    kinds = top if isinstance(top, tuple) else (top,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & set(kinds)):
        needed = " or ".join(_KINDS[kind] for kind in kinds)
        raise InputError(f"{needed} is needed", file=file, place=place, value=value)
    _check(value, content, file, place)
    return value


def lines(file: str | Path, *, nonfinite: bool = False) -> Iterator[Record]:
    """The objects of a JSON Lines file, one a line, read as they are asked for; blank lines are skipped.

    Raises:
      As `read`, with the line.
    """
    for number, line in text.lines(file):
        if line and not line.isspace():
            yield Record(file, number, parse(line, file=file, place=number, top=dict, nonfinite=nonfinite))


def records(file: str | Path, *, under: str = "") -> list[Record]:
    """The objects in the list of a JSON file, at the top level or under a key.

    Args:
      file: its path.
      under: the key of the list, as COCO's "annotations"; "" if the file is the list.

    Raises:
      As `read`; also an entry that is no object.
    """
    listed = entries(read(file, top=dict if under else list), file, under=under)
    for i, values in enumerate(listed):
        if not isinstance(values, dict):
            raise InputError("must be an object", file=file, place=entry(i, under), value=values)
    return [Record(file, entry(i, under), values) for i, values in enumerate(listed)]


def entries(content: Any, file: str | Path, *, under: str = "") -> list[Any]:
    """The list of a JSON file: its content, or the value of a key of it."""
    if not under:
        return content
    if not isinstance(content, dict) or not isinstance(content.get(under), list):
        value = content.get(under) if isinstance(content, dict) else content
        raise InputError(f"an object with a list under {under!r} is needed", file=file, value=value)
    return content[under]


def entry(i: int, under: str = "") -> str:
    """What the i-th entry of a list is called, counted from 0."""
    return f"entry {i} of {under!r}" if under else f"entry {i}"


class _Refused(Exception):
    """Raised by the decoder's hooks, which do not know the file."""

    @property
    def reason(self) -> str:
        return self.args[0]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused(f"the key {shown(twice)} occurs twice in the object {shown(values)}")
    return values


def _refuse_constant(constant: str) -> None:
    raise _Refused(f"{constant} is not valid JSON; numbers must be finite")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise _Refused(f"the number {shown(number)} is too large")
    return value


_DECODERS = {
    False: json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_refuse_constant, parse_float=_finite),
    True: json.JSONDecoder(object_pairs_hook=_distinct),
}


def _check(value: Any, content: str, file: str | Path | None, place: str | int) -> None:
    """Refuse deep nesting, and texts with NUL or half of a surrogate pair. Walks level by level, not recursively."""
    suspect = ("\\u" in content and _SUSPECT.search(content) is not None) or _has_surrogate(content)
    if not suspect and content.count("[") + content.count("{") <= MAX_DEPTH:
        return
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        inner = [item for node in level for item in (node.values() if type(node) is dict else node)]
        if suspect:
            keys = (key for node in level if type(node) is dict for key in node)
            _check_texts([item for item in itertools.chain(inner, keys) if type(item) is str], file, place)
        level = [item for item in inner if type(item) is dict or type(item) is list]
        if not level:
            return
    raise _too_deep(file, place)


def _check_texts(texts: list[str], file: str | Path | None, place: str | int) -> None:
    for item in texts:
        if "\0" in item:
            raise InputError("a text contains NUL", file=file, place=place, value=item, remedy="remove \\u0000")
        if _has_surrogate(item):
            raise InputError(
                "a text contains half of a surrogate pair, which cannot be written as UTF-8",
                file=file,
                place=place,
                value=item,
                remedy="write the whole character, or leave it out",
            )


def _has_surrogate(content: str) -> bool:
    if content.isascii():
        return False
    try:
        content.encode()
    except UnicodeEncodeError:
        return True
    return False


def _hint(content: str, position: int) -> str:
    """The text around an error."""
    start = max(0, position - 20)
    return f"near {shown(content[start : position + 20])}"


def _place(place: str | int) -> str:
    return f"line {place}" if isinstance(place, int) else place


def _too_deep(file: str | Path | None, place: str | int) -> InputError:
    return InputError(f"lists and objects are nested deeper than {MAX_DEPTH} levels", file=file, place=place)
