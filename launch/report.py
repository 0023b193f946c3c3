"""Show what came out of runs, as one page: `python -m launch.report DIR [--out FILE] [--tables] [--csv FILE] …`.

DIR is a run directory, a sweep's folder, or a folder of such. The page is a single HTML file: tables of
mean ± standard deviation over seeds, results over what a sweep varies, curves, figures, configs and versions. The same
tables can be printed (Markdown) and written as LaTeX or CSV. Runs are only read: a report can be made while they go on.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.files import write_atomically
from launch.reports import formats, page, runs, tables
from launch.reports.records import ReportError, RunRecord
from launch.reports.settings import DEFAULT, MetricChoice, StudyResults, group
from launch.sweeps.members import SweepError


@dataclass(frozen=True)
class Report:
    """What a folder of runs holds, ready to be shown in several forms.

    Attributes:
      folder: what was read.
      studies: runs side by side, grouped into settings.
      choice: of metrics.
    """

    folder: Path
    studies: Sequence[StudyResults]
    choice: MetricChoice = DEFAULT

    @classmethod
    def of(cls, folder: Path, choice: MetricChoice = DEFAULT) -> "Report":
        """Read a folder.

        Raises:
          ReportError: there are no runs.
          SweepError: a sweep.json is damaged.
        """
        return cls(folder, [group(study, choice, folder) for study in runs.read(folder)], choice)

    @property
    def records(self) -> list[RunRecord]:
        """All runs, each once."""
        return list({run.path: run for results in self.studies for run in results.study.all_runs}.values())

    @property
    def problems(self) -> list[str]:
        """What could not be read, a sentence each; the page says it too."""
        return [problem for run in self.records for problem in run.problems]

    def html(self, megabytes: float = page.MEGABYTES) -> str:
        """The page.

        Args:
          megabytes: of figures that the page may hold.

        Raises:
          ReportError: no metric fits the choice.
        """
        title = self.folder.resolve().name or str(self.folder.resolve())
        return page.render(title, self.studies, choice=self.choice, made=time.time(), megabytes=megabytes)

    def markdown(self) -> str:
        """The tables of all studies that have results, each under its folder and experiment."""
        parts = []
        for results in self.studies:
            if text := formats.markdown(tables.of_study(results)):
                parts.append(f"{self.folder / results.study.name} ({results.study.experiment})\n\n{text}")
        return "\n".join(parts)

    def latex(self) -> str:
        """The same tables in LaTeX."""
        return formats.latex([table for results in self.studies for table in tables.of_study(results)])

    def csv(self) -> str:
        """The same results and those of less important metrics as CSV."""
        return formats.csv_text(self.studies)


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    choice = MetricChoice(tuple(options.metric), tuple(options.higher), tuple(options.lower))
    try:
        report = Report.of(options.dir, choice)
        texts = {options.out or options.dir / "report.html": report.html(options.figures_mb)}
    except (ReportError, SweepError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    texts |= {options.csv: report.csv()} if options.csv else {}
    texts |= {options.latex: report.latex()} if options.latex else {}
    for file, text in texts.items():
        try:
            write_atomically(file, text)
        except OSError as error:
            sys.exit(f"{file} cannot be written ({error}); give another place with --out, --csv or --latex")
    if options.tables:
        print(report.markdown())
    for problem in report.problems:
        print(problem, file=sys.stderr)
    for file in texts:
        print(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.report", description="Show what came out of runs.")
    parser.add_argument("dir", type=Path, help="a run directory, a sweep's folder, or a folder of runs")
    parser.add_argument("--out", type=Path, help="the page; DIR/report.html by default")
    parser.add_argument("--tables", action="store_true", help="print the tables as Markdown, too")
    parser.add_argument("--csv", type=Path, help="write all results to this file, a line per setting and metric")
    parser.add_argument("--latex", type=Path, help="write the tables to this file, for the package booktabs")
    several = {"action": "append", "type": _pattern, "default": [], "metavar": "REGEX"}
    parser.add_argument("--metric", **several, help="metrics that overviews show; may be repeated")
    parser.add_argument("--higher", **several, help="metrics of which higher values are better; may be repeated")
    parser.add_argument("--lower", **several, help="metrics of which lower values are better; may be repeated")
    parser.add_argument(
        "--figures_mb",
        type=float,
        default=page.MEGABYTES,
        help="megabytes of figures in the page at most (%(default)s)",
    )
    return parser


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error
    return text


if __name__ == "__main__":
    main()
