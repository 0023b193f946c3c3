"""The drawings of a report: curves of training, and the results of a sweep over its settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from launch.reports import charts
from launch.reports.charts import COLOURS, ChartAxis, ChartLine
from launch.reports.metrics import Meaning, Metric
from launch.reports.numbers import best, is_number, short
from launch.reports.records import Curve
from launch.reports.settings import Setting, StudyResults, levels, names_of, spread_of
from launch.reports.tables import setting_cells

_SEEDS_SHOWN = 24  # lines of seeds, beyond which only means are drawn
_AXES = 7
_ACROSS = 5  # with fewer settings a table says more than parallel coordinates


@dataclass(frozen=True)
class Panel:
    """A drawing with a title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class CurvePanels:
    """A panel per metric, and what their colours mean: (class, label)."""

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
class HeatMap:
    """A heat map: rows of cells, with the names and values of both swept keys."""

    row_name: str
    column_name: str
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    cells: Sequence[Sequence[HeatCell | None]]


@dataclass(frozen=True)
class SweepView:
    """One metric over the swept settings: a drawing or a heat map, and a sentence on how to read it.

    `small` drawings stand side by side; of the others the page shows one at a time.
    """

    metric: str
    note: str
    svg: Markup | None = None
    heat: HeatMap | None = None
    small: bool = False


# -- curves ---------------------------------------------------------------------------------------------------------


def curves(results: StudyResults, keys: Sequence[str]) -> CurvePanels:
    """A panel for every metric that was logged at two steps or more, and the legend.

    With several seeds the mean is drawn over the steps that all of them have, and the seeds thinly. Where there are
    more settings than colours, those that are best by the first of `keys` are coloured and the others grey.
    """
    settings, meaning = results.settings, results.meaning
    coloured = _coloured(settings, keys, meaning)
    styles = {at: f"c{place}" for place, at in enumerate(coloured)}
    logged = dict.fromkeys(name for setting in settings for run in setting.members for name in run.curves)
    panels = []
    for name in sorted(logged, key=lambda name: _panel_order(name, meaning(name))):
        lines = []
        for at, setting in enumerate(settings):
            lines += _lines(setting, name, setting.label, styles.get(at, "rest"), len(settings))
        lines.sort(key=lambda line: (line.style != "rest", "seed" not in line.style))
        if any(len(line.x) > 1 for line in lines):
            may_log = (
                meaning(name).sign <= 0
            )  # what grows towards a best value, such as an accuracy, reads better linear
            svg = charts.panel(lines, label=f"{name} over steps", x_label="step", may_log=may_log)
            panels.append(Panel(name, svg))
    legend = [(styles[at], settings[at].label) for at in coloured]
    if len(coloured) < len(settings):
        legend.append(("rest", f"the other {len(settings) - len(coloured)}"))
    return CurvePanels(panels, legend if len(settings) > 1 else [])


def _coloured(settings: Sequence[Setting], keys: Sequence[str], meaning: Meaning) -> list[int]:
    if len(settings) <= COLOURS or not keys:
        return list(range(len(settings)))[:COLOURS]
    sign = meaning(keys[0]).sign or 1
    means = [sign * spread_of(setting.finished, keys[0]).mean for setting in settings]
    order = sorted(range(len(settings)), key=lambda at: -math.inf if math.isnan(means[at]) else means[at], reverse=True)
    return sorted(order[:COLOURS])


def _lines(setting: Setting, name: str, label: str, style: str, settings: int) -> list[ChartLine]:
    """The mean over seeds, and each seed thinly; one run by itself as a line."""
    runs = [run for run in setting.members if name in run.curves]
    together = _mean([run.curves[name] for run in runs])
    many = settings * len(runs) > _SEEDS_SHOWN
    thin_style = style if together is None else f"{style} seed"
    lines = []
    for run in runs:
        if together is None or not many:
            x, y = charts.thin(run.curves[name].steps, run.curves[name].values)
            lines.append(ChartLine(f"{label}: {run.name}" if label != run.name else label, thin_style, x, y))
    if together is not None:
        x, y = charts.thin(together.steps, together.values)
        lines.append(ChartLine(f"{label}: mean of {len(runs)}", style, x, y))
    return lines


def _mean(curves: Sequence[Curve]) -> Curve | None:
    """The mean over the steps that all curves have; None for fewer than two curves or steps."""
    if len(curves) < 2:
        return None
    # of a step that was logged twice the last value counts
    values = [dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True)) for curve in curves]
    common = sorted(set.intersection(*(set(steps) for steps in values)))
    if len(common) < 2:
        return None
    return Curve(np.asarray(common), np.asarray([np.mean([steps[at] for steps in values]) for at in common]))


