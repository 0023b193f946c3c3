"""Values over seeds as mean ± standard deviation, and how numbers and values of configs are written."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

_EXTRA = 3  # decimals that are added at most to show a difference or a deviation
_SIGNIFICANT = 12  # digits beyond which two numbers count as the same
NumberText = Callable[[float], str]  # prints the numbers of a column alike
_LONG, _PATH = 32, 24  # characters of a value, of a path, that are shown


@dataclass(frozen=True)
class Spread:
    """The values of a metric over seeds."""

    mean: float  # of the finite values; NaN if there are none
    std: float  # sample deviation; NaN for fewer than two
    count: int  # how many values are finite
    total: int  # how many runs there are; the others have no value or one that is not finite
    values: tuple[float, ...] = field(default=(), compare=False)  # one per run, NaN where missing

    @property
    def complete(self) -> bool:
        """Whether every run has a value."""
        return 0 < self.count == self.total


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and standard deviation; None and NaN are missing values, counted but not averaged."""
    numbers = tuple(math.nan if value is None else float(value) for value in values)
    finite = [value for value in numbers if math.isfinite(value)]
    mean = float(np.mean(finite)) if finite else math.nan
    std = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return Spread(mean, std, len(finite), len(numbers), numbers)


def best(spreads: Sequence[Spread], sign: int) -> set[int]:
    """The places of the best mean, several if equal; empty if there is nothing to choose from.

    A mean over some of the runs only is not compared with means over all of them. See `Metric.sign`.
    """
    known = {at: sign * cell.mean for at, cell in enumerate(spreads) if cell.complete}
    if not sign or len(set(known.values())) < 2:
        return set()
    return {at for at, value in known.items() if value == max(known.values())}


def spread_text(spread: Spread, text: NumberText) -> str:
    """ "0.612 ± 0.034"; with missing values "0.612 ± 0.034 (4 of 5)", "none (0 of 5)", or "nan" of one run."""
    if not spread.count:
        return "nan" if spread.total == 1 else f"none (0 of {spread.total})"
    partial = f" ({spread.count} of {spread.total})" if spread.count < spread.total else ""
    return text(spread.mean) + ("" if math.isnan(spread.std) else f" ± {text(spread.std)}") + partial


def decimals(means: Sequence[float], stds: Sequence[float] = (), digits: int | None = None) -> NumberText:
    """How to print the numbers of a column alike.

    Three digits of the largest value (or so many decimals as `digits`), whole numbers as such; more where deviations,
    or most differences between values, would not show: 0.9991 ± 0.0002, not 0.999 ± 0.000. NaN is ignored.
    """
    finite = [value for value in means if math.isfinite(value)]
    spreads = [value for value in stds if math.isfinite(value)]
    largest = max(map(abs, finite), default=0.0)
    if digits is None:
        whole = all(float(value).is_integer() for value in (*finite, *spreads))
        if largest and not 1e-3 <= largest < 1e6:
            return lambda value: f"{value:{'.0f' if whole and 1 <= largest < 1e9 else '.3g'}}"
        digits = 0 if whole else max(0, 3 - math.ceil(math.log10(largest or 1)))
    least = min((std for std in spreads if std > 0), default=0.0)
    if least:
        digits = max(digits, min(-math.floor(math.log10(least)), digits + _EXTRA))
    if not spreads:
        distinct = len({f"{value:.{_SIGNIFICANT}g}" for value in finite})
        shown = {n: len({f"{value:.{n}f}" for value in finite}) for n in range(digits, digits + _EXTRA)}
        digits = next((n for n, different in shown.items() if distinct < 2 or 2 * different > distinct), digits)
    return lambda value: f"{value:.{digits}f}"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any) -> str:
    """A value as it stands on an axis or in a cell: 0.5, 20k, 1e-05, a text as it is, of a long path its end."""
    if value is None:
        return "–"
    if isinstance(value, str) and "/" in value and len(value) > _PATH:
        return "…/" + value.rstrip("/").rpartition("/")[2]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) and value else _compact(value)
    if value and float(value).is_integer() and 10_000 <= abs(value) < 1e9:
        return f"{value / 1e6:g}M" if value % 1e5 == 0 and abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.4g}"


def _compact(value: Any) -> str:
    return f"({', '.join(map(_compact, value))})" if isinstance(value, list | tuple) else repr(value)


def cut(text: str, length: int = _LONG) -> str:
    """A text cut to at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def exact(value: Any) -> str:
    """A value of a config as text that tells 1, 1.0, True and "1" apart."""
    return json.dumps(value, sort_keys=True, default=str)


def config_text(value: Any) -> str:
    """A value of a config in full."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
