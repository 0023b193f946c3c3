"""The language of --grid: the values of the swept fields.

    regularizer.cosine_weight=0.01,0.1,1;seed=0:5         product: 3 · 5 members; ranges as in Python, 0 1 2 3 4
    model.name=lenet,resnet18_cifar & optimizer.rate=1e-3,1e-4      zip: 2 members
    optimizer.rate=~log(1e-4,1e-1,8) & optimizer.weight_decay=~uniform(0,0.1,8)    8 random values of both
    evaluation.radii=(4.0,8.0),(16.0,)                    tuples; strings may be quoted: name="a,b"

`;` binds less tightly than `&`. Every value must have the type of its field. The random values of a field depend on
the seed and the field's name only, so a larger number of them keeps the earlier ones.
"""

import ast
import difflib
import itertools
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict

from launch.reading import shown
from launch.sweeps.members import SweepError

DISTRIBUTIONS = ("uniform", "log")
_SHOWN_DIGITS = 4  # of a random value: enough for a search, and short enough for a folder's name
_MOST = 1_000_000  # values of a field, and members of a sweep
_WANTS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string", tuple: "a tuple (a,b)"}


@dataclass(frozen=True)
class ConfigField:
    """A field of the config: the type of its values, and its current value, which types a tuple's elements."""

    kind: type
    value: Any


@dataclass(frozen=True)
class RandomValues:
    """`~log(low,high,count)`: uniform in the value or its logarithm; whole numbers, both ends included, if `whole`."""

    distribution: str
    low: float
    high: float
    count: int | None
    whole: bool
    column: int


@dataclass(frozen=True)
class Axis:
    """A field with its values, or with the distribution that they are drawn from."""

    key: str
    values: tuple[Any, ...] | RandomValues
    column: int


@dataclass(frozen=True)
class Grid:
    """A product of zips of axes, and the text that defines them."""

    text: str
    terms: tuple[tuple[Axis, ...], ...]


class _At(Exception):
    """A problem, and its position in the text; `parse` raises it as a `SweepError` that shows the column."""


def fields(config: ConfigDict) -> dict[str, ConfigField]:
    """Every field of a config by its dotted name; a placeholder has the type that it is declared with."""
    by_name = {}
    for key in config:
        kind = config.get_type(key)
        if issubclass(kind, ConfigDict):
            by_name |= {f"{key}.{inner}": field for inner, field in fields(cast(ConfigDict, config[key])).items()}
        else:
            by_name[key] = ConfigField(kind, config[key])
    return by_name


# -- values ---------------------------------------------------------------------------------------------------------


def check(overrides: Mapping[str, Any], known: Mapping[str, ConfigField], where: str) -> dict[str, Any]:
    """Flat overrides, with values converted to the types of the fields: integers to floats, lists to tuples.

    Args:
      overrides: flat.
      known: the valid fields.
      where: where the overrides come from, for errors.

    Raises:
      SweepError: there is no such field, or the value has another type.
    """
    try:
        return {key: _coerced(value, _field(key, known)) for key, value in overrides.items()}
    except ValueError as error:
        raise SweepError(f"{where}: {error}") from error


def _field(key: str, known: Mapping[str, ConfigField]) -> ConfigField:
    """The field of that name.

    Raises:
      ValueError: there is no such field, or the command line cannot set values of its type.
    """
    if key in known:
        if known[key].kind not in _WANTS:
            raise ValueError(
                f"{key} is {known[key].value!r} in the config, which cannot be overridden; write a tuple there, or "
                "config_dict.placeholder(type)"
            )
        return known[key]
    inner = [name for name in known if name.startswith(f"{key}.")]
    if inner:
        raise ValueError(f"{key!r} is a group of fields; sweep one of them: {', '.join(sorted(inner))}")
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown config key {key!r}{hint}\nvalid keys: {', '.join(sorted(known))}")


def _coerced(value: Any, field: ConfigField) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    kind = field.kind
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(_coerced(v, element) for v, element in zip(value, itertools.repeat(_element(field))))
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1024:
        value = float(value)
    if kind is object or (type(value) is kind and not (kind is float and not math.isfinite(value))):
        return value
    raise ValueError(f"{shown(value)} is not {_WANTS[kind]}")


def _element(field: ConfigField) -> ConfigField:
    """A tuple's elements: of the type of the current ones, or of any type if it is empty or they differ."""
    kinds = {type(v) for v in field.value or ()}
    kind = kinds.pop() if len(kinds) == 1 else object
    return ConfigField(kind if kind in _WANTS else object, None)


