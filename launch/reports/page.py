"""The page: one HTML file that holds tables, drawings, figures, styles and a short script.

Nothing is loaded from elsewhere, and the page's own content security policy says so to the browser: images only from
within, no script but the one whose digest it names. What comes from runs is escaped by the template engine.
"""

import base64
import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from launch.reports import tables, views
from launch.reports.metrics import Meaning, Metric
from launch.reports.runs import FAILED, FINISHED, RunRecord
from launch.reports.settings import DEFAULT, MetricChoice, StudyResults, chosen, distinguishing, headline, keys_of

MEGABYTES = 24  # of figures that a page holds
_TEMPLATES = Path(__file__).parent / "templates"


def render(
    title: str, studies: Sequence[StudyResults], *, choice: MetricChoice = DEFAULT, made: float, megabytes: float
) -> str:
    """The HTML of a page made at the time `made`, in seconds; figures beyond so many megabytes are only named.

    Raises:
      ReportError: no metric fits `choice.metrics`.
    """
    runs = [run for results in studies for run in results.study.all_runs]
    if choice.metrics and (keys := keys_of(runs)):
        headline(keys, Metric, choice)  # some study must have one; the others show what they have
    kept, left = set(), megabytes * 1e6
    together = [file for results in studies for file in results.study.figures]
    for file in (*together, *(file for run in runs for file in run.figures)):
        left -= file.stat().st_size
        kept |= {file} if left >= 0 else set()
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, **options)
    style, script = ((_TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        title=title,
        sections=[_section(results, choice, kept) for results in studies],
        made=tables.moment(made),
        style=Markup(style),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(results: StudyResults, choice: MetricChoice, kept: Collection[Path]) -> Mapping[str, Any]:
    """A study as the template reads it."""
    study, keys = results.study, keys_of(results.study.compared)
    if not chosen(keys, choice):
        choice = dataclasses.replace(choice, metrics=())
    first = headline(keys if choice.metrics else distinguishing(results.settings, keys), results.meaning, choice)
    several = bool(study.members and first)
    overview, result_tables = tables.overview(results, first) if several else None, tables.of_study(results)
    titles = [[column.title for column in table.columns] for table in (overview, *result_tables) if table]
    if overview and titles[1:] == titles[:1]:
        result_tables = []  # the overview is the only table
    panels, legend = views.curves(results, first)
    return {
        "study": study,
        "note": results.note,
        "counts": _counts(study.compared),
        "span": _span(study.compared),
        "figures": _figures(study.figures, kept),
        "own": _details(study.own, results.meaning, kept) if study.own else None,
        "members": {run.name: _details(run, results.meaning, kept) for run in study.members},
        "overview": overview,
        "result_tables": result_tables,
        "metrics": tables.all_metrics(results) if keys else None,
        "views": views.sweeps(results, first) if several else [],
        "panels": panels,
        "legend": legend,
        "runs": tables.of_members(study.members, results.swept) if study.members else None,
        "failed": [run for run in study.compared if run.status == FAILED],
        "config": tables.of_configs(study.all_runs),
        "versions": tables.of_versions(study.all_runs),
    }


def _counts(runs: Sequence[RunRecord]) -> str:
    """12 runs: 10 finished, 1 unfinished, 1 failed."""
    by_status = Counter({FINISHED: 0})
    by_status.update(run.status for run in runs)
    if len(runs) == 1:
        return runs[0].status
    if by_status[FINISHED] == len(runs):
        return f"{len(runs)} runs, all finished"
    return f"{len(runs)} runs: " + ", ".join(f"{count} {status}" for status, count in by_status.items())


def _span(runs: Sequence[RunRecord]) -> str:
    """From the first to the last time that any run logged something."""
    times = [time for run in runs for time in run.logged or ()]
    first, last = (tables.moment(side(times)) if times else "" for side in (min, max))
    end = last.removeprefix(first[:11])
    return "" if not times else f"{first} UTC" if first == last else f"{first} to {end} UTC"


def _details(run: RunRecord, meaning: Meaning, kept: Collection[Path]) -> Mapping[str, Any]:
    """The figures of a run, and its earlier results."""
    earlier = tables.of_earlier(run, meaning) if run.earlier else None
    return {**_figures(run.figures, kept, run), "earlier": earlier}


def _figures(files: Sequence[Path], kept: Collection[Path], run: RunRecord | None = None) -> Mapping[str, Any]:
    """Figures of a run, or of several side by side, and the names of those that the page does not hold."""
    shown, left_out = [], []
    for file in files:
        name = file.relative_to(run.path) if run else Path(*file.parts[-2:])
        figure = _figure(file) if file in kept else None
        if figure:
            shown.append({"title": str(name.with_suffix("")).removeprefix("artifacts/"), **figure})
        else:
            left_out.append(f"{run.name}/{name}" if run else str(name))
    return {"figures": shown, "left_out": left_out}


def _figure(file: Path) -> Mapping[str, Any] | None:
    """The picture and the caption of a PNG file; None for a file that is no PNG, whatever it is called."""
    content = file.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            (width, height), caption = image.size, image.info.get("Description", "")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"uri": uri, "width": width, "height": height, "caption": caption}
