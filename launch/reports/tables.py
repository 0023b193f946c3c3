"""The tables of a report, as data for its template."""

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.reports import summary
from launch.reports.charts import short
from launch.reports.runs import Found, Study
from launch.reports.summary import Choice, Setting, Spread

KEYS = 6  # more swept keys than these would leave no room for results: a table then names the runs instead
_LONG = 32  # characters of a value that are shown
_SIDE_BY_SIDE = 8  # settings that have room as columns
_ARROWS = {1: "↑", -1: "↓", 0: ""}
_SAID = {1: "higher is better", -1: "lower is better", 0: ""}
_NUMBER = re.compile(r"[-+−]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """A column's head: `title` under `above`, `tip` where the pointer rests."""

    title: str
    above: str = ""
    tip: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """What a cell says.

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
class Table:
    """Columns and rows of a table; the first column heads its rows, and stays in sight while the others scroll."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    name: str
    prose: bool = False  # whether the last column may run over several lines


def of_settings(study: Study, found: Sequence[Setting], keys: Sequence[str], metrics: Sequence[str], choice: Choice):
    """A row a setting: its values, how many seeds, and the metrics as mean ± std."""
    shown = keys if len(keys) <= KEYS else ()
    names = names_of(keys)
    columns = [Column(names[key], tip=key, numeric=_numeric(found, key)) for key in shown]
    columns += [] if shown else [Column("runs")]
    columns += [Column("seeds", tip="finished runs", numeric=True)]
    columns += [_metric_column(metric, choice) for metric in metrics]
    cells = {metric: spread_cells(found, metric, choice) for metric in metrics}
    rows = []
    for at, setting in enumerate(found):
        row = [_value(setting.values[key]) for key in shown] or [Cell(label(setting, keys))]
        finished, count = len(setting.finished), len(setting.members)
        row.append(Cell(str(count) if finished == count else f"{finished} of {count}", finished))
        rows.append([*row, *(cells[metric][at] for metric in metrics)])
    return Table(columns, rows, "Results")


def of_metrics(found: Sequence[Setting], keys: Sequence[str], metrics: Sequence[str], choice: Choice) -> Table:
    """Every metric, a row each, the settings as columns."""
    columns = [Column("metric"), *(Column(label(setting, keys), numeric=True) for setting in found)]
    rows = []
    for metric in metrics:
        sign = summary.direction(metric, choice)
        cells = spread_cells(found, metric, choice)
        rows.append([Cell(f"{metric} {_ARROWS[sign]}".strip(), tip=_SAID[sign]), *cells])
    return Table(columns, rows, "All metrics")


def all_metrics(study: Study, found: Sequence[Setting], keys: Sequence[str], choice: Choice) -> Table:
    """Every metric of every setting, whichever way round there is room for."""
    metrics = summary.metrics_of(study.members)
    if len(found) <= _SIDE_BY_SIDE:
        return of_metrics(found, keys, metrics, choice)
    return of_settings(study, found, keys, metrics, choice)


def of_result(run: Found, choice: Choice) -> Table:
    """One run's result, a row a metric."""
    rows = []
    for metric, value in run.result.items():
        sign = summary.direction(metric, choice)
        text = decimals([value])(value)
        rows.append([Cell(f"{metric} {_ARROWS[sign]}".strip(), tip=_SAID[sign]), Cell(text, value)])
    return Table([Column("metric"), Column("value", numeric=True)], rows, "Result")


def of_members(members: Sequence[Found], keys: Sequence[str]) -> Table:
    """Every run: how far it is, its values of swept keys and seeds, steps and time."""
    seeds = [key for key in dict.fromkeys(k for m in members for k in m.config) if summary.is_seed(key)]
    seeds = [key for key in seeds if len({str(m.config.get(key)) for m in members}) > 1]
    names = names_of([*keys, *seeds])
    columns = [Column("run"), Column("status")]
    columns += [Column(names[key], tip=key) for key in (*keys, *seeds)]
    columns += [Column("last step", numeric=True), Column("first to last log", numeric=True)]
    columns += [Column("last log, UTC")]
    rows = []
    for run in members:
        seconds = run.logged[1] - run.logged[0] if run.logged else math.nan
        rows.append(
            [
                Cell(run.name),
                Cell(run.status, style="status " + run.status.replace(" ", "-")),
                *(_value(run.config.get(key)) for key in (*keys, *seeds)),
                Cell("–", math.nan) if run.last_step is None else Cell(f"{run.last_step:,}", run.last_step),
                Cell("–" if math.isnan(seconds) else duration(seconds), seconds),
                Cell(moment(run.logged[1]) if run.logged else "–"),
            ]
        )
    return Table(columns, rows, "Runs")


def of_configs(runs: Sequence[Found]) -> Table:
    """Every config key: its value, or the values where runs differ."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    rows = []
    for key in keys:
        values = list(dict.fromkeys(_config_text(run.config[key]) for run in runs if key in run.config))
        more = f" · … {len(values)} values" if len(values) > 12 else ""
        rows.append([Cell(key), Cell(" · ".join(values[:12]) + more, style="varies" if len(values) > 1 else "")])
    return Table([Column("key"), Column("value")], rows, "Config", prose=True)


def of_versions(runs: Sequence[Found]) -> Table | None:
    """What the runs were made with: a column for each different set of versions; None if nothing is recorded."""
    sets: dict[str, list[str]] = {}
    for run in runs:
        for versions in run.versions:
            sets.setdefault(json.dumps(versions, sort_keys=True), []).append(run.name)
    if not sets:
        return None
    found = [json.loads(key) for key in sets]
    heads = [Column("version")]
    if len(sets) > 1:
        together = [
            ", ".join(names[:3]) + (f", … ({len(names)} runs)" if len(names) > 3 else "") for names in sets.values()
        ]
        heads = [Column(names) for names in together]
    names = list(dict.fromkeys(name for run in runs for versions in run.versions for name in versions))
    rows = [[Cell(name), *(Cell(str(versions.get(name, "–"))) for versions in found)] for name in names]
    return Table([Column(""), *heads], rows, "Versions")


def from_markdown(text: str) -> list[Table | str]:
    """An experiment's table.md: its tables, and the text between them, a paragraph each."""
    blocks: list[Table | str] = []
    for chunk in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in chunk.splitlines() if line.strip()]
        prose = " ".join(line.lstrip("# ") for line in lines if not line.startswith("|"))
        if prose:
            blocks.append(_plain(prose))
        table = [_split(line) for line in lines if line.startswith("|")]
        table = [row for row in table if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
        if table:
            blocks.append(_as_table(*table))
    return blocks


def _as_table(header: list[str], *rows: list[str]) -> Table:
    columns = []
    for at, title in enumerate(header):
        known = [row[at] for row in rows if at < len(row) and row[at] not in ("", "–", "-")]
        numeric = bool(known) and all(_leading(cell) is not None for cell in known)
        columns.append(Column(title, numeric=numeric))
    cells = [
        [
            Cell(text, (math.nan if (found := _leading(text)) is None else found) if column.numeric else None)
            for column, text in zip(columns, [*row, *[""] * len(columns)], strict=False)
        ]
        for row in rows
    ]
    return Table(columns, cells, "Table")


def _split(line: str) -> list[str]:
    return [_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def _plain(text: str) -> str:
    return re.sub(r"\*\*|`|\\(?=\|)", "", text)


def _leading(text: str) -> float | None:
    if text.lower() == "nan":
        return math.nan
    match = _NUMBER.match(text)
    return float(match[0].replace("−", "-")) if match else None


# -- cells ----------------------------------------------------------------------------------------------------------


def spread_cells(found: Sequence[Setting], metric: str, choice: Choice) -> list[Cell]:
    """A metric of all settings as mean ± std, the best ones marked; an empty cell where there is no result."""
    spreads = [summary.spread(setting.finished, metric) for setting in found]
    best = summary.best(spreads, summary.direction(metric, choice))
    text = decimals([cell.mean for cell in spreads], [cell.std for cell in spreads])
    cells = []
    for at, (cell, setting) in enumerate(zip(spreads, found, strict=True)):
        partial = f", of {cell.count} runs that have it" if cell.count < len(setting.finished) else ""
        tip = f"{cell.mean:.6g}" + ("" if math.isnan(cell.std) else f" ± {cell.std:.2g}") + partial
        shown = Cell(spread_text(cell, text), cell.mean, tip, "best" if at in best else "")
        cells.append(shown if cell.count else Cell("–", math.nan))
    return cells


def spread_text(cell: Spread, text) -> str:
    return text(cell.mean) + ("" if math.isnan(cell.std) else f" ± {text(cell.std)}")


def decimals(values: Sequence[float], others: Sequence[float] = ()):
    """A function that prints numbers of a column alike: three digits of the largest value, whole numbers as such.

    Args:
      values: of the column.
      others: what is printed beside them; only if these are whole too, no decimals are shown.
    """
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    whole = all(float(value).is_integer() for value in (*finite, *others) if math.isfinite(value))
    if whole and largest < 1e9:
        places = 0
    elif not 1e-3 <= largest < 1e6:
        return lambda value: "nan" if math.isnan(value) else f"{value:.3g}"
    else:
        places = max(0, 2 - math.floor(math.log10(largest)))
    return lambda value: "nan" if math.isnan(value) else f"{value:.{places}f}"


def label(setting: Setting, keys: Sequence[str]) -> str:
    """A setting in few words: "l2_cosine", "cosine_weight=0.1, radius=4", or the names of its runs."""
    if not keys or len(keys) > KEYS:
        names = [member.name for member in setting.members]
        return ", ".join(names[:2]) + (f", … ({len(names)} runs)" if len(names) > 2 else "")
    values = [_cut(setting.values[key]) for key in keys]
    if len(keys) == 1 and not summary.is_number(setting.values[keys[0]]):
        return values[0]
    names = names_of(keys)
    return ", ".join(f"{names[key]}={value}" for key, value in zip(keys, values, strict=True))


def names_of(keys: Sequence[str]) -> dict[str, str]:
    """Keys by as many of their last parts as tell them apart: "optimizer.learning_rate" -> "learning_rate"."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        telling = (end for end in ends if not any(k != key and f".{k}".endswith(f".{end}") for k in keys))
        name = next(telling, key)
        found[key] = ".".join(parts[-2:]) if name == "name" else name  # "name" alone says nothing
    return found


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _metric_column(metric: str, choice: Choice) -> Column:
    group, _, name = metric.rpartition("/")
    sign = summary.direction(metric, choice)
    tip = metric + (f": {_SAID[sign]}" if sign else "")
    return Column(f"{name} {_ARROWS[sign]}".strip(), group, tip, numeric=True)


def _numeric(found: Sequence[Setting], key: str) -> bool:
    return any(summary.is_number(setting.values[key]) for setting in found)


def _value(value: Any) -> Cell:
    if summary.is_number(value):
        return Cell(short(value), float(value), tip=str(value))
    shown = _cut(value)
    tip = "" if value is summary.ABSENT or shown == value else _config_text(value)
    return Cell(shown, math.nan if value is summary.ABSENT else None, tip)


def _cut(value: Any) -> str:
    text = short(value)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


def _config_text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