def _literal(text: str, start: int, stop: int, field: ConfigField) -> Any:
    """The value that text[start:stop] spells, by the type of `field`."""
    word, kind = text[start:stop], field.kind
    if kind is object:
        kind = _looks_like(word)
    if kind is tuple:
        if word[0] not in "([":
            raise _At(f"{word!r} is not {_WANTS[tuple]}", start)
        pieces = list(_split(text, start + 1, stop - 1, ","))
        if len(pieces) > 1 and pieces[-1][0] == pieces[-1][1]:
            pieces.pop()  # (1,)
        if pieces[0][0] == pieces[0][1]:
            return ()
        return tuple(_literal(text, *_filled(*piece), _element(field)) for piece in pieces)
    if word[0] in "\"'":
        try:
            value = ast.literal_eval(word)
        except (SyntaxError, ValueError) as error:
            raise _At(f"{word} is not one quoted string", start) from error
    elif kind is str:
        value = word
    else:
        value = _read(word, kind)
    try:
        return _coerced(value, ConfigField(kind, field.value))
    except ValueError as error:
        raise _At(str(error), start) from error


def _looks_like(word: str) -> type:
    if word[0] in "([":
        return tuple
    value = _read(word, float)
    return bool if word.lower() in ("true", "false") else type(value)


def _read(word: str, kind: type) -> Any:
    """An unquoted word as a value of `kind`, or the word itself if it does not spell one."""
    if kind is bool:
        return {"true": True, "false": False}.get(word.lower(), word)
    for read in (int, float):
        try:
            return read(word) if "_" not in word else word
        except ValueError:
            continue
    return word


# -- the text -------------------------------------------------------------------------------------------------------


def parse(text: str, known: Mapping[str, ConfigField]) -> Grid:
    """Parse a grid for a config with the given fields.

    Raises:
      SweepError: the text is malformed, or names an unknown field or a value of the wrong type; shows the column.
    """
    try:
        stop = len(text.rstrip("; "))  # a trailing ; is allowed
        terms = tuple(
            tuple(_axis(text, *_filled(*axis, what="key=values"), known) for axis in _split(text, *term, "&"))
            for term in _split(text, 0, stop, ";")
        )
        seen: set[str] = set()
        for axis in itertools.chain.from_iterable(terms):
            if axis.key in seen:
                raise _At(f"{axis.key} appears twice", axis.column)
            seen.add(axis.key)
        return Grid(text, terms)
    except _At as error:
        raise _shown(text, *error.args) from error


def values_of(key: str, text: str) -> list[str]:
    """The values of one field as a grid spells them; [] where the text is malformed."""
    values = []
    try:
        for term in _split(text, 0, len(text), ";"):
            for start, stop in _split(text, *term, "&"):
                name, equals, _ = text[start:stop].partition("=")
                if name.strip() == key:
                    values += [text[a:b].strip("\"'") for a, b in _split(text, start + len(name + equals), stop, ",")]
    except _At:
        return []
    return [value for value in values if value]


def _shown(text: str, message: str, position: int) -> SweepError:
    first, *more = message.split("\n", 1)
    return SweepError(
        "\n".join([f"--grid, column {position + 1}: {first}", f"  {text}", f"  {' ' * position}^", *more])
    )


def _split(text: str, start: int, stop: int, separator: str) -> Iterator[tuple[int, int]]:
    """The parts of text[start:stop] between separators outside brackets and quotes, as positions, stripped."""
    opened: list[int] = []
    quote, first = None, start
    for at in range(start, stop):
        character = text[at]
        if quote is not None:
            quote = None if character == text[quote] and text[at - 1] != "\\" else quote
        elif character in "\"'" and text[:at].rstrip()[-1:] in ("", *"=,;&(["):  # not the one in don't
            quote = at
        elif character in "([":
            opened.append(at)
        elif character in ")]":
            if not opened or text[opened.pop()] + character not in ("()", "[]"):
                raise _At(f"{character!r} closes no bracket", at)
        elif character == separator and not opened:
            yield _stripped(text, first, at)
            first = at + 1
    if quote is not None:
        raise _At("the quote is not closed", quote)
    if opened:
        raise _At("the bracket is not closed", opened[-1])
    yield _stripped(text, first, stop)


def _stripped(text: str, start: int, stop: int) -> tuple[int, int]:
    part = text[start:stop]
    if not part.strip():
        return stop, stop
    return start + len(part) - len(part.lstrip()), stop - len(part) + len(part.rstrip())


def _filled(start: int, stop: int, what: str = "a value") -> tuple[int, int]:
    if start == stop:
        raise _At(f"expected {what}", start)
    return start, stop


def _axis(text: str, start: int, stop: int, known: Mapping[str, ConfigField]) -> Axis:
    equals = text.find("=", start, stop)
    if equals < 0:
        raise _At(f"expected key=values, got {text[start:stop]!r}", start)
    key = text[start:equals].strip()
    try:
        field = _field(key, known)
    except ValueError as error:
        raise _At(str(error), start) from error
    pieces = [_filled(*piece) for piece in _split(text, equals + 1, stop, ",")]
    if any(re.match(r"~\w+\(" if field.kind is str else "~", text[first:last]) for first, last in pieces):
        if len(pieces) > 1:
            raise _At("random values cannot be listed with others", pieces[0][0])
        return Axis(key, _draws(text, *pieces[0], field), start)
    values = [value for piece in pieces for value in _item(text, *piece, field)]
    seen: set[Any] = set()
    for value in values:
        if value in seen or seen.add(value):
            raise _At(f"{key} takes {value!r} twice", pieces[0][0])
    return Axis(key, tuple(values), start)


