"""Values over seeds as mean ± standard deviation, and how numbers and values of configs are written."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import numpy as np

_EXTRA = 3  # decimals that are added at most to show a difference or a deviation
_SIGNIFICANT = 12  # digits beyond which two numbers count as the same
_LONG = 32  # characters of a value that are shown
_PATH = 24  # characters of a path that are shown in full


@dataclass(frozen=True)
class Spread:
    """The values of a metric over seeds: mean and sample standard deviation of those that are finite.

    Attributes:
      mean, std: NaN where there are too few values: none for the mean, fewer than two for the deviation.
      count: how many values there are.
      total: how many runs were asked; the others have no value or one that is not finite.
      values: all of them, in the order of the runs, NaN where missing.
    """

    mean: float
    std: float
    count: int
    total: int
    values: tuple[float, ...] = field(default=(), compare=False)

    @property
    def complete(self) -> bool:
        """Whether every run has a value."""
        return 0 < self.count == self.total


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and standard deviation; None and NaN are missing values, counted but not averaged."""
    listed = tuple(math.nan if value is None else float(value) for value in values)
    finite = [value for value in listed if math.isfinite(value)]
    mean = float(np.mean(finite)) if finite else math.nan
    std = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return Spread(mean, std, len(finite), len(listed), listed)


def best(spreads: Sequence[Spread], sign: int) -> set[int]:
    """The places of the best mean, several if they are equal; empty if there is nothing to choose from.

    A mean over some of the runs only is not compared with means over all of them.

    Args:
      spreads: of one metric.
      sign: 1 if higher is better, -1 if lower is, 0 if neither.
    """
    known = {at: sign * cell.mean for at, cell in enumerate(spreads) if cell.complete and math.isfinite(cell.mean)}
    if not sign or len(known) < 2 or len(set(known.values())) == 1:
        return set()
    return {at for at, value in known.items() if value == max(known.values())}


class NumberText(Protocol):
    """Prints the numbers of a column alike."""

    def __call__(self, value: float, /) -> str: ...


def spread_text(spread: Spread, text: NumberText) -> str:
    """ "0.612 ± 0.034"; with missing values "0.612 ± 0.034 (4 of 5)", "none (0 of 5)", or "nan" of one run."""
    if not spread.count:
        return "nan" if spread.total == 1 else f"none (0 of {spread.total})"
    partial = f" ({spread.count} of {spread.total})" if spread.count < spread.total else ""
    return text(spread.mean) + ("" if math.isnan(spread.std) else f" ± {text(spread.std)}") + partial


def decimals(means: Sequence[float], stds: Sequence[float] = (), digits: int | None = None) -> NumberText:
    """How to print the numbers of a column alike.

    Three digits of the largest value, whole numbers as such; more where the deviations, or most differences between
    the values, would not show: 0.9991 ± 0.0002, not 0.999 ± 0.000.

    Args:
      means: of the column; NaN counts for nothing.
      stds: the deviations beside them.
      digits: decimals to begin with, instead of what the largest value asks for.
    """
    finite = [value for value in means if math.isfinite(value)]
    spreads = [value for value in stds if math.isfinite(value)]
    largest = max(map(abs, finite), default=0.0)
    if digits is None and largest and not 1e-3 <= largest < 1e6:
        whole = largest < 1e9 and all(float(value).is_integer() for value in (*finite, *spreads))
        return _printed("0" if whole and largest >= 1 else ".3g")
    if digits is None:
        whole = all(float(value).is_integer() for value in (*finite, *spreads))
        digits = 0 if whole else max(0, 3 - math.ceil(math.log10(largest)))
    least = min((std for std in spreads if std > 0), default=0.0)
    if least:
        digits = max(digits, min(-math.floor(math.log10(least)), digits + _EXTRA))
    distinct = {f"{value:.{_SIGNIFICANT}g}" for value in finite}
    needed = next((n for n in range(digits, digits + _EXTRA) if _told_apart(finite, n, len(distinct))), digits)
    return _printed(f".{digits if spreads else needed}f")


def _told_apart(values: Sequence[float], digits: int, distinct: int) -> bool:
    """Whether more than half of the distinct values look different with so many decimals."""
    return distinct < 2 or 2 * len({f"{value:.{digits}f}" for value in values}) > distinct


def _printed(style: str) -> NumberText:
    if style == "0":
        style = ".0f"
    return lambda value: "nan" if math.isnan(value) else f"{value:{style}}"


# -- values of configs -----------------------------------------------------------------------------------------------


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
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_compact, value))})"
    return repr(value) if isinstance(value, str) else str(value)


def cut(value: Any) -> str:
    """A value in at most 32 characters."""
    text = short(value)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


def exact(value: Any) -> str:
    """A value of a config as text that tells 1, 1.0, True and "1" apart."""
    return json.dumps(value, sort_keys=True, default=str)


def config_text(value: Any) -> str:
    """A value of a config in full."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
