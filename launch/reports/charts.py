"""Drawings as SVG text: lines over steps, a metric over one swept number, parallel coordinates.

Colours and type are the page's (classes c0, c1, … and `page.css`), so that a drawing follows its light and dark side.
All text is escaped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from launch.reports.numbers import cut, is_number, short

COLOURS = 7  # classes c0 … c6; further lines are "rest"
POINTS = 150  # of a line, at most: more than a panel has room for
_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34
_LEVELS = 6  # different numbers that an upright axis puts in equal steps
_DECADES = 30.0  # ratio of largest to smallest above which positive values get a logarithmic axis


@dataclass(frozen=True)
class ChartLine:
    """A line of a panel."""

    label: str  # shown where the pointer rests on it
    style: str  # CSS classes: "line c0", "line c0 seed", "line rest"
    x: Sequence[float] | np.ndarray  # (n,)
    y: Sequence[float] | np.ndarray  # (n,), NaN breaks the line


@dataclass(frozen=True)
class ChartScale:
    """From values to places, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def scale(values: Sequence[float], start: float, end: float, *, may_log: bool, margin: float = 0.04) -> ChartScale:
    """A scale from `start` to `end` that holds all finite values and leaves a margin, a share of it, on both sides.

    With `may_log` it is logarithmic where the values are positive and span more than a factor of 30.
    """
    finite = [float(v) for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if may_log and low > 0 and high / low > _DECADES:
        spare = (high / low) ** margin
        return ChartScale(low / spare, high * spare, start, end, log=True)
    spare = (high - low) * margin if low < high else abs(low) * 0.1 or 1.0
    return ChartScale(low - spare, high + spare, start, end)


def ticks(axis: ChartScale, about: int = 5) -> list[float]:
    """Round values within a scale."""
    if axis.log:
        exponents = range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
        if len(exponents) >= 2:
            return [10.0**e for e in exponents[:: -(-len(exponents) // (about + 1))]]
        return [m * 10.0**e for e in range(-300, 300) for m in (1, 2, 5) if axis.low <= m * 10.0**e <= axis.high][:6]
    rough = (axis.high - axis.low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    width = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.ceil(axis.low / width - 1e-9), math.floor(axis.high / width + 1e-9)
    return [float(f"{at * width:.10g}") for at in range(first, last + 1)]


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Thin a long line to means over stretches of equal length (to one point), and its last point."""
    if len(x) <= points:
        return x, y
    x, y = (np.append([part.mean() for part in np.array_split(a[:-1], points - 1)], a[-1]) for a in (x, y))
    return x, y


def panel(
    lines: Sequence[ChartLine],
    *,
    label: str,
    x_label: str,
    may_log: tuple[bool, bool] = (False, False),
    margins: tuple[float, float] = (0.0, 0.04),
    marks: Mapping[str, float] | None = None,
) -> Markup:
    """Lines over a common x, the last one on top.

    Args:
      lines: to draw.
      label: what the drawing shows, for those who cannot see it; `x_label`: of the horizontal axis.
      may_log, margins: of x and y, see `scale`.
      marks: text -> x, in place of ticks.
    """
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    xs = scale([v for line in lines for v in line.x], _LEFT, right, may_log=may_log[0], margin=margins[0])
    ys = scale([v for line in lines for v in line.y], bottom, _TOP, may_log=may_log[1], margin=margins[1])
    parts = []
    for value in ticks(ys):
        parts.append(_tag("path", class_="rule", d=f"M{_LEFT} {ys(value):.1f}H{right}"))
        parts.append(_tag("text", short(value), x=_LEFT - 6, y=ys(value) + 3.5, text_anchor="end"))
    for text, x in ({short(value): value for value in ticks(xs)} if marks is None else marks).items():
        anchor = "end" if xs(x) > right - 8 else "middle"
        parts.append(_tag("text", text, x=xs(x), y=bottom + 14, text_anchor=anchor))
    middle = (_LEFT + right) / 2
    parts.append(_tag("text", cut(x_label, 48), class_="name", x=middle, y=_HEIGHT - 4, text_anchor="middle"))
    for line in lines:
        path = _path([(xs(x), ys(y)) for x, y in zip(line.x, line.y, strict=True)])
        parts.append(_tag("path", title=line.label, class_=line.style, d=path))
    return _svg(_WIDTH, _HEIGHT, label, parts)


def response(
    values: Sequence[float], means: Sequence[float], stds: Sequence[float], *, label: str, x_label: str
) -> Markup:
    """A metric over one swept number: means with bars of ± std.

    The values increase; they are (n,), as are `means` and `stds`, where NaN leaves out the point or its bar. The x axis
    is logarithmic where values span much, or has equal steps if 0 is among them.
    """
    positive = [value for value in values if value > 0]
    apart = min(values) == 0 and bool(positive) and max(positive) / min(positive) > _DECADES
    places = list(range(len(values))) if apart else values
    lines = [ChartLine(label, "line c0", places, means)]
    for x, value, mean, std in zip(places, values, means, stds, strict=True):
        said = f"{x_label} = {short(value)}: {mean:.4g}" + ("" if math.isnan(std) else f" ± {std:.2g}")
        lines += [ChartLine(said, "bar c0", [x, x], [mean - std, mean + std]), ChartLine(said, "dot c0", [x], [mean])]
    marks = dict(zip(map(short, values), places, strict=True)) if apart or len(values) <= 6 else None
    return panel(lines, label=label, x_label=x_label, may_log=(not apart, False), margins=(0.06, 0.08), marks=marks)


@dataclass(frozen=True)
class ChartAxis:
    """An upright axis of parallel coordinates."""

    title: str
    values: Sequence[Any]  # one per line: a number, a text or None
    even: bool = True  # whether few different numbers may be put in equal steps


def parallel(
    axes: Sequence[ChartAxis], labels: Sequence[str], *, label: str, best: set[int], goodness: Sequence[float]
) -> Markup:
    """Settings as lines across an axis per swept key and, last, one for the metric.

    Args:
      axes: one of numbers alone is a scale, any other has a place per value.
      labels: of the lines; `label`: of the whole.
      best: the lines to highlight.
      goodness: (n,) in [0, 1], how strongly a line is drawn; lines with NaN are left out.
    """
    gap, height, side = 150, 300, 70
    top, bottom = 40, height - 22
    uprights = [(side + gap * at, *_upright(axis, bottom, top)) for at, axis in enumerate(axes)]
    rules = [_tag("path", class_="rule", d=f"M{x} {top}V{bottom}") for x, *_ in uprights]
    lines, marks = [], []
    for at in sorted((at for at in range(len(labels)) if math.isfinite(goodness[at])), key=lambda at: goodness[at]):
        path = _path([(x, place(axis.values[at])) for axis, (x, place, _) in zip(axes, uprights, strict=True)])
        style = f"stroke-opacity:{1 if at in best else 0.12 + 0.6 * goodness[at]:.2f}"
        kind = "line best" if at in best else "line across"
        lines.append(_tag("path", title=labels[at], class_=kind, style=style, d=path))
    for axis, (x, place, written) in zip(axes, uprights, strict=True):
        name = cut(axis.title, 22)
        marks.append(_tag("text", name, title=axis.title, class_="axis", x=x, y=18, text_anchor="middle"))
        space, anchor = (7, "start") if axis is axes[-1] else (-7, "end")
        for value in written:
            y = place(value) + 3.5
            marks.append(_tag("text", cut(short(value), 12), class_="over", x=x + space, y=y, text_anchor=anchor))
    return _svg(2 * side + gap * (len(axes) - 1), height, label, [*rules, *lines, *marks])


def _upright(axis: ChartAxis, start: float, end: float) -> tuple[Callable[[Any], float], list[Any]]:
    """The place of a value on an upright axis, and the values to label it with."""
    numbers = all(map(is_number, axis.values))
    levels = {short(value): value for value in (sorted(set(axis.values)) if numbers else axis.values)}
    if numbers and (not axis.even or len(levels) > _LEVELS):
        place = scale(axis.values, start, end, may_log=axis.even)
        return place, ticks(place)
    step, names = (end - start) / max(1, len(levels) - 1), list(levels)
    return (lambda value: start + step * names.index(short(value))), list(levels.values())


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A path through the points, broken where y is NaN; a point by itself becomes a short stroke."""
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if math.isnan(y):
            pieces.append([])
        else:
            pieces[-1].append(f"{x:.1f} {y:.1f}")
    return "".join("M" + "L".join(piece) + ("h.1" if len(piece) == 1 else "") for piece in pieces if piece)


def _tag(name: str, content: str = "", title: str = "", **attributes: Any) -> Markup:
    """An element with a title that is shown on hover; everything is escaped."""
    texts = {
        key.rstrip("_").replace("_", "-"): f"{v:.1f}" if isinstance(v, float) else v for key, v in attributes.items()
    }
    listed = Markup("").join(Markup(' {}="{}"').format(*item) for item in texts.items())
    tip = Markup("<title>{}</title>").format(title) if title else ""
    return Markup("<{0}{1}>{2}{3}</{0}>").format(name, listed, content, tip)


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return _tag("svg", Markup("").join(parts), viewBox=f"0 0 {width} {height}", role="img", aria_label=label)
