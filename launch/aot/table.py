"""Costs of compiled programs as a table, and as JSON."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.aot.cost import Cost
from launch.aot.hlo import Collective
from launch.reports import formats
from launch.reports.tables import Cell, Column, ReportTable

_TITLES = (
    *("program", "topology", "calls", "fits", "memory, GB", "arguments", "outputs", "temporaries", "code", "GFLOP"),
    *("moved, GB", "collectives", "estimate, ms", "roofline, ms", "bound by", "compiled in, s"),
)
_TEXTS = {"program", "topology", "fits", "collectives", "bound by"}
NOTES = (
    "Everything is of one device and one call, by the compiler for this topology. Outputs are those that are not "
    "written over an argument. GFLOP counts matrix products and convolutions. What is moved to and from memory and the "
    "compiler's estimate take a loop for one pass through it. The roofline is the largest of operations at the peak "
    "rate in bfloat16, bytes moved, and bytes exchanged in rings, none of which waits for another.",
    "*: a loop whose length is not known, such as one until convergence, counts once.",
)


@dataclass(frozen=True)
class CompiledRow:
    """A program with its cost for a topology; for `calls` see `launch.training.program.Pass`."""

    program: str
    topology: str
    calls: int
    cost: Cost


def text(rows: Sequence[CompiledRow]) -> str:
    """The table in Markdown; below it the largest arrays of what does not fit, and how to read it."""
    columns = [Column(title, numeric=title not in _TEXTS) for title in _TITLES]
    cells = [[Cell(cell) for cell in _cells(row)] for row in rows]
    parts = [formats.markdown([ReportTable(columns, cells, "")]), *filter(None, map(_largest, rows))]
    unknown = any(not row.cost.loops for row in rows)
    return "\n".join([*parts, *(f"{note}\n" for note in NOTES[: 1 + unknown])])


def as_json(row: CompiledRow) -> dict[str, Any]:
    """A row as JSON values; what is not known is null."""
    plain = {"program": row.program, "topology": row.topology, "calls": row.calls or None}
    cost = dataclasses.asdict(row.cost) | {"exchanged": row.cost.exchanged, "bound": row.cost.bound}
    return plain | {key: None if value != value else value for key, value in cost.items()}  # NaN is not JSON


def exchanges(collectives: Sequence[Collective]) -> str:
    """ "24 all-gather 3.1 MB, 1 all-reduce 4.5 MB": by kind, how often and how many bytes in all."""
    kinds: dict[str, tuple[int, int]] = {}
    for one in collectives:
        count, size = kinds.get(one.kind, (0, 0))
        kinds[one.kind] = count + (1 if one.times is None else one.times), size + one.total
    shown = (f"{count:,} {kind} {_number(size / 1e6)} MB" for kind, (count, size) in sorted(kinds.items()))
    return ", ".join(shown) or "none"


def _cells(row: CompiledRow) -> list[str]:
    cost, gb = row.cost, lambda size: "" if size is None else f"{size / 1e9:.2f}"
    memory: Mapping[str, Any] = dict(cost.memory)
    own = memory["outputs"] - memory["aliased"] if memory else None
    left = cost.available - cost.needed
    fits = f"{gb(left)} GB left" if cost.fits else f"NO, {gb(-left)} GB too much" if math.isfinite(left) else "NO"
    unknown, milliseconds = "" if cost.loops else "*", lambda s: "" if s is None else f"{_number(1e3 * s)}"
    return [
        row.program,
        row.topology,
        f"{row.calls:,}" if row.calls else "",
        fits,
        gb(cost.needed) if math.isfinite(cost.needed) else "",
        *(gb(size) for size in (memory.get("arguments"), own, memory.get("temporaries"), memory.get("code"))),
        "" if cost.flops is None else f"{_number(cost.flops / 1e9)}{unknown}",
        gb(cost.traffic),
        f"{exchanges(cost.collectives)}{unknown}" if memory else "",
        milliseconds(cost.estimate),
        milliseconds(max(cost.roofline.values(), default=None)),
        cost.bound,
        f"{cost.compile_seconds:.0f}",
    ]


def _largest(row: CompiledRow) -> str:
    """The largest arrays of a program that does not fit."""
    if row.cost.fits:
        return ""
    lines = [f"{row.program} does not fit {row.topology}; its largest arrays:\n"]
    for one in row.cost.largest:
        where = ", on all devices together" if one.whole else ""
        lines.append(f"- {one.bytes / 1e9:.2f} GB{where}: {one.shape} {one.name}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Three digits that count: 0.0123, 1.23, 123, 12,345."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
