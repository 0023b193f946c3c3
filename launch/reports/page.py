"""The page: one HTML file in which everything is, tables, drawings, figures, styles and a short script.

Nothing is loaded from elsewhere, and the page's own content security policy says so to the browser: images only from
within, no script but the one whose digest it names. What comes from runs is escaped by the template engine.
"""

import base64
import dataclasses
import hashlib
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from launch.reports import summary, tables, views
from launch.reports.runs import FAILED, FINISHED, Found, Study
from launch.reports.summary import DEFAULT, Choice
from launch.reports.tables import Table

MEGABYTES = 24  # of figures that a page holds
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """A picture within the page.

    Attributes:
      title: where it lay among the artifacts.
      uri: all of it, as a data URI.
      width, height: in pixels.
    """

    title: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """What a page shows of a run that is opened by itself: its own table and figures, its log if it failed."""

    run: Found
    table: Sequence[Table | str]
    figures: Sequence[Figure]
    left_out: Sequence[str]

    @property
    def anything(self) -> bool:
        return bool(self.table or self.figures or self.left_out or self.run.log)


@dataclass(frozen=True)
class Section:
    """A study as the template has it."""

    anchor: str
    title: str
    experiment: str
    counts: str
    span: str
    own: Shown | None
    result: Table | None
    settings: Table | None
    metrics: Table | None
    views: Sequence[views.View]
    curves: views.Curves
    runs: Table | None
    members: Sequence[Shown]
    failed: Sequence[Found]
    config: Table
    versions: Table | None
    unversioned: int
    problems: Sequence[str]


def render(title: str, studies: Sequence[Study], *, choice: Choice = DEFAULT, made: float, megabytes: float) -> str:
    """The page's HTML.

    Args:
      title: of the page, as text.
      studies: from `runs.read`.
      choice: of metrics.
      made: the time that the page gives for its making, in seconds.
      megabytes: how much of figures it may hold; those that do not fit are named instead.

    Raises:
      ReportError: no metric fits `choice.metrics`.
    """
    kept = fitting([file for study in studies for run in study.all_runs for file in run.figures], megabytes * 1e6)
    there = summary.metrics_of(run for study in studies for run in study.all_runs)
    if choice.metrics and there:
        summary.headline(there, choice)  # some study must have one; the others show what they have
    sections = [_section(at, study, title, choice, kept) for at, study in enumerate(studies)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("launch.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = lambda name: environment.loader.get_source(environment, name)[0]
    script = source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html")
    return page.render(
        title=title,
        sections=sections,
        made=tables.moment(made),
        style=Markup(source("page.css")),
        script=Markup(script),
        digest=digest,
    )


def fitting(files: Sequence[Path], size: float) -> set[Path]:
    """The first files that together are no larger than `size` bytes."""
    kept, used = set(), 0
    for file in files:
        used += file.stat().st_size
        if used <= size:
            kept.add(file)
    return kept


def _section(at: int, study: Study, title: str, choice: Choice, kept: Collection[Path]) -> Section:
    compared = study.members or ((study.own,) if study.own else ())
    keys = summary.swept(compared, study.keys)
    found = summary.settings(compared, keys, study.own)
    metrics = summary.metrics_of(compared)
    if not summary.asked_for(metrics, choice):
        choice = dataclasses.replace(choice, metrics=())
    shown = metrics if choice.metrics else summary.telling_apart(found, metrics)
    first = summary.headline(shown, choice) if metrics else []
    several = bool(study.members and metrics)
    with_result = [setting for setting in found if setting.finished]
    own = _shown(study.own, kept) if study.own else None
    versioned = [run for run in study.all_runs if run.versions]
    alone = study.own if study.own and not study.members else None
    return Section(
        anchor=f"study-{at}",
        title=study.name or title,
        experiment=study.experiment,
        counts=_counts(compared),
        span=_span(compared),
        own=own,
        result=tables.of_result(alone, choice) if alone and alone.result else None,
        settings=tables.of_settings(study, found, keys, first, choice) if several else None,
        metrics=tables.all_metrics(study, with_result, keys, choice) if several else None,
        views=views.sweeps(found, keys, first, choice) if several else [],
        curves=views.curves(study, found, keys, first, choice),
        runs=tables.of_members(study.members, keys) if study.members else None,
        members=[shown for member in study.members if (shown := _shown(member, kept)).anything],
        failed=[run for run in compared if run.status == FAILED],
        config=tables.of_configs(study.all_runs),
        versions=tables.of_versions(study.all_runs),
        unversioned=len(study.all_runs) - len(versioned),
        problems=[problem for run in study.all_runs for problem in run.problems],
    )


def _counts(found: Sequence[Found]) -> str:
    """12 runs: 10 finished, 1 unfinished, 1 failed."""
    if len(found) == 1:
        return found[0].status
    by_status: dict[str, int] = dict.fromkeys([FINISHED], 0)
    for run in found:
        by_status[run.status] = by_status.get(run.status, 0) + 1
    if by_status[FINISHED] == len(found):
        return f"{len(found)} runs, all finished"
    return f"{len(found)} runs: " + ", ".join(f"{count} {status}" for status, count in by_status.items())


def _span(found: Sequence[Found]) -> str:
    """From the first to the last time that any run logged something."""
    times = [time for run in found if run.logged for time in run.logged]
    if not times:
        return ""
    first, last = tables.moment(min(times)), tables.moment(max(times))
    if first == last:
        return f"{first} UTC"
    end = last.removeprefix(first[:11]) if last[:11] == first[:11] else last
    return f"{first} to {end} UTC"


def _shown(run: Found, kept: Collection[Path]) -> Shown:
    figures, left_out = [], []
    for file in run.figures:
        name = file.relative_to(run.path / "artifacts")
        figure = read_figure(file, str(name.with_suffix(""))) if file in kept else None
        if figure:
            figures.append(figure)
        else:
            left_out.append(f"{run.name}/artifacts/{name}")
    return Shown(run, tables.from_markdown(run.table), figures, left_out)


def read_figure(file: Path, title: str) -> Figure | None:
    """A PNG file's picture; None for what is no PNG, whatever it is called."""
    content = file.read_bytes()
    if not content.startswith(_PNG) or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return Figure(title, "data:image/png;base64," + base64.b64encode(content).decode(), width, height)
