"""Drawings as SVG text: lines over steps, a metric over one swept number, parallel coordinates.

Colours and type are the page's (classes c0, c1, … and `page.css`), so that a drawing follows its light and dark side.
All text is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from markupsafe import Markup

from launch.reports.numbers import is_number, short

COLOURS = 7  # classes c0 … c6; what comes after is "rest"
POINTS = 150  # of a line, at most: more than a panel has room for
_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34
_LEVELS = 6  # different numbers that an upright axis puts in equal steps
_DECADES = 30.0  # how far apart the ends of positive values are that a logarithmic axis suits


@dataclass(frozen=True)
class ChartLine:
    """A line of a panel: x and y (n,) each, broken where y is NaN.

    Attributes:
      label: shown where the pointer rests on it.
      style: CSS classes: "c0", "c0 seed", "rest".
    """

    label: str
    style: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class ChartScale:
    """From values to places, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def scale(values: Sequence[float], start: float, end: float, *, may_log: bool, margin: float = 0.04) -> ChartScale:
    """A scale that holds all finite values.

    Args:
      values: NaN is ignored.
      start, end: the places of the axis' ends.
      may_log: whether it may be logarithmic: it is if the values are positive and span more than a factor of 30.
      margin: share that is left free on both sides.
    """
    finite = np.asarray([v for v in values if math.isfinite(v)], np.float64)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if may_log and low > 0 and high / low > _DECADES:
        spare = (high / low) ** margin
        return ChartScale(low / spare, high * spare, start, end, log=True)
    spare = (high - low) * margin if low < high else abs(low) * 0.1 or 1.0
    return ChartScale(float(low - spare), float(high + spare), start, end)


