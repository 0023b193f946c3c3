"""The tables of a report besides results: all metrics, earlier results, runs, configs and versions."""

import json
import math
import time
from collections.abc import Sequence

from launch.reports.metrics import Meaning
from launch.reports.numbers import config_text, decimals
from launch.reports.records import RunRecord
from launch.reports.settings import Setting, StudyResults, is_seed, keys_of, names_of
from launch.reports.tables import Cell, Column, ReportTable, metric_cell, overview, setting_cells, value_cell
from launch.run import difference

_SIDE_BY_SIDE = 8  # settings that have room as columns


def all_metrics(results: StudyResults) -> ReportTable:
    """Every metric of every setting that has a result, whichever way round there is room for."""
    settings = [setting for setting in results.settings if setting.finished]
    keys = keys_of(run for setting in settings for run in setting.finished)
    if len(settings) > _SIDE_BY_SIDE:
        return overview(settings, results.swept, keys, results.meaning, "All metrics")
    return _of_settings(settings, keys, results.meaning)


def _of_settings(settings: Sequence[Setting], keys: Sequence[str], meaning: Meaning) -> ReportTable:
    """A row per metric, a column per setting."""
    several = len(settings) > 1 or any(len(setting.members) > 1 for setting in settings)
    heads = [Column(setting.label if several else "value", numeric=True) for setting in settings]
    rows = [[metric_cell(key, meaning(key)), *setting_cells(settings, key, meaning(key))] for key in keys]
    return ReportTable([Column("metric"), *heads], rows, "All metrics")


def of_earlier(run: RunRecord, meaning: Meaning) -> tuple[ReportTable, list[tuple[int, list[str]]]]:
    """The results of a run before its config was changed beside the one that it has now.

    Returns:
      A row per metric, a column per result, the newest first; and for each earlier result its number and the config
      fields in which it differed, a line each.
    """
    earlier = run.earlier[::-1]
    results = [*([run.result] if run.result else []), *(entry.result for entry in earlier)]
    heads = [*(["now"] if run.result else []), *(f"earlier result {entry.number}" for entry in earlier)]
    rows = []
    for key in dict.fromkeys(key for result in results for key in result):
        values = [result.get(key, math.nan) for result in results]
        text = decimals(values, digits=meaning(key).digits)
        cells = [
            Cell(text(value) if key in result else "–", value) for value, result in zip(values, results, strict=True)
        ]
        rows.append([metric_cell(key, meaning(key)), *cells])
    changes = [(entry.number, difference(entry.config, run.config)) for entry in earlier]
    return ReportTable(
        [Column("metric"), *(Column(head, numeric=True) for head in heads)], rows, "Earlier results"
    ), changes


def of_members(members: Sequence[RunRecord], keys: Sequence[str]) -> ReportTable:
    """A row per run: how far it is, its values of swept keys and seeds, steps and time."""
    seeds = [key for key in dict.fromkeys(k for m in members for k in m.config) if is_seed(key)]
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
                *(value_cell(run.config.get(key)) for key in (*keys, *seeds)),
                Cell("–", math.nan) if run.last_step is None else Cell(f"{run.last_step:,}", run.last_step),
                Cell("–" if math.isnan(seconds) else duration(seconds), seconds),
                Cell(moment(run.logged[1]) if run.logged else "–"),
            ]
        )
    return ReportTable(columns, rows, "Runs")


def of_configs(runs: Sequence[RunRecord]) -> ReportTable:
    """A row per config key: its value, or the values where runs differ."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    rows = []
    for key in keys:
        values = list(dict.fromkeys(config_text(run.config[key]) for run in runs if key in run.config))
        more = f" · … {len(values)} values" if len(values) > 12 else ""
        rows.append([Cell(key), Cell(" · ".join(values[:12]) + more, style="varies" if len(values) > 1 else "")])
    return ReportTable([Column("key"), Column("value")], rows, "Config", prose=True)


def of_versions(runs: Sequence[RunRecord]) -> ReportTable | None:
    """What the runs were made with, a column per different set of versions; None if nothing is recorded."""
    sets: dict[str, list[str]] = {}
    for run in runs:
        for versions in run.versions:
            sets.setdefault(json.dumps(versions, sort_keys=True), []).append(run.name)
    if not sets:
        return None
    different = [json.loads(key) for key in sets]
    heads = [Column("version")]
    if len(sets) > 1:
        together = [
            ", ".join(names[:3]) + (f", … ({len(names)} runs)" if len(names) > 3 else "") for names in sets.values()
        ]
        heads = [Column(names) for names in together]
    names = list(dict.fromkeys(name for run in runs for versions in run.versions for name in versions))
    rows = [[Cell(name), *(Cell(str(versions.get(name, "–"))) for versions in different)] for name in names]
    return ReportTable([Column(""), *heads], rows, "Versions")


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
