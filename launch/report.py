"""One page that shows what came out: `python -m launch.report DIR [--out FILE]`.

DIR is a run directory, a comparison, a sweep's folder, or a folder of such. The page is a single HTML file: tables of
mean ± standard deviation over seeds, curves, what a sweep found over what it swept, the experiments' own tables and
figures, configs and versions. It reads and disturbs nothing: it can be made while runs are going on.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.files import write_atomically
from launch.reports import page, runs
from launch.reports.runs import Found, ReportError
from launch.reports.summary import DEFAULT, Choice
from launch.sweeps.members import SweepError


def write(
    folder: Path, out: Path, *, choice: Choice = DEFAULT, megabytes: float = page.MEGABYTES
) -> tuple[list[Found], list[str]]:
    """Make the page of a folder of runs.

    Args:
      folder: see above.
      out: the file to write.
      choice: of metrics.
      megabytes: of figures that the page may hold.

    Returns:
      The runs that lie in no other run, and what could not be read, a sentence each; the page says it too.

    Raises:
      ReportError: there are no runs, or no metric fits `choice`.
      SweepError: a sweep.json is damaged.
      OSError: the page cannot be written.
    """
    studies = runs.read(folder)
    title = folder.resolve().name or str(folder.resolve())
    content = page.render(title, studies, choice=choice, made=time.time(), megabytes=megabytes)
    write_atomically(out, content)
    found = list({run.path: run for study in studies for run in study.all_runs}.values())
    paths = {run.path for run in found}
    outer = [run for run in found if paths.isdisjoint(run.path.parents)]
    return outer, [problem for run in found for problem in run.problems]


def main(argv: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(argv)
    out = given.out or given.dir / "report.html"
    choice = Choice(tuple(given.metric), tuple(given.higher), tuple(given.lower))
    try:
        found, problems = write(given.dir, out, choice=choice, megabytes=given.figures_mb)
    except (ReportError, SweepError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        sys.exit(f"{out} cannot be written ({error}); give another place with --out")
    for run in found if given.tables else ():
        if run.table:
            print(f"{run.path}\n\n{run.table}")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.report", description=__doc__.partition("\n")[0])
    parser.add_argument("dir", type=Path, help="a run directory, a sweep's folder, or a folder of runs")
    parser.add_argument("--out", type=Path, help="the file to write; DIR/report.html if it is not given")
    parser.add_argument("--tables", action="store_true", help="print the tables that the experiments have left, too")
    several = {"action": "append", "type": _pattern, "default": [], "metavar": "REGEX"}
    parser.add_argument("--metric", **several, help="metrics that tables and sweeps show first; may be repeated")
    parser.add_argument("--higher", **several, help="metrics of which higher is better; may be repeated")
    parser.add_argument("--lower", **several, help="metrics of which lower is better; may be repeated")
    parser.add_argument(
        "--figures_mb", type=float, default=page.MEGABYTES, help="of figures in the page at most (%(default)s)"
    )
    return parser


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


if __name__ == "__main__":
    main()
