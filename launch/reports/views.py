"""The drawings of a report: curves of training, and the results of a sweep over its settings."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from launch.reports import charts
from launch.reports.charts import COLOURS, ChartAxis, ChartLine
from launch.reports.metrics import Metric
from launch.reports.numbers import best, is_number, short
from launch.reports.runs import Curve
from launch.reports.settings import Setting, StudyResults, levels, names_of, spread_of
from launch.reports.tables import Cell, Column, ReportTable, setting_cells

_SEEDS_SHOWN = 24  # lines of seeds, beyond which only means are drawn
_AXES = 7
_ACROSS = 5  # with fewer settings a table says more than parallel coordinates


@dataclass(frozen=True)
class SweepView:
    """One metric over the swept settings: a drawing or a heat map."""

    metric: str
    note: str  # how to read it
    svg: Markup | None = None
    heat: ReportTable | None = None
    small: bool = False  # stands side by side with others; of large ones the page shows one at a time


def curves(results: StudyResults, keys: Sequence[str]) -> tuple[Mapping[str, Markup], Sequence[tuple[str, str]]]:
    """A panel for every metric that was logged at two steps or more, and what their colours mean: (class, label).

    With several seeds the mean is drawn over the steps that all of them have, and the seeds thinly. Where there are
    more settings than colours, those that are best by the first of `keys` are coloured and the others grey.
    """
    settings, meaning = results.settings, results.meaning
    coloured = range(min(COLOURS, len(settings)))
    if len(settings) > COLOURS and keys:
        means = [(meaning(keys[0]).sign or 1) * spread_of(setting.finished, keys[0]).mean for setting in settings]
        order = sorted(range(len(settings)), key=lambda at: (math.isnan(means[at]), -means[at]))
        coloured = sorted(order[:COLOURS])
    styles = {at: f"c{place}" for place, at in enumerate(coloured)}

    def place(name: str) -> tuple[bool, int]:
        """Evaluations before the training itself, details such as the speed last."""
        parts = name.split("/")
        return meaning(name).level == "detail", 0 if "test" in parts else 1 if "val" in parts else 2

    panels = {}
    for name in sorted(dict.fromkeys(n for s in settings for run in s.members for n in run.curves), key=place):
        lines: list[ChartLine] = []
        for at, setting in enumerate(settings):
            lines += _lines(setting, name, styles.get(at, "rest"), len(settings))
        lines.sort(key=lambda line: (line.style != "line rest", "seed" not in line.style))
        if any(len(line.x) > 1 for line in lines):
            # what grows towards a best value, such as an accuracy, reads better linear
            may_log = meaning(name).sign <= 0
            panels[name] = charts.panel(lines, label=f"{name} over steps", x_label="step", may_log=(False, may_log))
    legend = [(style, settings[at].label) for at, style in styles.items()]
    if len(styles) < len(settings):
        legend.append(("rest", f"the other {len(settings) - len(styles)}"))
    return panels, legend if len(settings) > 1 else []


def _lines(setting: Setting, name: str, style: str, settings: int) -> list[ChartLine]:
    """The mean over seeds, and each seed thinly unless there are many; one run by itself as a line."""
    runs = {run.name: run.curves[name] for run in setting.members if name in run.curves}
    mean = _mean(list(runs.values()))
    lines = [] if mean is None else [(f"mean of {len(runs)}", f"line {style}", mean)]
    if mean is None or settings * len(runs) <= _SEEDS_SHOWN:
        kind = f"line {style}" if mean is None else f"line {style} seed"
        lines = [*((run, kind, curve) for run, curve in runs.items()), *lines]
    title = lambda run: setting.label if run == setting.label else f"{setting.label}: {run}"
    return [ChartLine(title(run), kind, *charts.thin(curve.steps, curve.values)) for run, kind, curve in lines]


def _mean(curves: Sequence[Curve]) -> Curve | None:
    """The mean over the steps that all curves have; None for fewer than two curves or steps."""
    # of a step that was logged twice the last value counts
    values = [dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True)) for curve in curves]
    common = sorted(set.intersection(*map(set, values))) if len(curves) > 1 else []
    if len(common) < 2:
        return None
    return Curve(np.asarray(common), np.asarray([np.mean([steps[at] for steps in values]) for at in common]))


def sweeps(results: StudyResults, keys: Sequence[str]) -> list[SweepView]:
    """How results depend on what was swept, a view per metric.

    One number: a line over its values. Two keys, of whose pairs half or more were run: a heat map. Other numbers of
    keys, or pairs drawn at random: parallel coordinates. Nothing where it would say no more than the table.
    """
    settings, swept = results.finished, results.swept
    if len(swept) == 1:
        numeric = [setting for setting in settings if is_number(setting.values[swept[0]])]
        return [_response(numeric, swept[0], key) for key in keys] if len(numeric) > 2 else []
    draw = _parallel if len(swept) > 1 and len(settings) >= _ACROSS else None
    if len(swept) == 2 and len(settings) > 2:
        across, down = (len(levels(settings, key)) for key in swept)
        if min(across, down) > 1 and len(settings) >= across * down / 2:
            draw = _heat
    return [draw(settings, swept, key, results.meaning(key)) for key in keys] if draw else []


def _response(settings: Sequence[Setting], swept: str, key: str) -> SweepView:
    spreads = [spread_of(setting.finished, key) for setting in settings]
    values = [float(setting.values[swept]) for setting in settings]
    means, stds = [cell.mean for cell in spreads], [cell.std for cell in spreads]
    svg = charts.response(values, means, stds, label=f"{key} over {swept}", x_label=swept)
    return SweepView(key, "Means; bars are ± one standard deviation over seeds.", svg, small=True)


def _heat(settings: Sequence[Setting], swept: Sequence[str], key: str, metric: Metric) -> SweepView:
    """A heat map; the key with more values goes down: pages are longer than wide."""
    first, second = sorted(swept, key=lambda key: -len(levels(settings, key)))
    rows, columns = levels(settings, first), levels(settings, second)
    cells = setting_cells(settings, key, metric)
    shares = _shares([math.nan if cell.value is None else cell.value for cell in cells], metric.sign)
    grid = [[Cell(short(row)), *[Cell("–", style="none")] * len(columns)] for row in rows]
    for setting, cell, share in zip(settings, cells, shares, strict=True):
        strength = 0.0 if math.isnan(share) else share
        place = rows.index(setting.values[first]), 1 + columns.index(setting.values[second])
        grid[place[0]][place[1]] = dataclasses.replace(cell, strength=strength)
    names = names_of(swept)
    heads = [Column(names[first]), *(Column(short(value), names[second]) for value in columns)]
    return SweepView(key, _reading(metric), heat=ReportTable(heads, grid, key))


def _parallel(settings: Sequence[Setting], swept: Sequence[str], key: str, metric: Metric) -> SweepView:
    spreads = [spread_of(setting.finished, key) for setting in settings]
    names = names_of(swept[:_AXES])
    axes = [ChartAxis(title, [setting.values[name] for setting in settings]) for name, title in names.items()]
    means = [cell.mean for cell in spreads]
    least = min((value for value in means if math.isfinite(value)), default=0.0)
    svg = charts.parallel(
        [*axes, ChartAxis(key, [value if math.isfinite(value) else least for value in means], even=False)],
        [f"{setting.label}: {mean:.4g}" for setting, mean in zip(settings, means, strict=True)],
        label=f"{key} over {', '.join(names)}",
        best=best(spreads, metric.sign),
        goodness=_shares(means, metric.sign),
    )
    return SweepView(key, "Each line is a setting. " + _reading(metric), svg)


def _shares(values: Sequence[float], sign: int) -> list[float]:
    """From 0 for the worst to 1 for the best value, the highest where neither side is better; NaN stays NaN."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    shares = [(value - min(finite)) / (max(finite) - min(finite) or 1.0) for value in values]
    return [1 - share if sign < 0 else share for share in shares]


def _reading(metric: Metric) -> str:
    strongest = "lowest" if metric.sign < 0 else "highest"
    return f"The stronger the colour, the closer to the {strongest} value."