def _item(text: str, start: int, stop: int, field: ConfigField) -> Sequence[Any]:
    """One value, or the values of a range."""
    bounds = re.fullmatch(r"(-?\d+):(-?\d+)(?::(-?\d+))?", text[start:stop])
    if not bounds or field.kind not in (int, float):
        return [_literal(text, start, stop, field)]
    first, last, by = (int(b) if b else 1 for b in bounds.groups())
    if by == 0 or not range(first, last, by):
        raise _At(f"the range {bounds[0]} is empty; a:b runs from a to b - 1, a:b:c in steps of c", start)
    if len(range(first, last, by)) > _MOST:
        raise _At(f"the range {bounds[0]} has more than {_MOST:,} values", start)
    return [field.kind(value) for value in range(first, last, by)]


def _draws(text: str, start: int, stop: int, field: ConfigField) -> RandomValues:
    form = re.fullmatch(r"~(\w+)\((.*)\)", text[start:stop])
    if not form or form[1] not in DISTRIBUTIONS:
        raise _At("random values are " + " or ".join(f"~{name}(low,high,count)" for name in DISTRIBUTIONS), start)
    if field.kind not in (int, float):
        raise _At(f"only numbers can be drawn; the field takes {_WANTS[field.kind]}", start)
    inner = start + len(form[1]) + 2
    pieces = [_filled(*piece) for piece in _split(text, inner, stop - 1, ",")]
    if len(pieces) not in (2, 3):
        raise _At(f"~{form[1]} takes low, high and a count, got {len(pieces)} values", inner)
    low, high = (_literal(text, *piece, field) for piece in pieces[:2])
    count = _literal(text, *pieces[2], ConfigField(int, 0)) if len(pieces) == 3 else None
    if not low < high:
        raise _At(f"low must be less than high, got {low} and {high}", inner)
    if form[1] == "log" and low <= 0:
        raise _At(f"~log needs a low above 0, got {low}", inner)
    if count is not None and not 1 <= count <= _MOST:
        raise _At(f"the count must be at least 1 and at most {_MOST:,}, got {shown(count)}", pieces[2][0])
    return RandomValues(form[1], low, high, count, field.kind is int, start)


# -- members --------------------------------------------------------------------------------------------------------


def expand(grid: Grid, seed: int) -> list[dict[str, Any]]:
    """The overrides of every member, the last term varying fastest; equal random values count once.

    Raises:
      SweepError: a zip of axes of unequal lengths, or random values without a count.
    """
    return product(*(zipped(grid, term, seed) for term in grid.terms))


def zipped(grid: Grid, term: Sequence[Axis], seed: int) -> list[dict[str, Any]]:
    """The overrides of one term, its axes taken side by side."""
    columns = [_values(grid, axis, seed) for axis in term]
    if len({len(c) for c in columns}) > 1:
        lengths = ", ".join(f"{axis.key} {len(c)}" for axis, c in zip(term, columns, strict=True))
        raise _shown(grid.text, f"& needs the same number of values of each field, got {lengths}", term[0].column)
    rows = [dict(zip((axis.key for axis in term), row, strict=True)) for row in zip(*columns, strict=True)]
    return list({tuple(row.values()): row for row in reversed(rows)}.values())[::-1]


def product(*lists: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All combinations of one dict from each list, merged.

    Raises:
      SweepError: two lists set the same field, or there are too many combinations.
    """
    if (count := math.prod(map(len, lists))) > _MOST:
        raise SweepError(f"--grid: {count:,} members, {_MOST:,} are the most; --search=optuna tries some of them")
    keys = [{key for overrides in part for key in overrides} for part in lists]
    for a, b in itertools.combinations(keys, 2):
        if a & b:
            raise SweepError(f"{', '.join(sorted(a & b))}: swept twice, by sweep() of the config and by --grid")
    return [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*lists)]


def _values(grid: Grid, axis: Axis, seed: int) -> Sequence[Any]:
    draws = axis.values
    if not isinstance(draws, RandomValues):
        return draws
    if draws.count is None:
        raise _shown(grid.text, f"~{draws.distribution}(low,high,count) needs a count", draws.column)
    uniform = np.random.default_rng((seed, zlib.crc32(axis.key.encode()))).uniform(size=draws.count)
    half = 0.5 if draws.whole else 0.0  # every whole number is the middle of an interval of length 1
    low, high = draws.low - half, draws.high + half
    if draws.distribution == "log":
        drawn = [low * (high / low) ** u for u in uniform]
    else:
        drawn = [low + (high - low) * u for u in uniform]
    return [settled(value, draws) for value in drawn]


def settled(value: float, draws: RandomValues) -> float:
    """A random value with few digits, within its bounds."""
    rounded = round(value) if draws.whole else float(f"{value:.{_SHOWN_DIGITS}g}")
    return min(max(rounded, draws.low), draws.high)
