"""Results as tables: of one run, of a sweep, of runs side by side, all by what the experiment declares.

The keys of a result that share table, condition and row stand in one line. With several settings each line becomes one
per setting, with mean ± standard deviation over its seeds; a line that is the same in all settings, such as a baseline
that the sweep does not touch, is shown once. Besides: earlier results, runs, configs and versions.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from launch.reports.runs import FINISHED, RunRecord, Study
from launch.reports.settings import (
    ABSENT,
    KEYS,
    Setting,
    StudyResults,
    group,
    is_grid,
    is_seed,
    keys_of,
    names_of,
    spread_of,
)
from launch.run import difference

WIDE = 8  # columns of metrics, or of settings beside all metrics, that have room; more of them become rows
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_BETTER = {1: "higher is better", -1: "lower is better", 0: ""}


@dataclass(frozen=True)
class Column:
    """The head of a column: `title` under `above`, `tip` on hover."""

    title: str
    above: str = ""
    tip: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """The content of a cell."""

    text: str  # as it is shown
    value: float | None = None  # what the column is sorted by: a number, NaN for none; None sorts by the text
    tip: str = ""  # shown on hover
    style: str = ""  # CSS classes: "best", a run's status
    strength: float | None = None  # of a heat map, how strong its colour is, in [0, 1]

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
    """One line of results; for condition, row and reference see `launch.reports.metrics.Metric`."""

    spreads: Mapping[str, Spread]  # by the name of the column
    keys: Mapping[str, str]  # of the result, by the name of the column
    setting: Setting | None = None  # the runs it is of; None for a line that is the same in all settings
    runs: tuple[int, int] = (1, 1)  # how many runs are finished, and how many there are in all
    condition: str = ""
    row: str = ""
    reference: bool = False
    label: str = ""  # what it is called in place of these


@dataclass(frozen=True)
class ResultTable:
    """Lines of results under one title, and by its name the head and the metric of every column."""

    title: str
    columns: Mapping[str, tuple[Column, Metric]]
    lines: Sequence[ResultLine]


def collect(results: StudyResults, *, details: bool = False) -> list[ResultTable]:
    """The declared tables of finished runs, with metrics of level "detail" or without."""
    by_table: dict[str, dict[str, Metric]] = {}
    for key in keys_of(run for setting in results.finished for run in setting.finished):
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
            spreads = {heading: spread_of(runs, key) for heading, key in place.items()}
            if any(spread.total for spread in spreads.values()):
                lines.append(ResultLine(spreads, place, setting, (len(runs), total), condition, row, reference))
    return ResultTable(title, dict(sorted(columns.items(), key=lambda item: item[1][1].order)), lines)


def _common(settings: Sequence[Setting], keys: Sequence[str]) -> list[RunRecord]:
    """One run per seed if all settings agree seed by seed; [] if they do not, or have no seed in common."""
    values = lambda run: [repr(run.result.get(key)) for key in keys]
    seeds = lambda run: exact({key: value for key, value in run.config.items() if is_seed(key)})
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
    lines = []
    for setting in settings:
        spreads = {key: spread_of(setting.finished, key) for key in columns}
        lines.append(ResultLine(spreads, {}, setting, (len(setting.finished), len(setting.members))))
    return ResultTable(name, columns, lines)


def shown(
    table: ResultTable, settings: Sequence[Setting], swept: Sequence[str], down: bool | None = None, absent: str = ""
) -> ReportTable:
    """A table of results as rows of cells, with `absent` where nothing was measured.

    Metrics are rows and lines are columns if `down`; None decides by how many there are.
    """
    cells = {name: _cells(table, name, absent) for name in table.columns}
    seeds = [Cell(str(n) if done == n else f"{done} of {n}", done) for done, n in (line.runs for line in table.lines)]
    several = sum(len(setting.members) for setting in settings) > 1
    if down is None:
        down = len(table.lines) == 1 or len(table.columns) > WIDE >= len(table.lines)
    if down:
        names = [line.setting.label if line.setting and len(settings) > 1 else line.label for line in table.lines]
        parts = [(line.condition, line.row, name) for line, name in zip(table.lines, names, strict=True)]
        labels = [", ".join(filter(None, texts)) or "value" for texts in parts]  # "RPS ε=8, l2_cosine"
        rows = [[Cell("seeds"), *seeds]] if several else []
        rows += [[Cell(head.title, tip=head.tip), *cells[name]] for name, (head, _) in table.columns.items()]
        return ReportTable([Column("metric"), *(Column(label, numeric=True) for label in labels)], rows, table.title)
    heads = _heads(table.lines, settings, swept)
    heads += [(Column("seeds", tip="finished runs", numeric=True), seeds)] if several else []
    heads += [(head, cells[name]) for name, (head, _) in table.columns.items()]
    return ReportTable(
        [head for head, _ in heads], list(zip(*(column for _, column in heads), strict=True)), table.title
    )


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
    if not swept or len(swept) > KEYS or not is_grid(settings):
        title = Column("setting" if swept and not is_grid(settings) else "runs")
        return [*heads, (title, [Cell(setting.label if setting else "all") for setting in of_setting])]
    names = names_of(swept)
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


def key_columns(keys: Sequence[str], meaning: Meaning) -> dict[str, tuple[Column, Metric]]:
    """Columns that are headed by the keys of their metrics."""
    of = {key: meaning(key) for key in keys}
    return {key: (_column(key, m, "", "" if m.title == key else m.heading), m) for key, m in of.items()}


def value_cell(value: Any) -> Cell:
    """A value of a config."""
    if is_number(value):
        return Cell(short(value), float(value), tip=str(value))
    text = cut(short(value))
    if value is ABSENT:
        return Cell(text, math.nan)
    return Cell(text, tip="" if text == value else config_text(value))


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
    return of_study(group(Study("", experiment, run, ())))


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
    """Every metric of every setting that has a result, in whichever orientation fits."""
    settings = results.finished
    keys = keys_of(run for setting in settings for run in setting.finished)
    if len(settings) > WIDE:
        return overview(results, keys, settings)
    columns = key_columns(keys, results.meaning)
    return shown(by_setting("All metrics", settings, columns), settings, results.swept, down=True, absent="–")


def of_earlier(run: RunRecord, meaning: Meaning) -> tuple[ReportTable, list[tuple[int, list[str]]]]:
    """The results of a run before its config was changed beside the one that it has now.

    Returns:
      A row per metric, a column per result, the newest first; and for each earlier result its number and the config
      fields in which it differed, a line each.
    """
    results = {"now": run.result} if run.result else {}
    results |= {f"earlier result {entry.number}": entry.result for entry in run.earlier[::-1]}
    lines = [
        ResultLine({key: spread([value]) for key, value in result.items()}, {}, reference=True, label=name)
        for name, result in results.items()
    ]
    columns = key_columns(list(dict.fromkeys(key for result in results.values() for key in result)), meaning)
    table = shown(ResultTable("Earlier results", columns, lines), [], [], down=True, absent="–")
    return table, [(entry.number, difference(entry.config, run.config)) for entry in run.earlier[::-1]]


def of_members(members: Sequence[RunRecord], keys: Sequence[str]) -> ReportTable:
    """A row per run: how far it is, its values of swept keys and seeds, steps and time."""
    seeds = [key for key in dict.fromkeys(k for m in members for k in m.config) if is_seed(key)]
    keys = [*keys, *(key for key in seeds if len({str(m.config.get(key)) for m in members}) > 1)]
    names = names_of(keys)
    columns = [Column("run"), Column("status"), *(Column(names[key], tip=key) for key in keys)]
    columns += [Column("last step", numeric=True), Column("first to last log", numeric=True), Column("last log, UTC")]
    rows = []
    for run in members:
        row = [Cell(run.name), Cell(run.status, style="status " + run.status.replace(" ", "-"))]
        row += [value_cell(run.config.get(key)) for key in keys]
        row += [Cell("–", math.nan) if run.last_step is None else Cell(f"{run.last_step:,}", run.last_step)]
        first, last = run.logged or (math.nan, math.nan)
        took = "–" if run.logged is None else duration(last - first)
        rows.append([*row, Cell(took, last - first), Cell("–" if run.logged is None else moment(last))])
    return ReportTable(columns, rows, "Runs")


def of_configs(runs: Sequence[RunRecord]) -> ReportTable:
    """A row per config key: its value, or the values where runs differ."""
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = list(dict.fromkeys(config_text(run.config[key]) for run in runs if key in run.config))
        more = f" · … {len(values)} values" if len(values) > 12 else ""
        rows.append([Cell(key), Cell(" · ".join(values[:12]) + more, style="varies" if len(values) > 1 else "")])
    return ReportTable([Column("key"), Column("value")], rows, "Config", prose=True)


def of_versions(runs: Sequence[RunRecord]) -> ReportTable | None:
    """What the runs were made with, a column per different set of versions; None if nothing is recorded."""
    sets: dict[str, list[str]] = {}  # of versions -> the names of runs
    for run in runs:
        for versions in run.versions:
            sets.setdefault(json.dumps(versions, sort_keys=True), []).append(run.name)
    if not sets:
        return None
    heads = [", ".join(runs[:3]) + (f", … ({len(runs)} runs)" if len(runs) > 3 else "") for runs in sets.values()]
    names = dict.fromkeys(name for run in runs for versions in run.versions for name in versions)
    rows = [[Cell(name), *(Cell(str(json.loads(text).get(name, "–"))) for text in sets)] for name in names]
    return ReportTable([Column(""), *map(Column, heads if len(sets) > 1 else ["version"])], rows, "Versions")


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
