"""Implementations timed side by side: a process for each, one step of the one, one of the other, and so on.

A benchmark module gives its cases, each a builder for every side, and calls `main`. "ours" is one side; the others are
what it is measured against. A builder runs in the process of its side, asks `size`, `device` and `pytorch` for what the
command line says, and returns what is timed.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.alternate.pairs import pair
from benchmarks.alternate.side import OURS, PRECISIONS, Unavailable, device, pytorch, serve, settings, size

__all__ = ["OURS", "Builders", "Unavailable", "device", "main", "pair", "pytorch", "size"]

Builders = Mapping[str, Callable[[], Callable[[], object]]]  # side -> () -> what is timed
DEVICES = ("cpu", "cuda", "tpu")


def main(
    module: str,
    doc: str,
    cases: Mapping[str, Builders],
    *,
    devices: int,
    steps: int = 7,
    warmup: int = 2,
    sizes: Mapping[str, int] | None = None,
    quick: Mapping[str, Any] | None = None,
) -> None:
    """The command line of a benchmark: a table with a row for each case and what it is measured against.

    Args:
      module: dotted name of the benchmark.
      doc: its docstring.
      cases: name -> the sides' builders, "ours" among them.
      devices: CPU devices of the JAX sides, unless the command line says otherwise; likewise
      steps, warmup: timed and untimed steps.
      sizes: name -> default of what the sides read with `size`; each has a flag.
      quick: defaults of flags under --quick.
    """
    sizes = sizes or {}
    args = _parse(doc, cases, {"devices": devices, "steps": steps, "warmup": warmup}, sizes, quick or {})
    if args.serve:
        side, case = args.serve
        serve(side, cases[case][side], args.warmup)
        return
    chosen = {name: getattr(args, name) for name in sizes}
    os.environ |= settings(on=args.device, products=args.precision, sizes=chosen)
    taken = ", ".join(f"{name} {value}" for name, value in {**chosen, "steps": args.steps}.items())
    about = {"device": args.device, "precision": args.precision, "processor": processor(), "taken": taken}
    start, rows, facts = time.monotonic(), {}, {}
    print("| case | against | its s | ours s | ratio | its GB | ours GB |\n" + "|---" * 7 + "|")
    for number, case in enumerate(args.cases):
        others = [s for s in cases[case] if s != OURS and (args.against is None or s in args.against)]
        share = (args.budget - (time.monotonic() - start)) / (len(args.cases) - number)
        rows[case] = pair(
            module, case, [OURS, *(others if args.device != "tpu" else [s for s in others if s.startswith(OURS)])],
            steps=args.steps, warmup=args.warmup, devices=args.devices, python=args.jax_python, seconds=share,
        )  # fmt: skip
        facts |= {side: row["facts"] for side, row in rows[case].items() if "facts" in row}
        print("\n".join(_lines(case, rows[case])), flush=True)
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(json.dumps(about | {"sides": facts, "cases": rows}, indent=2))
    print(f"\n{about['processor']}; {taken}; products of precision {args.precision}")
    print("".join(f"{side}: {text}\n" for side, text in facts.items()))


def _parse(doc, cases, defaults, sizes, quick) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides = list(dict.fromkeys(side for own in cases.values() for side in own if side != OURS))
    parser.add_argument("--cases", nargs="+", default=list(cases), choices=cases, metavar="CASE", help=", ".join(cases))
    parser.add_argument("--against", nargs="+", choices=sides, metavar="SIDE", help=", ".join(sides))
    for name, default in (defaults | dict(sizes)).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="a TPU for ours alone")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of products of float32")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for all cases")
    parser.add_argument("--quick", action="store_true", help=f"other defaults: {dict(quick) or 'none'}")
    parser.add_argument("--json", help="file to write the rows to, too")
    parser.add_argument("--jax_python", default=sys.executable, help="interpreter of our side, if another than this")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**quick)
        args = parser.parse_args()
    if args.device == "cpu" and args.precision != PRECISIONS[0]:
        parser.error(f"--precision={args.precision}: a CPU multiplies in float32; leave it out")
    if args.device == "tpu" and args.against:
        parser.error("--against: on a TPU ours runs alone; leave it out")
    return args


def processor() -> str:
    """Name of the CPU, how many cores this process may use, and what else the machine does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else 'unknown CPU'}, {cores} cores, load {os.getloadavg()[0]:.1f} at the start"


def _lines(case: str, row: dict[str, dict[str, Any]]) -> list[str]:
    """The table's lines: one for each side that ours is measured against, or for ours alone."""
    ours, others = row[OURS], [side for side in row if side != OURS]
    time_of = lambda own: f"{own['seconds']:.{3 if own['seconds'] >= 0.1 else 5}f}" if "seconds" in own else "–"
    memory = lambda own: f"{own['peak'] / 1e9:.2f}" if own.get("peak") else "–"
    lines = []
    for side in others or [OURS]:
        own = row[side] if others else {}
        why = next((x["absent"] for x in (own, ours) if "absent" in x), "")
        ratio = f"**{own['ratio']:.2f}**" if "ratio" in own else why.replace("|", "/")
        cells = (case, side, time_of(own), time_of(ours), ratio or "–", memory(own), memory(ours))
        lines.append(f"| {' | '.join(cells)} |")
    return lines
