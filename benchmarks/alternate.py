"""Two implementations timed in turn: a process for each, one step of the one, one of the other, and so on.

Whatever else the machine does hits both alike, and the ratio is the median over the pairs. A benchmark module gives
`steps(side, case) -> (() -> None)`, which builds one side's step in the process that will run it, and calls `main`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SIDES = ("torch", "jax")
# Environment variables, through which the command line's sizes and device reach both sides
_SIZE = "BENCHMARK_SIZE_{}"
_DEVICE = "BENCHMARK_DEVICE"


def size(name: str, default: int) -> int:
    """How much of something a benchmark takes: the command line's number, see `main`, or the default."""
    return int(os.environ.get(_SIZE.format(name.upper()), default))


def device() -> str:
    """Where both sides compute, as PyTorch calls it: "cpu" or "cuda"."""
    return os.environ.get(_DEVICE, "cpu")


def serve(run: Callable[[], object]) -> None:
    """The child's half: a line in, one timed step, a line out."""
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        # Linux counts kilobytes, macOS bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def pair(module: str, case: str, *, steps: int, warmup: int, devices: int, python: str) -> dict[str, float]:
    """Alternates the two sides of a case.

    Args:
      module: dotted name of the benchmark, run with `--serve SIDE CASE`.
      case: its name there.
      steps: timed steps of each side.
      warmup: untimed ones before.
      devices: CPU devices of the JAX side.
      python: the JAX side's interpreter.

    Returns:
      Medians in seconds `torch` and `jax`, `ratio` (PyTorch / ours, median over the pairs), and the largest resident
      sets in bytes, `torch_peak` and `jax_peak`.

    Raises:
      RuntimeError: a side died; its error is on standard error.
    """

    def launch(side):
        interpreter = python if side == "jax" else sys.executable
        # Huge pages for both: XLA maps its buffers anew every step, and small pages are faulted in one by one.
        env = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ | {"JAX_PLATFORMS": device()}
        if side == "jax":
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [interpreter, "-m", module, "--serve", side, case]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    children = {side: launch(side) for side in SIDES}

    def one(side):
        children[side].stdin.write("step\n")
        children[side].stdin.flush()
        line = children[side].stdout.readline()
        if not line:
            raise RuntimeError(f"the {side} side of {case!r} died; its error is above")
        return json.loads(line)

    try:
        rounds = [{side: one(side) for side in children} for _ in range(warmup + steps)][warmup:]
    finally:
        for child in children.values():
            child.stdin.close()
            child.wait()
    seconds = {side: [r[side]["seconds"] for r in rounds] for side in children}
    return {
        "torch": statistics.median(seconds["torch"]),
        "jax": statistics.median(seconds["jax"]),
        "ratio": statistics.median(t / j for t, j in zip(seconds["torch"], seconds["jax"], strict=True)),
        "torch_peak": rounds[-1]["torch"]["peak"],
        "jax_peak": rounds[-1]["jax"]["peak"],
    }


def main(
    module: str,
    doc: str,
    cases: Mapping[str, Callable[[str], Callable]],
    *,
    devices: int,
    steps: int = 7,
    warmup: int = 2,
    sizes: Mapping[str, int] | None = None,
    on: Sequence[str] = ("cpu",),
) -> None:
    """The command line of a benchmark: a table with one row per case.

    Args:
      module: dotted name of the benchmark.
      doc: its docstring.
      cases: name -> (side -> step).
      devices: CPU devices of the JAX side, unless the command line says otherwise; likewise
      steps, warmup: timed and untimed steps.
      sizes: name -> default of what both sides read with `size`; each has a flag.
      on: the devices that both sides can compute on, see `device`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(cases), choices=cases, metavar="CASE", help=", ".join(cases))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--warmup", type=int, default=warmup)
    for name, default in (sizes or {}).items():
        parser.add_argument(f"--{name}", type=int, default=size(name, default))
    parser.add_argument("--devices", type=int, default=devices, help="CPU devices of our side")
    parser.add_argument("--device", choices=on, default=on[0], help="where both sides compute")
    parser.add_argument("--json", help="file to write the rows to, too")
    parser.add_argument("--jax_python", default=sys.executable, help="interpreter of our side, if another than this")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        side, case = args.serve
        serve(cases[case](side))
        return
    os.environ |= {_SIZE.format(name.upper()): str(getattr(args, name)) for name in sizes or {}}
    os.environ[_DEVICE] = args.device
    rows = {}
    print("| case | PyTorch s | ours s | ratio | PyTorch GB | ours GB |\n" + "|---" * 6 + "|")
    for case in args.cases:
        row = rows[case] = pair(
            module, case, steps=args.steps, warmup=args.warmup, devices=args.devices, python=args.jax_python
        )
        print(
            f"| {case} | {row['torch']:.3f} | {row['jax']:.3f} | **{row['ratio']:.2f}** | "
            f"{row['torch_peak'] / 1e9:.2f} | {row['jax_peak'] / 1e9:.2f} |",
            flush=True,
        )
    if args.json:
        Path(args.json).write_text(json.dumps({"device": args.device, "steps": args.steps, "cases": rows}, indent=2))
