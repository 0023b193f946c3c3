"""The tables of a report besides results: earlier results, runs, configs and versions."""

import json
import math
import time
from collections.abc import Sequence

from launch.reports.metrics import Meaning
from launch.reports.numbers import config_text, spread
from launch.reports.runs import RunRecord
from launch.reports.settings import is_seed, names_of
from launch.reports.tables import Cell, Column, ReportTable, ResultLine, ResultTable, key_columns, shown, value_cell
from launch.run import difference


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
        if run.logged:
            seconds = run.logged[1] - run.logged[0]
            rows.append([*row, Cell(duration(seconds), seconds), Cell(moment(run.logged[1]))])
        else:
            rows.append([*row, Cell("–", math.nan), Cell("–")])
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
