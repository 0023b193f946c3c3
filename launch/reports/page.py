"""The page: one HTML file that holds tables, drawings, figures, styles and a short script.

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

from launch.reports import listings, metrics, tables, views
from launch.reports.metrics import Meaning
from launch.reports.records import FAILED, FINISHED, RunRecord
from launch.reports.settings import DEFAULT, MetricChoice, StudyResults, chosen, distinguishing, headline, keys_of
from launch.reports.tables import ReportTable
from launch.reports.views import CurvePanels, SweepView

MEGABYTES = 24  # of figures that a page holds
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """A picture within the page.

    Attributes:
      title: where it lies in the run directory.
      caption: its description, as the file has it; "" for none.
      uri: all of it, as a data URI.
      width, height: in pixels.
    """

    title: str
    caption: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class EarlierResults:
    """The results of a run before its config was changed, and in which fields it differed: (number, lines)."""

    table: ReportTable
    changes: Sequence[tuple[int, Sequence[str]]]


@dataclass(frozen=True)
class RunDetails:
    """What a page shows of one run: its figures, its earlier results, its log if it failed."""

    run: RunRecord
    figures: Sequence[Figure]
    left_out: Sequence[str]
    earlier: EarlierResults | None

    @property
    def anything(self) -> bool:
        return bool(self.figures or self.left_out or self.earlier)


@dataclass(frozen=True)
class Section:
    """A study as the template reads it."""

    anchor: str
    title: str
    experiment: str
    counts: str
    span: str
    own: RunDetails | None
    overview: ReportTable | None
    result_tables: Sequence[ReportTable]
    metrics: ReportTable | None
    views: Sequence[SweepView]
    curves: CurvePanels
    runs: ReportTable | None
    members: Sequence[RunDetails]
    failed: Sequence[RunRecord]
    config: ReportTable
    versions: ReportTable | None
    unversioned: int
    note: str
    problems: Sequence[str]


def render(
    title: str, studies: Sequence[StudyResults], *, choice: MetricChoice = DEFAULT, made: float, megabytes: float
) -> str:
    """The page's HTML.

    Args:
      title: of the page, as text.
      studies: from `launch.reports.settings.group`.
      choice: of metrics.
      made: when the page was made, in seconds.
      megabytes: size of figures that it may hold; figures that do not fit are named instead.

    Raises:
      ReportError: no metric fits `choice.metrics`.
    """
    all_runs = [run for results in studies for run in results.study.all_runs]
    kept = fitting([file for run in all_runs for file in run.figures], megabytes * 1e6)
    keys = keys_of(all_runs)
    if choice.metrics and keys:
        headline(keys, metrics.neutral, choice)  # some study must have one; the others show what they have
    sections = [_section(at, results, title, choice, kept) for at, results in enumerate(studies)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("launch.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_template(environment, name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html")
    return page.render(
        title=title,
        sections=sections,
        made=listings.moment(made),
        style=Markup(style),
        script=Markup(script),
        digest=digest,
    )


def _template(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def fitting(files: Sequence[Path], size: float) -> set[Path]:
    """The first files that together are no larger than `size` bytes."""
    kept, used = set(), 0
    for file in files:
        used += file.stat().st_size
        if used <= size:
            kept.add(file)
    return kept


def _section(at: int, results: StudyResults, title: str, choice: MetricChoice, kept: Collection[Path]) -> Section:
    study, settings, meaning = results.study, results.settings, results.meaning
    keys = keys_of(study.compared)
    if not chosen(keys, choice):
        choice = dataclasses.replace(choice, metrics=())
    candidates = keys if choice.metrics else distinguishing(settings, keys)
    first = headline(candidates, meaning, choice) if keys else []
    several = bool(study.members and keys)
    result_tables = tables.of_study(results)
    overview = tables.overview(settings, results.swept, first, meaning) if several and first else None
    if overview and [table.columns[-len(first) :] for table in result_tables] == [overview.columns[-len(first) :]]:
        result_tables = []  # the overview is the only table
    details = [_details(member, meaning, kept) for member in study.members]
    return Section(
        anchor=f"study-{at}",
        title=study.name or title,
        experiment=study.experiment,
        counts=_counts(study.compared),
        span=_span(study.compared),
        own=_details(study.own, meaning, kept) if study.own else None,
        overview=overview,
        result_tables=result_tables,
        metrics=listings.all_metrics(results) if keys else None,
        views=views.sweeps(results, first) if several else [],
        curves=views.curves(results, first),
        runs=listings.of_members(study.members, results.swept) if study.members else None,
        members=[member for member in details if member.anything],
        failed=[run for run in study.compared if run.status == FAILED],
        config=listings.of_configs(study.all_runs),
        versions=listings.of_versions(study.all_runs),
        unversioned=sum(not run.versions for run in study.all_runs),
        note=results.note,
        problems=[problem for run in study.all_runs for problem in run.problems],
    )


def _counts(runs: Sequence[RunRecord]) -> str:
    """12 runs: 10 finished, 1 unfinished, 1 failed."""
    if len(runs) == 1:
        return runs[0].status
    by_status: dict[str, int] = dict.fromkeys([FINISHED], 0)
    for run in runs:
        by_status[run.status] = by_status.get(run.status, 0) + 1
    if by_status[FINISHED] == len(runs):
        return f"{len(runs)} runs, all finished"
    return f"{len(runs)} runs: " + ", ".join(f"{count} {status}" for status, count in by_status.items())


def _span(runs: Sequence[RunRecord]) -> str:
    """From the first to the last time that any run logged something."""
    times = [time for run in runs if run.logged for time in run.logged]
    if not times:
        return ""
    first, last = listings.moment(min(times)), listings.moment(max(times))
    if first == last:
        return f"{first} UTC"
    end = last.removeprefix(first[:11]) if last[:11] == first[:11] else last
    return f"{first} to {end} UTC"


def _details(run: RunRecord, meaning: Meaning, kept: Collection[Path]) -> RunDetails:
    figures, left_out = [], []
    for file in run.figures:
        name = file.relative_to(run.path)
        figure = read_figure(file, str(name.with_suffix("")).removeprefix("artifacts/")) if file in kept else None
        if figure:
            figures.append(figure)
        else:
            left_out.append(f"{run.name}/{name}")
    earlier = EarlierResults(*listings.of_earlier(run, meaning)) if run.earlier else None
    return RunDetails(run, figures, left_out, earlier)


def read_figure(file: Path, title: str) -> Figure | None:
    """The picture and the caption of a PNG file; None for a file that is no PNG, whatever it is called."""
    content = file.read_bytes()
    if not content.startswith(_PNG) or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return Figure(title, _description(content), uri, width, height)


def _description(content: bytes) -> str:
    """The text "Description" of a PNG file, as matplotlib writes it before the pixels; "" for none."""
    at = len(_PNG)
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        name, _, text = content[at + 8 : at + 8 + length].partition(b"\0")
        if kind == b"tEXt" and name == b"Description":
            return text.decode("latin-1")
        if kind == b"iTXt" and name == b"Description" and text[:1] == b"\0":  # not compressed
            return text[2:].split(b"\0", 2)[-1].decode(errors="replace")
        if kind == b"IDAT":
            return ""
        at += 12 + length
    return ""
