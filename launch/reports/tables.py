"""Results as tables: of one run, of a sweep, of runs side by side, all by what the experiment declares.

The keys of a result that share table, condition and row stand in one line. With several settings each line becomes one
per setting, with mean ± standard deviation over its seeds; a line that is the same in all settings, such as a baseline
that the sweep does not touch, is shown once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.reports import settings as grouping
from launch.reports.metrics import Metric
from launch.reports.numbers import (
    Spread,
    best,
    config_text,
    cut,
    decimals,
    exact,
    is_number,
    short,
    spread,
    spread_text,
)
from launch.reports.runs import FINISHED, RunRecord, Study
from launch.reports.settings import KEYS, Setting, StudyResults

WIDE = 8  # columns of metrics, or of settings beside all metrics, that have room; more of them become rows
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_BETTER = {1: "higher is better", -1: "lower is better", 0: ""}


@dataclass(frozen=True)
class Column:
    """The head of a column: `title` under `above`, `tip` where the pointer rests."""

    title: str
    above: str = ""
    tip: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """The content of a cell.

    Attributes:
      text: as it is shown.
      value: what the column is sorted by: a number, NaN for none; None sorts by the text.
      tip: where the pointer rests.
      style: CSS classes: "best", a run's status.
      strength: of a heat map, how strong its colour is, in [0, 1].
    """

    text: str
    value: float | None = None
    tip: str = ""
    style: str = ""
    strength: float | None = None

    @property
    def sort(self) -> str:
        """`value` for the page's script; "" where it sorts by the text."""
        return "" if self.value is None else "nan" if math.isnan(self.value) else repr(float(self.value))