def ticks(axis: ChartScale, about: int = 5) -> list[float]:
    """Round values within a scale."""
    if axis.log:
        exponents = range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
        decades = [10.0**e for e in exponents]
        if len(decades) >= 2:
            return decades[:: -(-len(decades) // (about + 1))]
        return [m * 10.0**e for e in range(-300, 300) for m in (1, 2, 5) if axis.low <= m * 10.0**e <= axis.high][:6]
    rough = (axis.high - axis.low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    width = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first = math.ceil(axis.low / width - 1e-9)
    last = math.floor(axis.high / width + 1e-9)
    return [float(f"{at * width:.10g}") for at in range(first, last + 1)]


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Thin a long line to means over stretches of equal length (to one point), and its last point."""
    if len(x) <= points:
        return x, y
    sizes = np.full(points - 1, (len(x) - 1) // (points - 1))
    sizes[: (len(x) - 1) % (points - 1)] += 1
    starts = np.cumsum(sizes) - sizes
    means = [np.add.reduceat(a[:-1], starts) / sizes for a in (x, y)]
    return np.append(means[0], x[-1]), np.append(means[1], y[-1])


def panel(lines: Sequence[ChartLine], *, label: str, x_label: str, may_log: bool = False) -> Markup:
    """Lines over a common x.

    Args:
      lines: drawn in this order, the last one on top.
      label: what the drawing shows, for those who cannot see it.
      x_label: of the horizontal axis.
      may_log: whether the vertical axis may be logarithmic, see `scale`.
    """
    xs = scale([v for line in lines for v in line.x], _LEFT, _WIDTH - _RIGHT, may_log=False, margin=0.0)
    ys = scale([v for line in lines for v in line.y], _HEIGHT - _BOTTOM, _TOP, may_log=may_log)
    parts = [_grid(xs, ys, x_label)]
    for line in lines:
        path = _path([(xs(x), ys(y) if math.isfinite(y) else math.nan) for x, y in zip(line.x, line.y, strict=True)])
        parts.append(
            Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(line.style, path, line.label)
        )
    return _svg(_WIDTH, _HEIGHT, label, parts)


def response(values: Sequence[float], means: Sequence[float], stds: Sequence[float], *, label: str, x_label: str):
    """A metric over one swept number: means with bars of ± std, as SVG.

    Args:
      values: of the number, increasing; a logarithmic axis where they span much, equal steps if 0 is among such.
      means, stds: (n,) each; NaN leaves out the point, or its bar.
      label, x_label: see `panel`.
    """
    ends = [m + side * (0 if math.isnan(s) else s) for m, s in zip(means, stds, strict=True) for side in (-1, 1)]
    positive = [value for value in values if value > 0]
    apart = min(values) == 0 and positive and max(positive) / min(positive) > _DECADES
    at = {value: place for place, value in enumerate(values)} if apart else {value: value for value in values}
    xs = scale(list(at.values()), _LEFT, _WIDTH - _RIGHT, may_log=not apart, margin=0.06)
    ys = scale(ends, _HEIGHT - _BOTTOM, _TOP, may_log=False, margin=0.08)
    marks = {value: xs(place) for value, place in at.items()} if apart or len(values) <= 6 else None
    parts = [_grid(xs, ys, x_label, marks)]
    places = [(xs(at[v]), ys(m) if math.isfinite(m) else math.nan) for v, m in zip(values, means, strict=True)]
    parts.append(Markup('<path class="line c0" d="{}"/>').format(_path(places)))
    for (x, y), value, mean, std in zip(places, values, means, stds, strict=True):
        if math.isnan(y):
            continue
        said = f"{x_label} = {short(value)}: {mean:.4g}" + ("" if math.isnan(std) else f" ± {std:.2g}")
        bar = "" if math.isnan(std) else f"M{x:.1f} {ys(mean - std):.1f}V{ys(mean + std):.1f}"
        dot = '<g class="c0"><path class="bar" d="{}"/><circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3.5"/>'
        parts.append(Markup(dot + "<title>{}</title></g>").format(bar, x, y, said))
    return _svg(_WIDTH, _HEIGHT, label, parts)


@dataclass(frozen=True)
class ChartAxis:
    """An upright axis of parallel coordinates, with one value per line.

    Attributes:
      title: above it.
      values: numbers, texts or None.
      even: whether few different numbers may be put in equal steps.
    """

    title: str
    values: Sequence[Any]
    even: bool = True


def parallel(
    axes: Sequence[ChartAxis], labels: Sequence[str], *, label: str, best: set[int], goodness: Sequence[float]
):
    """Settings as lines across an axis per swept key and one for the metric, as SVG.

    Args:
      axes: the last one is the metric; an axis of numbers alone is a scale, any other has a place per value.
      labels: of the lines, shown where the pointer rests.
      label: of the whole.
      best: the lines to stress.
      goodness: (n,) in [0, 1], how strongly a line is drawn; lines with NaN are left out.
    """
    gap, height = 150, 300
    top, bottom = 40, height - 22
    width = 2 * 70 + gap * (len(axes) - 1)
    uprights: list[tuple[int, AxisPlace, list[Any]]] = [
        (70 + gap * at, *_upright(axis, bottom, top)) for at, axis in enumerate(axes)
    ]
    rules = [Markup('<path class="rule" d="M{} {}V{}"/>').format(x, top, bottom) for x, *_ in uprights]
    lines, marks = [], []
    order = sorted((at for at in range(len(labels)) if math.isfinite(goodness[at])), key=lambda at: goodness[at])
    for at in order:
        path = _path([(x, place(axis.values[at])) for axis, (x, place, _) in zip(axes, uprights, strict=True)])
        style = "line best" if at in best else "line across"
        shown = Markup('<path class="{}" style="stroke-opacity:{:.2f}" d="{}"><title>{}</title></path>')
        lines.append(shown.format(style, 1 if at in best else 0.12 + 0.6 * goodness[at], path, labels[at]))
    for axis, (x, place, values) in zip(axes, uprights, strict=True):
        name = Markup('<text class="axis" x="{}" y="18" text-anchor="middle">{}<title>{}</title></text>')
        marks.append(name.format(x, _cut(axis.title, 22), axis.title))
        side, anchor = (7, "start") if axis is axes[-1] else (-7, "end")
        mark = Markup('<text class="over" x="{}" y="{:.1f}" text-anchor="{}">{}</text>')
        marks += [mark.format(x + side, place(value) + 3.5, anchor, _cut(short(value), 12)) for value in values]
    return _svg(width, height, label, [*rules, *lines, *marks])


class AxisPlace(Protocol):
    """Where a value stands on an axis."""

    def __call__(self, value: Any, /) -> float: ...


def _upright(axis: ChartAxis, start: float, end: float) -> tuple[AxisPlace, list[Any]]:
    """Where a value stands on an upright axis, and which values to write beside it."""
    values = axis.values
    numbers = all(map(is_number, values))
    levels = {short(value): value for value in (sorted(set(values)) if numbers else values)}
    if numbers and (not axis.even or len(levels) > _LEVELS):
        place = scale([float(value) for value in values], start, end, may_log=axis.even)
        return place, ticks(place, 5)
    step = (end - start) / max(1, len(levels) - 1)
    names = list(levels)
    return (lambda value: start + step * names.index(short(value))), list(levels.values())


def _grid(xs: ChartScale, ys: ChartScale, x_label: str, marks: Mapping[float, float] | None = None) -> Markup:
    """Ticks of both axes; `marks`, value -> place, stands in for the horizontal one's."""
    parts = []
    for value in ticks(ys):
        y = ys(value)
        parts.append(Markup('<path class="rule" d="M{} {:.1f}H{}"/>').format(_LEFT, y, _WIDTH - _RIGHT))
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 3.5, short(value))
        )
    for value, x in ({value: xs(value) for value in ticks(xs)} if marks is None else marks).items():
        anchor = "end" if x > _WIDTH - _RIGHT - 8 else "middle"
        mark = Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>')
        parts.append(mark.format(x, _HEIGHT - _BOTTOM + 14, anchor, short(value)))
    name = Markup('<text class="name" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts.append(name.format((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, _cut(x_label, 48)))
    return Markup("").join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A path through the points, broken where y is NaN; a point by itself becomes a short stroke."""
    parts, pen = [], False
    for at, (x, y) in enumerate(points):
        if math.isnan(y):
            pen = False
            continue
        alone = not pen and (at + 1 == len(points) or math.isnan(points[at + 1][1]))
        parts.append(f"{'L' if pen else 'M'}{x:.1f} {y:.1f}" + ("h.1" if alone else ""))
        pen = True
    return "".join(parts)


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
