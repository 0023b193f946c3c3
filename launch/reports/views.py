"""What a report draws: curves of training, and a sweep's results over what was swept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from launch.reports import charts, summary, tables
from launch.reports.charts import COLOURS, Axis, Line, short
from launch.reports.runs import Curve, Study
from launch.reports.summary import Choice, Setting

_SEEDS_SHOWN = 24  # lines of seeds, beyond which only means are drawn
_AXES = 7
_ACROSS = 5  # settings from which on parallel coordinates say more than a table


@dataclass(frozen=True)
class Panel:
    """A drawing with a title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Curves:
    """Panels, one a metric, and what their colours mean: (class, label)."""

    panels: Sequence[Panel]
    legend: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map; `strength` in [0, 1] is how strong its colour is."""

    text: str
    strength: float
    tip: str
    best: bool


@dataclass(frozen=True)
class Heat:
    """A heat map: rows of cells, with the names and values of both swept keys."""

    row_name: str
    column_name: str
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    cells: Sequence[Sequence[HeatCell | None]]


@dataclass(frozen=True)
class View:
    """One metric over what was swept: a drawing or a heat map, and a sentence on how to read it.

    `small` drawings stand side by side, of the others the page shows one at a time.
    """

    metric: str
    note: str
    svg: Markup | None = None
    heat: Heat | None = None
    small: bool = False


# -- curves ---------------------------------------------------------------------------------------------------------


def curves(study: Study, found: Sequence[Setting], keys: Sequence[str], metrics: Sequence[str], choice: Choice):
    """A panel for every metric that was logged at two steps or more.

    With several seeds the mean is drawn over the steps that all of them have, and the seeds thinly. Where there are
    more settings than colours, those that are best by the first of `metrics` are coloured and the others grey.
    """
    coloured = _coloured(found, metrics, choice)
    styles = {at: f"c{place}" for place, at in enumerate(coloured)}
    logged = dict.fromkeys(name for setting in found for run in setting.members for name in run.curves)
    panels = []
    for name in sorted(logged, key=_panel_order):
        lines = []
        for at, setting in enumerate(found):
            lines += _lines(setting, name, tables.label(setting, keys), styles.get(at, "rest"), len(found))
        lines.sort(key=lambda line: (line.style != "rest", "seed" not in line.style))
        if any(len(line.x) > 1 for line in lines):
            svg = charts.panel(lines, label=f"{name} over steps", x_label="step", may_log=_may_log(name, choice))
            panels.append(Panel(name, svg))
    legend = [(styles[at], tables.label(found[at], keys)) for at in coloured]
    if len(coloured) < len(found):
        legend.append(("rest", f"the other {len(found) - len(coloured)}"))
    return Curves(panels, legend if len(found) > 1 else [])


def _coloured(found: Sequence[Setting], metrics: Sequence[str], choice: Choice) -> list[int]:
    if len(found) <= COLOURS or not metrics:
        return list(range(len(found)))[:COLOURS]
    sign = summary.direction(metrics[0], choice) or 1
    means = [sign * summary.spread(setting.finished, metrics[0]).mean for setting in found]
    order = sorted(range(len(found)), key=lambda at: -math.inf if math.isnan(means[at]) else means[at], reverse=True)
    return sorted(order[:COLOURS])


def _lines(setting: Setting, name: str, label: str, style: str, settings: int) -> list[Line]:
    """The mean over seeds, and each of them thinly; one run by itself as a line."""
    runs = [run for run in setting.members if name in run.curves]
    together = _mean([run.curves[name] for run in runs])
    many = settings * len(runs) > _SEEDS_SHOWN
    thin_style = style if together is None else f"{style} seed"
    lines = []
    for run in runs:
        if together is None or not many:
            x, y = charts.thin(run.curves[name].steps, run.curves[name].values)
            lines.append(Line(f"{label}: {run.name}" if label != run.name else label, thin_style, x, y))
    if together is not None:
        x, y = charts.thin(together.steps, together.values)
        lines.append(Line(f"{label}: mean of {len(runs)}", style, x, y))
    return lines


def _mean(found: Sequence[Curve]) -> Curve | None:
    """The mean over the steps that all curves have; None for fewer than two curves or steps."""
    if len(found) < 2:
        return None
    # of a step that was logged twice the last value counts
    values = [dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True)) for curve in found]
    common = sorted(set.intersection(*(set(steps) for steps in values)))
    if len(common) < 2:
        return None
    return Curve(np.asarray(common), np.asarray([np.mean([steps[at] for steps in values]) for at in common]))


def _may_log(name: str, choice: Choice) -> bool:
    return summary.direction(name, choice) < 0 or "norm" in name


def _panel_order(name: str) -> tuple[bool, int]:
    """What was measured before what was trained on, the speed last."""
    parts = name.split("/")
    return "per_second" in name, 0 if "test" in parts else 1 if "val" in parts else 2


# -- sweeps ---------------------------------------------------------------------------------------------------------


def sweeps(found: Sequence[Setting], keys: Sequence[str], metrics: Sequence[str], choice: Choice) -> list[View]:
    """How results depend on what was swept, a view a metric.

    One number: a line over its values. Two keys, of whose pairs half or more were run: a heat map. Other numbers of
    keys, or pairs drawn at random: parallel coordinates. Nothing where it would say no more than the table.
    """
    found = [setting for setting in found if setting.finished]
    if len(keys) == 1:
        known = [setting for setting in found if summary.is_number(setting.values[keys[0]])]
        return [_response(known, keys[0], metric) for metric in metrics] if len(known) > 2 else []
    if len(keys) < 2 or len(found) < 3:
        return []
    if len(keys) == 2:
        across, down = (summary.levels(found, key) for key in keys)
        if min(len(across), len(down)) > 1 and len(found) >= len(across) * len(down) / 2:
            return [_heat(found, keys, metric, choice) for metric in metrics]
    return [_parallel(found, keys[:_AXES], metric, choice) for metric in metrics] if len(found) >= _ACROSS else []


def _response(found: Sequence[Setting], key: str, metric: str) -> View:
    spreads = [summary.spread(setting.finished, metric) for setting in found]
    svg = charts.response(
        [float(setting.values[key]) for setting in found],
        [cell.mean for cell in spreads],
        [cell.std for cell in spreads],
        label=f"{metric} over {key}",
        x_label=key,
    )
    return View(metric, "Means; bars are ± one standard deviation over seeds.", svg, small=True)


def _heat(found: Sequence[Setting], keys: Sequence[str], metric: str, choice: Choice) -> View:
    """The key with more values goes down: pages are longer than wide."""
    first, second = sorted(keys, key=lambda key: -len(summary.levels(found, key)))
    rows, columns = summary.levels(found, first), summary.levels(found, second)
    cells = tables.spread_cells(found, metric, choice)
    shares = _shares([cell.value for cell in cells], summary.direction(metric, choice))
    grid: list[list[HeatCell | None]] = [[None] * len(columns) for _ in rows]
    for setting, cell, share in zip(found, cells, shares, strict=True):
        at = rows.index(setting.values[first]), columns.index(setting.values[second])
        strength = 0.0 if math.isnan(share) else share
        grid[at[0]][at[1]] = HeatCell(cell.text, strength, cell.tip, cell.style == "best")
    names = tables.names_of(keys)
    heat = Heat(names[first], names[second], [*map(short, rows)], [*map(short, columns)], grid)
    return View(metric, _reading(metric, choice), heat=heat)


def _parallel(found: Sequence[Setting], keys: Sequence[str], metric: str, choice: Choice) -> View:
    spreads = [summary.spread(setting.finished, metric) for setting in found]
    sign = summary.direction(metric, choice)
    names = tables.names_of(keys)
    axes = [Axis(names[key], [setting.values[key] for setting in found]) for key in keys]
    means = [cell.mean for cell in spreads]
    known = [value for value in means if math.isfinite(value)]
    filled = [value if math.isfinite(value) else min(known, default=0.0) for value in means]
    labels = [f"{tables.label(setting, keys)}: {mean:.4g}" for setting, mean in zip(found, means, strict=True)]
    svg = charts.parallel(
        [*axes, Axis(metric, filled, even=False)],
        labels,
        label=f"{metric} over {', '.join(keys)}",
        best=summary.best(spreads, sign),
        goodness=_shares(means, sign),
    )
    return View(metric, "A line is a setting. " + _reading(metric, choice), svg)


def _shares(values: Sequence[float], sign: int) -> list[float]:
    """From 0 for the worst to 1 for the best value (the highest where neither side is better), NaN where it is NaN."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    width = high - low or 1.0
    shares = [(value - low) / width if math.isfinite(value) else math.nan for value in values]
    return [1 - share if sign < 0 else share for share in shares]


def _reading(metric: str, choice: Choice) -> str:
    strongest = {1: "the highest", -1: "the lowest", 0: "the highest"}[summary.direction(metric, choice)]
    return f"The stronger the colour, the closer to {strongest} value."
