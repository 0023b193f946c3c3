"""Markdown, LaTeX and CSV: read back, they hold the same numbers."""

import csv
import io
import json
import math
import re
import statistics

import pytest

from launch.reports import formats, settings, tables
from launch.reports.records import FINISHED, RunRecord
from launch.reports.runs import Study
from launch.reports.tables import Cell, Column, ReportTable

EXPERIMENT = "tests.launch.reports.described"
VALUES = {(ridge, seed): 0.1 / 3 * (ridge + seed) for ridge in (1.0, 2.0) for seed in (0, 1, 2)}
TABLE = ReportTable(
    [Column(""), Column("WGA ↑", numeric=True), Column("a_b|c (%)", numeric=True)],
    [
        [Cell("φ & RTD"), Cell("0.50 ± 0.01", 0.5, style="best"), Cell("1|2", 1.0)],
        [Cell("50 % #1\nx \\ {y} ~^"), Cell("0.25 ± 0.02", 0.25), Cell("none (0 of 5)", math.nan)],
    ],
    "50 % of\nall",
)


def study(name="s"):
    members = tuple(
        RunRecord(
            f"{ridge}-{seed}",
            None,
            FINISHED,
            {"experiment": EXPERIMENT, "seed": seed, "ridge": ridge, "words": 'a,"b"\nc' if ridge > 1 else None},
            {"tldr/wga": value, "erm/wga": 0.5, "best_step": 3.0, "scenes/rtd/recall_at_1": math.nan},
        )
        for (ridge, seed), value in VALUES.items()
    )
    return settings.group(Study(name, EXPERIMENT, None, members))


def test_csv_holds_every_number_in_full():
    rows = list(csv.DictReader(io.StringIO(formats.csv_text([study(), study("other")]))))
    assert list(rows[0]) == [*formats.CSV_FIELDS, "config.ridge", "config.words"]
    assert [row["study"] for row in rows] == ["s"] * (len(rows) // 2) + ["other"] * (len(rows) // 2)
    rows = rows[: len(rows) // 2]
    wga = [row for row in rows if row["key"] == "tldr/wga"]
    assert [(row["config.ridge"], row["config.words"]) for row in wga] == [("1.0", ""), ("2.0", 'a,"b"\nc')]
    for row, ridge in zip(wga, (1.0, 2.0), strict=True):
        values = [VALUES[ridge, seed] for seed in range(3)]
        assert json.loads(row["values"]) == values
        assert float(row["mean"]) == pytest.approx(statistics.fmean(values), rel=1e-15)
        assert float(row["std"]) == pytest.approx(statistics.stdev(values), rel=1e-12)
        assert (row["count"], row["runs"], row["table"], row["row"]) == ("3", "3", "Methods", "TLDR")
        assert (row["title"], row["direction"], row["unit"]) == ("WGA", "up", "")
    (erm,) = [row for row in rows if row["key"] == "erm/wga"]  # the same in all settings
    assert (erm["setting"], erm["config.ridge"], erm["count"], erm["mean"]) == ("", "", "3", "0.5")
    assert {row["key"] for row in rows} >= {"best_step"}  # details too
    missing = next(row for row in rows if row["key"] == "scenes/rtd/recall_at_1")
    assert (missing["mean"], missing["std"], missing["count"], missing["runs"]) == ("", "", "0", "3")
    assert json.loads(missing["values"]) == [None] * 3 and missing["unit"] == "%"


def test_latex_can_be_read_back():
    text = formats.latex([TABLE])
    assert text.startswith("% needs \\usepackage{booktabs}\n")
    assert "\n% 50 % of all\n\\begin{tabular}{lrr}\n\\toprule\n" in text
    body = re.search(r"\\midrule\n(.*)\\bottomrule", text, re.DOTALL)[1]
    rows = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body.splitlines()]
    assert rows == [
        [r"$\phi$ \& RTD", r"\textbf{0.50 $\pm$ 0.01}", "1|2"],
        [
            r"50 \% \#1 x \textbackslash{} \{y\} \textasciitilde{}\textasciicircum{}",
            r"0.25 $\pm$ 0.02",
            "none (0 of 5)",
        ],
    ]
    assert r" & WGA $\uparrow$ & a\_b|c (\%) \\" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_markdown_can_be_read_back():
    text = formats.markdown([TABLE, TABLE])
    first = text.split("\n\n")
    assert first[0] == "50 % of\nall"
    lines = first[1].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert rows[0] == ["", "WGA ↑", "a_b\\|c (%)"]
    assert [set(cell) for cell in rows[1]] == [{"-"}, {"-", ":"}, {"-", ":"}]
    assert rows[2] == ["φ & RTD", "**0.50 ± 0.01**", "1\\|2"]
    assert rows[3] == ["50 % #1 x \\\\ {y} ~^", "0.25 ± 0.02", "none (0 of 5)"]
    assert len(set(map(len, lines))) == 1  # aligned


def test_the_formats_show_the_same_tables():
    shown = tables.of_study(study())
    cells = [cell.text for table in shown for row in table.rows for cell in row if cell.sort not in ("", "nan")]
    assert len(cells) == 9
    for text in (formats.markdown(shown), formats.latex(shown).replace("$\\pm$", "±")):
        assert all(cell in text for cell in cells)
