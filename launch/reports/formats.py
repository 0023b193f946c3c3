"""Tables of results as Markdown, LaTeX and CSV."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from launch.reports import tables
from launch.reports.metrics import Titles
from launch.reports.settings import StudyResults
from launch.reports.tables import ReportTable

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "…": r"\dots{}", "×": r"$\times$"},
    **{"−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$", "φ": r"$\phi$", "ε": r"$\epsilon$"},
    **{"α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "σ": r"$\sigma$", "τ": r"$\tau$"},
}
CSV_FIELDS = (
    *("study", "experiment", "table", "condition", "row", "setting", "key", "title", "unit", "direction"),
    *("mean", "std", "count", "runs", "values"),
)


def markdown(report_tables: Iterable[ReportTable]) -> str:
    """Tables in Markdown, each under its title, columns aligned for a terminal, best values in bold."""
    parts = []
    for table in report_tables:
        texts = [[_markdown(column.title) for column in table.columns]]
        texts += [[_bold(cell, "**{}**", _markdown) for cell in row] for row in table.rows]
        widths = [max(3, *map(len, column)) for column in zip(*texts, strict=True)]
        rules = [
            "-" * (width - 1) + ":" if c.numeric else "-" * width
            for c, width in zip(table.columns, widths, strict=True)
        ]
        lines = [texts[0], rules, *texts[1:]]
        title = [f"{table.name}\n"] if table.name else []
        parts.append("\n".join([*title, *(_row(line, widths, table.columns) for line in lines)]) + "\n")
    return "\n".join(parts)


def _row(texts: Sequence[str], widths: Sequence[int], columns: Sequence[tables.Column]) -> str:
    padded = [
        text.rjust(width) if column.numeric else text.ljust(width)
        for text, width, column in zip(texts, widths, columns, strict=True)
    ]
    return f"| {' | '.join(padded)} |"


def latex(report_tables: Iterable[ReportTable]) -> str:
    """Tables in LaTeX for the package booktabs, each a tabular under a comment with its title, best values in bold."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for table in report_tables:
        alignment = "".join("r" if column.numeric else "l" for column in table.columns)
        head = " & ".join(_latex(column.title) for column in table.columns)
        rows = [" & ".join(_bold(cell, r"\textbf{{{}}}", _latex) for cell in row) + r" \\" for row in table.rows]
        title = " ".join(table.name.split())
        lines = [
            *([f"% {title}"] if title else []),
            *(rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head + r" \\", r"\midrule"),
            *(*rows, r"\bottomrule", r"\end{tabular}"),
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def csv_text(studies: Sequence[StudyResults]) -> str:
    """All results of some studies, a line per setting and metric, numbers in full.

    Columns: those of `CSV_FIELDS`, with the values of all runs as JSON, and one per swept config key.
    """
    swept = list(dict.fromkeys(f"config.{key}" for results in studies for key in results.swept))
    out = io.StringIO()
    writer = csv.DictWriter(out, [*CSV_FIELDS, *swept], restval="", lineterminator="\n")
    writer.writeheader()
    for results in studies:
        writer.writerows(_csv_lines(results))
    return out.getvalue()


def _csv_lines(results: StudyResults) -> Iterable[Mapping[str, object]]:
    study = results.study
    name = study.name or (study.own.name if study.own else "")
    for table in tables.collect(results.settings, results.meaning, details=True):
        for line in table.lines:
            values = line.setting.values if line.setting else {}
            for heading, key in line.keys.items():
                metric, spread = results.meaning(key), line.spreads[heading]
                if not spread.total:
                    continue
                yield {
                    **{"study": name, "experiment": study.experiment, "table": table.title},
                    **{"condition": line.condition, "row": line.row, "key": key, "title": metric.title},
                    **{"setting": line.setting.label if line.setting and len(results.settings) > 1 else ""},
                    **{"unit": metric.unit, "direction": metric.direction},
                    **{"mean": _number(spread.mean), "std": _number(spread.std)},
                    **{"count": spread.count, "runs": spread.total},
                    **{"values": json.dumps([value if math.isfinite(value) else None for value in spread.values])},
                    **{f"config.{swept}": _value(value) for swept, value in values.items()},
                }


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _value(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bold(cell: tables.Cell, style: str, escaped: Titles) -> str:
    text = escaped(cell.text)
    return style.format(text) if "best" in cell.style.split() else text


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
