"""Report the results of runs as one page: `python -m launch.report DIR [--out FILE] [--tables] [--csv FILE] …`.

DIR is a run directory, a sweep's folder, or a folder of those. The page is a single HTML file: tables of
mean ± standard deviation over seeds, results over what a sweep varies, curves, figures, configs and versions. The same
tables can be printed (Markdown) and written as LaTeX or CSV. Runs are only read: a report can be made while they run.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.files import write_atomically
from launch.processes import commands
from launch.reading import InputError, paths
from launch.reports import formats, page, runs, tables
from launch.reports.settings import MetricChoice, group


@commands.ending()
def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    folder: Path = options.dir
    choice = MetricChoice(tuple(options.metric), tuple(options.higher), tuple(options.lower))
    studies = [group(study, choice, folder) for study in runs.read(folder)]
    title = folder.resolve().name or str(folder.resolve())
    html = page.render(title, studies, choice=choice, made=time.time(), megabytes=options.figures_mb)
    of_studies = [(results.study, tables.of_study(results)) for results in studies]
    texts = {options.out or folder / "report.html": html}
    if options.csv:
        texts[options.csv] = formats.csv_text(studies)
    if options.latex:
        texts[options.latex] = formats.latex(table for _, parts in of_studies for table in parts)
    for file, text in texts.items():
        try:
            write_atomically(file, text)
        except OSError as error:
            why = f"{file} cannot be written ({error.strerror}); choose another place with --out, --csv or --latex"
            raise commands.leave(why, commands.FAILURE) from error
    if options.tables:
        parts = [
            (f"{folder / study.name} ({study.experiment})", formats.markdown(tables_of_study))
            for study, tables_of_study in of_studies
        ]
        print("\n".join(f"{head}\n\n{text}" for head, text in parts if text))
    for problem in dict.fromkeys(p for results in studies for run in results.study.all_runs for p in run.problems):
        print(problem, file=sys.stderr)
    print(*texts, sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.report", description="Report the results of runs.")
    parser.add_argument("dir", type=_path, help="a run directory, a sweep's folder, or a folder of runs")
    parser.add_argument("--out", type=_path, help="the page; DIR/report.html by default")
    parser.add_argument("--tables", action="store_true", help="also print the tables as Markdown")
    parser.add_argument("--csv", type=_path, help="write all results to this file, one line per setting and metric")
    parser.add_argument("--latex", type=_path, help="write the tables to this file as LaTeX, with booktabs")
    several = {"action": "append", "type": _pattern, "default": [], "metavar": "REGEX"}
    parser.add_argument("--metric", **several, help="metrics to show in overviews; may be repeated")
    parser.add_argument("--higher", **several, help="metrics for which higher values are better; may be repeated")
    parser.add_argument("--lower", **several, help="metrics for which lower values are better; may be repeated")
    limit = {"type": float, "default": page.MEGABYTES, "help": "most megabytes of figures in the page (%(default)s)"}
    parser.add_argument("--figures_mb", **limit)
    return parser


def _path(text: str) -> Path:
    try:
        return paths.path(text, "")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error
    return text


if __name__ == "__main__":
    main()