@dataclass(frozen=True)
class ReportTable:
    """A table as it is shown; the first column heads its rows, the last one of `prose` may run over several lines."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    name: str
    prose: bool = False


@dataclass(frozen=True)
class ResultLine:
    """One line of results.

    Attributes:
      spreads: name of a column -> the values.
      keys: name of a column -> key of the result.
      setting: the runs it is of; None for a line that is the same in all settings.
      runs: how many finished runs it is of, and how many there are to be.
      condition, row, reference: see `launch.reports.metrics.Metric`.
      label: what it is called in place of these.
    """

    spreads: Mapping[str, Spread]
    keys: Mapping[str, str]
    setting: Setting | None = None
    runs: tuple[int, int] = (1, 1)
    condition: str = ""
    row: str = ""
    reference: bool = False
    label: str = ""


@dataclass(frozen=True)
class ResultTable:
    """Lines of results under one title, and by its name the head and the metric of every column."""

    title: str
    columns: Mapping[str, tuple[Column, Metric]]
    lines: Sequence[ResultLine]


# -- from results to lines ------------------------------------------------------------------------------------------


def collect(results: StudyResults, *, details: bool = False) -> list[ResultTable]:
    """The declared tables of finished runs, with metrics of level "detail" or without."""
    by_table: dict[str, dict[str, Metric]] = {}
    for key in grouping.keys_of(run for setting in results.finished for run in setting.finished):
        metric = results.meaning(key)
        if details or metric.level != "detail":
            by_table.setdefault(metric.table, {})[key] = metric
    return [_collected(title, keys, results.finished) for title, keys in by_table.items()]


def _collected(title: str, keys: Mapping[str, Metric], settings: Sequence[Setting]) -> ResultTable:
    columns: dict[str, tuple[Column, Metric]] = {}
    places: dict[str, dict[str, dict[str, str]]] = {}  # condition -> row -> heading -> key
    for key, metric in keys.items():
        place = places.setdefault(metric.condition, {}).setdefault(metric.row, {})
        heading = metric.heading if metric.heading not in place else f"{metric.heading} [{key}]"
        place[heading] = key
        columns.setdefault(heading, (_column(heading, metric), metric))
    lines: list[ResultLine] = []
    for condition, row, place in ((at, row, place) for at, rows in places.items() for row, place in rows.items()):
        reference = all(keys[key].reference for key in place.values())
        common = _common(settings, list(place.values())) if row and len(settings) > 1 else []
        groups = [(None, common, len(common))] if common else [(s, s.finished, len(s.members)) for s in settings]
        for setting, runs, total in groups:
            spreads = {heading: grouping.spread_of(runs, key) for heading, key in place.items()}
            if any(spread.total for spread in spreads.values()):
                lines.append(ResultLine(spreads, place, setting, (len(runs), total), condition, row, reference))
    return ResultTable(title, dict(sorted(columns.items(), key=lambda item: item[1][1].order)), lines)


def _common(settings: Sequence[Setting], keys: Sequence[str]) -> list[RunRecord]:
    """One run per seed if all settings agree seed by seed; [] if they do not, or have no seed in common."""
    values = lambda run: [repr(run.result.get(key)) for key in keys]
    seeds = lambda run: exact({key: value for key, value in run.config.items() if grouping.is_seed(key)})
    runs: dict[str, RunRecord] = {}
    for at, setting in enumerate(settings):
        by_seed = {seeds(run): run for run in setting.finished}
        common = runs.keys() & by_seed.keys()
        if at and (not common or any(values(runs[seed]) != values(by_seed[seed]) for seed in common)):
            return []
        runs = by_seed | runs
    return list(runs.values())


def by_setting(name: str, settings: Sequence[Setting], columns: Mapping[str, tuple[Column, Metric]]) -> ResultTable:
    """A line per setting, finished or not, with a column per key."""
    lines = [
        ResultLine(
            {key: grouping.spread_of(setting.finished, key) for key in columns},
            {key: key for key in columns},
            setting,
            (len(setting.finished), len(setting.members)),
        )
        for setting in settings
    ]
    return ResultTable(name, columns, lines)


# -- from lines to what is shown ------------------------------------------------------------------------------------


def shown(
    table: ResultTable, settings: Sequence[Setting], swept: Sequence[str], down: bool | None = None, absent: str = ""
) -> ReportTable:
    """A table of results as rows of cells.

    Args:
      table: the results.
      settings, swept: that the study has.
      down: whether metrics are rows and lines are columns; None decides by how many there are.
      absent: what stands where nothing was measured.
    """
    cells = {name: _cells(table, name, absent) for name in table.columns}
    seeds = [Cell(str(n) if done == n else f"{done} of {n}", done) for done, n in (line.runs for line in table.lines)]
    several = sum(len(setting.members) for setting in settings) > 1
    if down is None:
        down = len(table.lines) == 1 or len(table.columns) > WIDE >= len(table.lines)
    if down:
        labels = [line.label or _line_label(line, len(settings) > 1) or "value" for line in table.lines]
        rows = [[Cell("seeds"), *seeds]] if several else []
        rows += [[Cell(head.title, tip=head.tip), *cells[name]] for name, (head, _) in table.columns.items()]
        return ReportTable([Column("metric"), *(Column(label, numeric=True) for label in labels)], rows, table.title)
    heads = _heads(table.lines, settings, swept)
    heads += [(Column("seeds", tip="finished runs", numeric=True), seeds)] if several else []
    heads += [(head, cells[name]) for name, (head, _) in table.columns.items()]
    return ReportTable(
        [head for head, _ in heads], list(zip(*(column for _, column in heads), strict=True)), table.title
    )


def _line_label(line: ResultLine, with_setting: bool) -> str:
    """A line in few words: "RPS ε=8, l2_cosine"."""
    setting = line.setting.label if line.setting and with_setting else ""
    return ", ".join(filter(None, (line.condition, line.row, setting)))


def _heads(
    lines: Sequence[ResultLine], settings: Sequence[Setting], swept: Sequence[str]
) -> list[tuple[Column, list[Cell]]]:
    """The columns that say what a line is: condition, row, and a column per swept key or one that names the setting."""
    heads: list[tuple[Column, list[Cell]]] = []
    if any(line.condition for line in lines):
        heads.append((Column("under"), [Cell(line.condition) for line in lines]))
    if any(line.row for line in lines):
        heads.append((Column(""), [Cell(line.row) for line in lines]))
    if heads and len(settings) < 2:
        return heads
    of_setting = [line.setting for line in lines]
    if not swept or len(swept) > KEYS or not grouping.is_grid(settings):
        title = Column("setting" if swept and not grouping.is_grid(settings) else "runs")
        return [*heads, (title, [Cell(setting.label if setting else "all") for setting in of_setting])]
    names = grouping.names_of(swept)
    for key in swept:
        numeric = any(is_number(setting.values[key]) for setting in settings)
        cells = [value_cell(setting.values[key]) if setting else Cell("all") for setting in of_setting]
        heads.append((Column(names[key], tip=key, numeric=numeric), cells))
    return heads


def _cells(table: ResultTable, name: str, absent: str) -> list[Cell]:
    """A metric as mean ± std, a cell per line, all with as many decimals; the best under each condition are marked."""
    nothing = spread([])
    spreads = [line.spreads.get(name, nothing) for line in table.lines]
    metric, marked = table.columns[name][1], set()
    for condition in {line.condition for line in table.lines}:
        rivals = [at for at, line in enumerate(table.lines) if line.condition == condition and not line.reference]
        marked |= {rivals[at] for at in best([spreads[at] for at in rivals], metric.sign)}
    text = decimals([cell.mean for cell in spreads], [cell.std for cell in spreads], metric.digits)
    cells = []
    for at, values in enumerate(spreads):
        tip = f"{values.mean:.6g}" + ("" if math.isnan(values.std) else f" ± {values.std:.2g}")
        tip += f", {values.count} of {values.total} runs have a value" if values.count < values.total else ""
        cell = Cell(spread_text(values, text), values.mean, tip, "best" if at in marked else "")
        cells.append(cell if values.total else Cell(absent, math.nan))
    return cells


def setting_cells(settings: Sequence[Setting], key: str, metric: Metric) -> list[Cell]:
    """A metric of all settings, a dash where there is no result."""
    return _cells(by_setting("", settings, {key: (Column(key), metric)}), key, "–")


def _column(heading: str, metric: Metric, above: str = "", *tips: str) -> Column:
    tip = ". ".join(filter(None, (*tips, metric.help.rstrip("."), _BETTER[metric.sign])))
    return Column(heading + _ARROWS[metric.sign], above, tip, numeric=True)


def key_columns(keys: Sequence[str], meaning: grouping.Meaning) -> dict[str, tuple[Column, Metric]]:
    """Columns that are headed by the keys of their metrics."""
    of = {key: meaning(key) for key in keys}
    return {key: (_column(key, m, "", "" if m.title == key else m.heading), m) for key, m in of.items()}


def value_cell(value: Any) -> Cell:
    """A value of a config."""
    if is_number(value):
        return Cell(short(value), float(value), tip=str(value))
    text = cut(short(value))
    if value is grouping.ABSENT:
        return Cell(text, math.nan)
    return Cell(text, tip="" if text == value else config_text(value))


# -- whole results --------------------------------------------------------------------------------------------------


def of_study(results: StudyResults) -> list[ReportTable]:
    """The declared tables of runs side by side, or of one run, as they are shown."""
    return [shown(table, results.settings, results.swept) for table in collect(results)]


def of_finished_run(result: Mapping[str, float | None], experiment: str) -> list[ReportTable]:
    """The tables of one result as the run itself prints them.

    Args:
      result: key -> value, None or NaN where there is none.
      experiment: dotted name of the module that declares the metrics.
    """
    numbers = {key: math.nan if value is None else float(value) for key, value in result.items()}
    run = RunRecord("", Path(), FINISHED, {"experiment": experiment}, numbers)
    return of_study(grouping.group(Study("", experiment, run, ())))


def overview(results: StudyResults, keys: Sequence[str], settings: Sequence[Setting] | None = None) -> ReportTable:
    """A row per setting: its values, how many seeds, and the metrics `keys` as mean ± std."""
    columns = {}
    for key in keys:
        metric = results.meaning(key)
        above = ", ".join(filter(None, (metric.table, metric.condition, metric.row)))
        columns[key] = (_column(metric.heading, metric, above, key), metric)
    settings = results.settings if settings is None else settings
    return shown(by_setting("Results", settings, columns), settings, results.swept, down=False, absent="–")


def all_metrics(results: StudyResults) -> ReportTable:
    """Every metric of every setting that has a result, whichever way round there is room for."""
    settings = results.finished
    keys = grouping.keys_of(run for setting in settings for run in setting.finished)
    if len(settings) > WIDE:
        return overview(results, keys, settings)
    columns = key_columns(keys, results.meaning)
    return shown(by_setting("All metrics", settings, columns), settings, results.swept, down=True, absent="–")
