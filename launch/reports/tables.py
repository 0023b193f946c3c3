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
from launch.reports.metrics import Meaning, Metric
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
from launch.reports.records import FINISHED, RunRecord
from launch.reports.runs import Study
from launch.reports.settings import KEYS, Setting, StudyResults

WIDE = 8  # columns of metrics that have room; with more of them metrics become rows
_ARROWS = {1: "↑", -1: "↓", 0: ""}
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
    """

    text: str
    value: float | None = None
    tip: str = ""
    style: str = ""

    @property
    def sort(self) -> str:
        """`value` for the page's script; "" where it sorts by the text."""
        return "" if self.value is None else "nan" if math.isnan(self.value) else repr(float(self.value))


@dataclass(frozen=True)
class ReportTable:
    """A table as it is shown; the first column heads its rows, and stays in sight while the others scroll.

    Attributes:
      name: its title.
      prose: whether the last column may run over several lines.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    name: str
    prose: bool = False


@dataclass(frozen=True)
class ResultLine:
    """One line of results: what was measured, where, and how it came out.

    Attributes:
      condition, row: see `launch.reports.metrics.Metric`.
      setting: the runs it is of; None for a line that is the same in all settings.
      runs: how many finished runs it is of, and how many there are to be.
      keys: heading of a column -> key of the result.
      spreads: heading of a column -> the values.
      reference: whether it does not compete for the best value.
    """

    condition: str
    row: str
    setting: Setting | None
    runs: tuple[int, int]
    keys: Mapping[str, str]
    spreads: Mapping[str, Spread]
    reference: bool


@dataclass(frozen=True)
class ResultTable:
    """Lines of results under one title; `metrics` by the heading of their column, in order."""

    title: str
    metrics: Mapping[str, Metric]
    lines: Sequence[ResultLine]


# -- from results to lines ------------------------------------------------------------------------------------------


def collect(settings: Sequence[Setting], meaning: Meaning, *, details: bool = False) -> list[ResultTable]:
    """The declared tables of finished runs.

    Args:
      settings: from `launch.reports.settings.settings`; one setting of one run for a run by itself.
      meaning: of keys.
      details: whether metrics of level "detail" are in them.
    """
    finished = [setting for setting in settings if setting.finished]
    by_table: dict[str, dict[str, Metric]] = {}
    for key in grouping.keys_of(run for setting in finished for run in setting.finished):
        metric = meaning(key)
        if details or metric.level != "detail":
            by_table.setdefault(metric.table, {})[key] = metric
    return [_collected(title, own, finished) for title, own in by_table.items()]


def _collected(title: str, keys: Mapping[str, Metric], settings: Sequence[Setting]) -> ResultTable:
    headings: dict[str, Metric] = {}
    places: dict[tuple[str, str], dict[str, str]] = {}  # (condition, row) -> heading -> key
    for key, metric in keys.items():
        place = places.setdefault((metric.condition, metric.row), {})
        heading = metric.heading if metric.heading not in place else f"{metric.heading} [{key}]"
        place[heading] = key
        headings.setdefault(heading, metric)
    headings = dict(sorted(headings.items(), key=lambda item: item[1].order))
    conditions = list(dict.fromkeys(condition for condition, _ in places))
    lines: list[ResultLine] = []
    for (condition, row), own in sorted(places.items(), key=lambda item: conditions.index(item[0][0])):
        reference = all(keys[key].reference for key in own.values())
        groups = _once(settings, list(own.values())) if row else None
        for setting, runs, total in groups or [(s, s.finished, len(s.members)) for s in settings]:
            spreads = {heading: grouping.spread_of(runs, key) for heading, key in own.items()}
            if any(spread.total for spread in spreads.values()):
                lines.append(ResultLine(condition, row, setting, (len(runs), total), own, spreads, reference))
    return ResultTable(title, headings, lines)


def _once(settings: Sequence[Setting], keys: Sequence[str]) -> list[tuple[None, list[RunRecord], int]] | None:
    """One run per seed, if all settings agree seed by seed; None if they do not, or have no seed in common."""
    runs: dict[str, RunRecord] = {}
    for at, setting in enumerate(settings):
        own = {_seeds(run): run for run in setting.finished}
        common = runs.keys() & own.keys()
        if at and (not common or any(_values(runs[seed], keys) != _values(own[seed], keys) for seed in common)):
            return None
        runs = own | runs
    return [(None, list(runs.values()), len(runs))] if len(settings) > 1 else None


def _seeds(run: RunRecord) -> str:
    return exact({key: value for key, value in run.config.items() if grouping.is_seed(key)})


def _values(run: RunRecord, keys: Sequence[str]) -> list[str]:
    return [repr(run.result.get(key)) for key in keys]


# -- from lines to what is shown ------------------------------------------------------------------------------------


def shown(table: ResultTable, settings: Sequence[Setting], swept: Sequence[str]) -> ReportTable:
    """A table of results as rows of cells: lines down and metrics across, or the other way round if these are many."""
    cells = _cells(table)
    several = sum(len(setting.members) for setting in settings) > 1
    if len(table.lines) == 1 or (len(table.metrics) > WIDE >= len(table.lines)):
        labels = [_line_label(line, len(settings) > 1) or "value" for line in table.lines]
        return _metrics_down(table, cells, labels, several)
    heads = _heads(table, settings, swept)
    columns = [column for column, _ in heads] + ([_SEEDS] if several else [])
    columns += [_metric_column(heading, metric) for heading, metric in table.metrics.items()]
    rows = []
    for at, line in enumerate(table.lines):
        row = [of_line[at] for _, of_line in heads] + ([_seeds_cell(*line.runs)] if several else [])
        rows.append([*row, *(cells[heading][at] for heading in table.metrics)])
    return ReportTable(columns, rows, table.title)


def _metrics_down(
    table: ResultTable, cells: Mapping[str, Sequence[Cell]], labels: Sequence[str], several: bool
) -> ReportTable:
    columns = [Column("metric"), *(Column(label, numeric=True) for label in labels)]
    rows = [[Cell("seeds"), *(_seeds_cell(*line.runs) for line in table.lines)]] if several else []
    for heading, metric in table.metrics.items():
        column = _metric_column(heading, metric)
        rows.append([Cell(column.title, tip=column.tip), *cells[heading]])
    return ReportTable(columns, rows, table.title)


def _line_label(line: ResultLine, with_setting: bool) -> str:
    """A line in few words: "RPS ε=8, l2_cosine"."""
    setting = line.setting.label if line.setting and with_setting else ""
    return ", ".join(filter(None, (line.condition, line.row, setting)))


def _heads(
    table: ResultTable, settings: Sequence[Setting], swept: Sequence[str]
) -> list[tuple[Column, Sequence[Cell]]]:
    """The columns that say what a line is, and their cells: condition, row, and the setting."""
    lines = table.lines
    heads = []
    if any(line.condition for line in lines):
        heads.append((Column("under"), [Cell(line.condition) for line in lines]))
    if any(line.row for line in lines):
        heads.append((Column(""), [Cell(line.row) for line in lines]))
    if len(settings) > 1:
        for column, of_settings in setting_columns(settings, swept):
            by_label = {setting.label: cell for setting, cell in zip(settings, of_settings, strict=True)}
            own = [by_label[line.setting.label] if line.setting else Cell("all") for line in lines]
            heads.append((column, own))
    return heads or [(Column(""), [Cell("") for _ in lines])]


def setting_columns(settings: Sequence[Setting], swept: Sequence[str]) -> list[tuple[Column, list[Cell]]]:
    """A column per swept key where all settings set the same few, or one that names the settings."""
    if not swept or len(swept) > KEYS or not grouping.is_grid(settings):
        title = "setting" if swept and not grouping.is_grid(settings) else "runs"
        return [(Column(title), [Cell(setting.label) for setting in settings])]
    names = grouping.names_of(swept)
    columns = []
    for key in swept:
        numeric = any(is_number(setting.values[key]) for setting in settings)
        cells = [value_cell(setting.values[key]) for setting in settings]
        columns.append((Column(names[key], tip=key, numeric=numeric), cells))
    return columns


_SEEDS = Column("seeds", tip="finished runs", numeric=True)


def _seeds_cell(finished: int, total: int) -> Cell:
    return Cell(str(total) if finished == total else f"{finished} of {total}", finished)


def _cells(table: ResultTable) -> dict[str, list[Cell]]:
    """Heading -> a cell per line; the best values among lines of one condition are marked."""
    cells = {}
    absent = spread([])
    for heading, metric in table.metrics.items():
        spreads = [line.spreads.get(heading, absent) for line in table.lines]
        marked: set[int] = set()
        for condition in {line.condition for line in table.lines}:
            rivals = [at for at, line in enumerate(table.lines) if line.condition == condition and not line.reference]
            marked |= {rivals[at] for at in best([spreads[at] for at in rivals], metric.sign)}
        cells[heading] = spread_cells(spreads, metric, marked)
    return cells


def spread_cells(spreads: Sequence[Spread], metric: Metric, marked: set[int], absent: str = "") -> list[Cell]:
    """A metric as mean ± std, all with the same number of decimals.

    Args:
      marked: the places of the best values.
      absent: what stands where nothing was measured.
    """
    text = decimals([cell.mean for cell in spreads], [cell.std for cell in spreads], metric.digits)
    cells = []
    for at, values in enumerate(spreads):
        tip = f"{values.mean:.6g}" + ("" if math.isnan(values.std) else f" ± {values.std:.2g}")
        tip += f", {values.count} of {values.total} runs have a value" if values.count < values.total else ""
        cell = Cell(spread_text(values, text), values.mean, tip, "best" if at in marked else "")
        cells.append(cell if values.total else Cell(absent, math.nan))
    return cells


# -- whole results --------------------------------------------------------------------------------------------------


def of_study(results: StudyResults) -> list[ReportTable]:
    """The declared tables of runs side by side, or of one run, as they are shown."""
    return [shown(table, results.settings, results.swept) for table in collect(results.settings, results.meaning)]


def of_finished_run(result: Mapping[str, float | None], experiment: str) -> list[ReportTable]:
    """The tables of one result as the run itself prints them.

    Args:
      result: key -> value, None or NaN where there is none.
      experiment: dotted name of the module that declares the metrics.
    """
    numbers = {key: math.nan if value is None else float(value) for key, value in result.items()}
    run = RunRecord("", Path(), FINISHED, {"experiment": experiment}, numbers)
    return of_study(grouping.group(Study("", experiment, run, ())))


def overview(
    settings: Sequence[Setting], swept: Sequence[str], keys: Sequence[str], meaning: Meaning, name: str = "Results"
) -> ReportTable:
    """A row per setting: its values, how many seeds, and some metrics as mean ± std.

    Args:
      settings: finished or not.
      swept: the keys in which they differ.
      keys: of the metrics.
      meaning: of the metrics.
      name: of the table.
    """
    heads = setting_columns(settings, swept)
    columns = [*(column for column, _ in heads), _SEEDS]
    cells = []
    for key in keys:
        metric = meaning(key)
        above = ", ".join(filter(None, (metric.table, metric.condition, metric.row)))
        column = _metric_column(metric.heading, metric)
        columns.append(Column(column.title, above, f"{key}: {column.tip}" if column.tip else key, numeric=True))
        cells.append(setting_cells(settings, key, metric))
    rows = []
    for at, setting in enumerate(settings):
        row = [of_settings[at] for _, of_settings in heads]
        row.append(_seeds_cell(len(setting.finished), len(setting.members)))
        rows.append([*row, *(of_settings[at] for of_settings in cells)])
    return ReportTable(columns, rows, name)


def setting_cells(settings: Sequence[Setting], key: str, metric: Metric) -> list[Cell]:
    """A metric of all settings, the best ones marked, a dash where there is no result."""
    spreads = [grouping.spread_of(setting.finished, key) for setting in settings]
    return spread_cells(spreads, metric, best(spreads, metric.sign), absent="–")


def _metric_column(heading: str, metric: Metric) -> Column:
    tip = ". ".join(filter(None, (metric.help.rstrip("."), _BETTER[metric.sign])))
    return Column(f"{heading} {_ARROWS[metric.sign]}".strip(), tip=tip, numeric=True)


def metric_cell(key: str, metric: Metric) -> Cell:
    """The key of a metric as the head of a row."""
    title = "" if metric.title == key else metric.heading
    tip = ". ".join(filter(None, (title, metric.help.rstrip("."), _BETTER[metric.sign])))
    return Cell(f"{key} {_ARROWS[metric.sign]}".strip(), tip=tip)


def value_cell(value: Any) -> Cell:
    """A value of a config."""
    if is_number(value):
        return Cell(short(value), float(value), tip=str(value))
    text = cut(value)
    tip = "" if value is grouping.ABSENT or text == value else config_text(value)
    return Cell(text, math.nan if value is grouping.ABSENT else None, tip)