def _panel_order(name: str, metric: Metric) -> tuple[bool, int]:
    """Evaluations before the training itself, details such as the speed last."""
    parts = name.split("/")
    return metric.level == "detail", 0 if "test" in parts else 1 if "val" in parts else 2


# -- sweeps ---------------------------------------------------------------------------------------------------------


def sweeps(results: StudyResults, keys: Sequence[str]) -> list[SweepView]:
    """How results depend on what was swept, a view per metric.

    One number: a line over its values. Two keys, of whose pairs half or more were run: a heat map. Other numbers of
    keys, or pairs drawn at random: parallel coordinates. Nothing where it would say no more than the table.
    """
    settings, swept = [setting for setting in results.settings if setting.finished], results.swept
    if len(swept) == 1:
        known = [setting for setting in settings if is_number(setting.values[swept[0]])]
        return [_response(known, swept[0], key) for key in keys] if len(known) > 2 else []
    if len(swept) < 2 or len(settings) < 3:
        return []
    described = [(key, results.meaning(key)) for key in keys]
    if len(swept) == 2:
        across, down = (levels(settings, key) for key in swept)
        if min(len(across), len(down)) > 1 and len(settings) >= len(across) * len(down) / 2:
            return [_heat(settings, swept, key, metric) for key, metric in described]
    if len(settings) < _ACROSS:
        return []
    return [_parallel(settings, swept[:_AXES], key, metric) for key, metric in described]


def _response(settings: Sequence[Setting], swept: str, key: str) -> SweepView:
    spreads = [spread_of(setting.finished, key) for setting in settings]
    svg = charts.response(
        [float(setting.values[swept]) for setting in settings],
        [cell.mean for cell in spreads],
        [cell.std for cell in spreads],
        label=f"{key} over {swept}",
        x_label=swept,
    )
    return SweepView(key, "Means; bars are ± one standard deviation over seeds.", svg, small=True)


def _heat(settings: Sequence[Setting], swept: Sequence[str], key: str, metric: Metric) -> SweepView:
    """A heat map; the key with more values goes down: pages are longer than wide."""
    first, second = sorted(swept, key=lambda key: -len(levels(settings, key)))
    rows, columns = levels(settings, first), levels(settings, second)
    cells = setting_cells(settings, key, metric)
    shares = _shares([math.nan if cell.value is None else cell.value for cell in cells], metric.sign)
    grid: list[list[HeatCell | None]] = [[None] * len(columns) for _ in rows]
    for setting, cell, share in zip(settings, cells, shares, strict=True):
        at = rows.index(setting.values[first]), columns.index(setting.values[second])
        strength = 0.0 if math.isnan(share) else share
        grid[at[0]][at[1]] = HeatCell(cell.text, strength, cell.tip, cell.style == "best")
    names = names_of(swept)
    heat = HeatMap(names[first], names[second], [*map(short, rows)], [*map(short, columns)], grid)
    return SweepView(key, _reading(metric), heat=heat)


def _parallel(settings: Sequence[Setting], swept: Sequence[str], key: str, metric: Metric) -> SweepView:
    spreads = [spread_of(setting.finished, key) for setting in settings]
    names = names_of(swept)
    axes = [ChartAxis(names[name], [setting.values[name] for setting in settings]) for name in swept]
    means = [cell.mean for cell in spreads]
    known = [value for value in means if math.isfinite(value)]
    filled = [value if math.isfinite(value) else min(known, default=0.0) for value in means]
    labels = [f"{setting.label}: {mean:.4g}" for setting, mean in zip(settings, means, strict=True)]
    svg = charts.parallel(
        [*axes, ChartAxis(key, filled, even=False)],
        labels,
        label=f"{key} over {', '.join(swept)}",
        best=best(spreads, metric.sign),
        goodness=_shares(means, metric.sign),
    )
    return SweepView(key, "Each line is a setting. " + _reading(metric), svg)


def _shares(values: Sequence[float], sign: int) -> list[float]:
    """From 0 for the worst to 1 for the best value, the highest where neither side is better; NaN stays NaN."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    width = high - low or 1.0
    shares = [(value - low) / width if math.isfinite(value) else math.nan for value in values]
    return [1 - share if sign < 0 else share for share in shares]


def _reading(metric: Metric) -> str:
    strongest = "lowest" if metric.sign < 0 else "highest"
    return f"The stronger the colour, the closer to the {strongest} value."
