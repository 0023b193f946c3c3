"""Tables of results as Markdown, LaTeX and CSV."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from launch.reports import tables
from launch.reports.settings import StudyResults
from launch.reports.tables import ReportTable

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "…": r"\dots{}"}
    | {"<": "$<$", ">": "$>$", "−": "$-$", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$"}
    | {"≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$", "φ": r"$\phi$", "ε": r"$\epsilon$", "α": r"$\alpha$"}
    | {"β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "σ": r"$\sigma$", "τ": r"$\tau$"}
)
CSV_FIELDS = (
    *("study", "experiment", "table", "condition", "row", "setting", "key", "title", "unit", "direction"),
    *("mean", "std", "count", "runs", "values"),
)


def markdown(report_tables: Iterable[ReportTable]) -> str:
    """Tables in Markdown, each under its title, columns aligned for a terminal, best values in bold."""
    parts = []
    for table in report_tables:
        texts = _texts(table, "**{}**", lambda text: text.replace("\\", "\\\\").replace("|", "\\|"))
        widths = [max(3, *map(len, column)) for column in zip(*texts, strict=True)]
        places = [f"{'>' if c.numeric else '<'}{width}" for c, width in zip(table.columns, widths, strict=True)]
        rules = ["-" * (w - c.numeric) + ":" * c.numeric for c, w in zip(table.columns, widths, strict=True)]
        rows = [[f"{text:{place}}" for text, place in zip(row, places, strict=True)] for row in texts]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:])]
        parts.append("\n".join([*([f"{table.name}\n"] if table.name else []), *lines]) + "\n")
    return "\n".join(parts)


def latex(report_tables: Iterable[ReportTable]) -> str:
    """Tables in LaTeX for the package booktabs, each a tabular under a comment with its title, best values in bold."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for table in report_tables:
        alignment = "".join("r" if column.numeric else "l" for column in table.columns)
        head, *rows = (
            " & ".join(row) + r" \\" for row in _texts(table, r"\textbf{{{}}}", lambda text: text.translate(_LATEX))
        )
        title = [f"% {' '.join(table.name.split())}"] if table.name else []
        begin = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule"]
        parts.append("\n".join([*title, *begin, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n")
    return "\n".join(parts)


def _texts(table: ReportTable, bold: str, escaped: Callable[[str], str]) -> list[list[str]]:
    """The head and the rows of a table, without line breaks."""
    clean = lambda text: escaped(" ".join(text.split()))
    shown = lambda cell: bold.format(clean(cell.text)) if "best" in cell.style.split() else clean(cell.text)
    return [[clean(column.title) for column in table.columns], *([shown(cell) for cell in row] for row in table.rows)]


def csv_text(studies: Sequence[StudyResults]) -> str:
    """All results of some studies, a line per setting and metric, numbers in full.

    Columns: those of `CSV_FIELDS`, with the values of all runs as JSON, and one per swept config key.
    """
    swept = dict.fromkeys(f"config.{key}" for results in studies for key in results.swept)
    out = io.StringIO()
    writer = csv.DictWriter(out, [*CSV_FIELDS, *swept], restval="", lineterminator="\n")
    writer.writeheader()
    for results in studies:
        writer.writerows(_csv_lines(results))
    return out.getvalue()


def _csv_lines(results: StudyResults) -> Iterator[Mapping[str, object]]:
    study = results.study
    name = study.name or (study.own.name if study.own else "")
    number = lambda value: "" if math.isnan(value) else repr(value)
    written = lambda value: "" if value is None else value if isinstance(value, str) else json.dumps(value)
    for table in tables.collect(results, details=True):
        for line in table.lines:
            label = line.setting.label if line.setting and len(results.settings) > 1 else ""
            config = {f"config.{key}": written(v) for key, v in (line.setting.values if line.setting else {}).items()}
            for heading, key in line.keys.items():
                metric, spread = results.meaning(key), line.spreads[heading]
                place = (name, study.experiment, table.title, line.condition, line.row, label)
                meaning = (key, metric.title, metric.unit, metric.direction)
                values = json.dumps([value if math.isfinite(value) else None for value in spread.values])
                statistics = (number(spread.mean), number(spread.std), spread.count, spread.total, values)
                if spread.total:
                    yield dict(zip(CSV_FIELDS, (*place, *meaning, *statistics), strict=True)) | config
