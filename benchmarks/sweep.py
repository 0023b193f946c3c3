"""Sweeps as one program against one process per member: wall time, memory, training steps per second.

    python -m benchmarks.sweep [--cases lenet heads] [--members 16] [--steps 100] [--executors one local vmap]

"lenet": members of configs/robustgrad/digits_lenet.py that differ in learning rate and weight of the regulariser, 16
unless --members says otherwise, trained for --steps and measured on clean test images. "heads": members of
configs/tldr/scenes.py that differ in learning rate and weight decay of the text stage, 64 by default; classifier and
pretraining are cut short, every process makes its own and the program one for all. "one" is one member by itself.

Wall time is that of the whole command, from Python's start to the last result. Memory is the largest sum of resident
sets over its processes, host memory, so on CPU. Steps are those of all members, from the last windows of their
metrics.jsonl: what is left once everything is compiled. On a CPU the program runs on one device per core.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXECUTORS = ("one", "local", "vmap")
_LENET = (
    "--config=configs/robustgrad/digits_lenet.py",
    "--config.duration={steps} steps",
    "--config.optimizer.schedule.name=constant",
    "--config.loop.log_every=20",
    "--config.loop.eval_every=0 steps",
    "--config.loop.checkpoint_every=0 steps",
    "--config.evaluation.attributions=()",
    "--config.evaluation.perturbations=()",
    "--config.evaluation.curves=()",
    "--config.evaluation.upper_bound=False",
)
_HEADS = (
    "--config=configs/tldr/scenes.py",
    "--config.retrain.duration={steps} steps",
    "--config.pretrain.duration=20 steps",
    "--config.erm.duration=1 epochs",
    "--config.data.train_examples=800",
    "--config.words.classifier_filter=False",
    "--config.baselines=('erm',)",
    "--config.ablations=()",
)
# Overrides of a case, how many members by default, what they differ in, and the stage that is stacked.
CASES = {
    "lenet": (
        _LENET,
        16,
        "regularizer.cosine_weight=~log(0.1,3,{k})&optimizer.learning_rate=~log(3e-4,1e-2,{k})",
        "classifier",
    ),
    "heads": (
        _HEADS,
        64,
        "retrain.learning_rate=~log(1e-3,3e-2,{k})&retrain.weight_decay=~log(1e-5,1e-2,{k})",
        "heads",
    ),
}


def command(case: str, executor: str, members: int, steps: int, workdir: Path) -> list[str]:
    """What is timed."""
    overrides, _, grid, _ = CASES[case]
    args = [part.format(steps=steps) for part in overrides] + [f"--workdir={workdir}"]
    if executor == "one":
        return [sys.executable, "-m", "launch.train", *args]
    extra = ["--noconfig_sweep", f"--executor={executor}", f"--grid={grid.format(k=members)}"]
    return [sys.executable, "-m", "launch.sweep", *args, *extra]


def resident(pid: int) -> int:
    """Bytes in memory of a process and all that it has started; 0 where there is no /proc."""
    parents, sizes = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(path.parent.name)], sizes[int(path.parent.name)] = int(fields[1]), int(fields[21])
    family = {pid}
    while new := {child for child, parent in parents.items() if parent in family} - family:
        family |= new
    return sum(sizes.get(process, 0) for process in family) * os.sysconf("SC_PAGE_SIZE")


def timed(line: list[str], log: Path, devices: int = 1) -> tuple[float, int]:
    """Seconds and bytes that a command takes, with `devices` devices made of a CPU.

    Raises:
      RuntimeError: it failed; the message has the end of its output.
    """
    start, peak = time.perf_counter(), 0
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ | {"XLA_FLAGS": xla}
    with open(log, "w") as file:
        process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{shlex.join(line)} failed:\n{log.read_text()[-3000:]}")
    return seconds, peak


def steps_per_second(workdir: Path, stage: str, executor: str, at_once: int) -> float | None:
    """Of all members together, in their last undisturbed windows; None if there are none."""
    rates = []
    for path in workdir.glob(f"store/{stage}-*/metrics.jsonl"):
        logged = [json.loads(line).get("train/steps_per_second") for line in path.read_text().splitlines()]
        rates += [rate for rate in logged if rate is not None][-1:]
    if not rates:
        return None
    return sum(rates) / len(rates) * (at_once if executor == "local" else len(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=EXECUTORS)
    parser.add_argument("--members", type=int, default=0, help="0: the case's own number")
    parser.add_argument("--steps", type=int, default=100)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--devices", type=int, default=cores, help="of a CPU, for vmap; %(default)s: one per core")
    args = parser.parse_args()
    print("| case | executor | members | wall s | GB | steps/s |\n" + "|---" * 6 + "|")
    for case, executor in itertools.product(args.cases, args.executors):
        members = 1 if executor == "one" else args.members or CASES[case][1]
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "runs"
            devices = args.devices if executor == "vmap" else 1
            line = command(case, executor, members, args.steps, workdir)
            seconds, peak = timed(line, Path(folder) / "log", devices)
            rate = steps_per_second(workdir, CASES[case][3], executor, min(cores, members))
        shown = "" if rate is None else f"{rate:.1f}"
        print(f"| {case} | {executor} | {members} | {seconds:.1f} | {peak / 1e9:.2f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
