"""The sides of a case, a process each, timed in turn: one step of the one, one of the other, and so on.

Whatever else the machine does hits all alike, and a ratio is the median over the rounds.
"""

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.alternate.side import OURS, device, precision

_BUILDING = 0.6  # of a case's time in which its sides must be ready, so that the others can be timed in the rest


class Child:
    """A process that runs one side of a case; see `side.serve`."""

    def __init__(self, module: str, case: str, side: str, *, warmup: int, devices: int, python: str):
        self.side, self.case = side, case
        ours = side.startswith(OURS)
        # Huge pages for all: XLA maps its buffers anew every step, and small pages are faulted in one by one. One GPU
        # for all, of which JAX takes what it needs: the sides live side by side.
        env = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "CUDA_VISIBLE_DEVICES": "0"} | os.environ
        env |= {"JAX_PLATFORMS": device() if ours else "cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if ours:
            env["JAX_DEFAULT_MATMUL_PRECISION"] = precision()
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [python if side == OURS else sys.executable, "-m", module, f"--warmup={warmup}"]
        self.process = subprocess.Popen(
            [*command, "--serve", side, case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=env,
            start_new_session=True,
        )

    def ask(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: `answer` says so
            self.process.stdin.write(b"step\n")

    def answer(self, deadline: float) -> dict[str, Any] | None:
        """Its next message; None if there is none by the deadline, in seconds of `time.monotonic`.

        Raises:
          RuntimeError: it died; its error is on standard error.
        """
        if deadline < float("inf"):
            waited = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not waited[0]:
                return None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.side} side of {self.case!r} died; its error is above")
        return json.loads(line)

    def kill(self) -> None:
        """End it with the processes that it started: a compiler's workers outlive what asked for their work."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, *, now: bool = False) -> None:
        if now:
            self.kill()
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def pair(
    module: str,
    case: str,
    sides: Sequence[str],
    *,
    steps: int,
    warmup: int,
    devices: int,
    python: str,
    seconds: float = float("inf"),
) -> dict[str, dict[str, Any]]:
    """Alternate the sides of a case.

    Args:
      module: dotted name of the benchmark, run with `--serve SIDE CASE`.
      case: its name there.
      sides: names of its sides, "ours" among them.
      steps: timed steps of each side.
      warmup: untimed ones before.
      devices: CPU devices of the JAX sides.
      python: our interpreter.
      seconds: what the case may take altogether; it then has fewer steps, and what is not ready is left out.

    Returns:
      side -> `facts`, the median of `seconds`, `peak` in bytes, and for all but ours `ratio` (its time / ours, median
      over the rounds); or `absent`, the reason why it has no figures.

    Raises:
      RuntimeError: a side died; its error is on standard error.
    """
    start = time.monotonic()
    ready_by, deadline = start + _BUILDING * seconds, start + seconds
    children = {
        side: Child(module, case, side, warmup=warmup, devices=devices, python=python)
        for side in sorted(sides, key=lambda side: side == OURS)
    }
    rows: dict[str, dict[str, Any]] = {}
    late = f"not ready within {_BUILDING * seconds:.0f} s"
    try:
        for side, child in children.items():
            message = child.answer(ready_by)
            if message is None:
                child.kill()  # it would compile beside what is timed
                message = {"unavailable": late}
            rows[side] = {"facts": message["ready"]} if "ready" in message else {"absent": message["unavailable"]}
        running = {side: child for side, child in children.items() if "facts" in rows[side]}
        rounds = _rounds(running, steps, deadline)
    finally:
        for child in children.values():
            child.stop(now=time.monotonic() > deadline or sys.exc_info()[0] is not None)
    for side in running:
        rows[side] |= _summary(side, rounds) or {"absent": f"no step within {time.monotonic() - start:.0f} s"}
    return {side: rows[side] for side in sides}


def _rounds(children: dict[str, Child], steps: int, deadline: float) -> list[dict[str, dict[str, Any]]]:
    """What each side answered, round after round, until the deadline; the last round may lack sides."""
    rounds: list[dict[str, dict[str, Any]]] = []
    while len(rounds) < steps and (not rounds or time.monotonic() < deadline):
        rounds.append({})
        for side, child in children.items():
            child.ask()
            message = child.answer(deadline)
            if message is None:
                return rounds
            rounds[-1][side] = message
    return rounds


def _summary(side: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any] | None:
    own = [answers[side] for answers in rounds if side in answers]
    if not own:
        return None
    found = {"seconds": statistics.median(a["seconds"] for a in own), "peak": own[-1]["peak"], "steps": len(own)}
    both = [answers for answers in rounds if side in answers and OURS in answers]
    if both and side != OURS:
        found["ratio"] = statistics.median(a[side]["seconds"] / a[OURS]["seconds"] for a in both)
    return found
