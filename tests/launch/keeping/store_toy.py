"""Stages for tests of the store; `python -m tests.launch.keeping.store_toy STORE WHAT` makes one of them.

WHAT is "race": wait for STORE/go, then print the value; or a moment at which the process kills itself with SIGKILL.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch import files
from launch.stages import Stage, free
from launch.store import MARKER, Store

MOMENTS = ("make", "scratch", "value", "replaced", "marker")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@dataclass(frozen=True)
class Source(Stage):
    """Notes each call of its `make` in a file."""

    log: str = free("")
    rows: int = 4

    def make(self, store: Store) -> Any:
        _note(self.log, "source")
        return {"x": np.arange(self.rows, dtype=np.float32), "name": "source"}


@dataclass(frozen=True)
class Big(Stage):
    """Its result is a memory map that is written step by step."""

    source: Source
    log: str = free("")
    seconds: float = free(0.0)
    dies: str = free("")

    def make(self, store: Store) -> Any:
        _note(self.log, "big")
        x = store.get(self.source)["x"]
        if self.dies == "make":
            die()
        path = store.scratch(self) / "big.npy"
        table = np.lib.format.open_memmap(path, "w+", np.float32, (len(x), 1 << 17))  # above the limit for mapping
        for row in range(len(x)):
            if row == len(x) // 2 and self.dies == "scratch":
                table.flush()
                die()
            table[row] = x[row]
        time.sleep(self.seconds)
        return {"table": table, "sum": float(x.sum())}


def _note(log: str, what: str) -> None:
    if log:
        with open(log, "a") as file:
            file.write(f"{what} {os.getpid()}\n")


def kill_while_saving(moment: str) -> None:
    """From now on the process dies before the value of `Big` is in place, after that, or with the marker half there."""
    replace, write = os.replace, files.write_atomically

    def replacing(source, target):
        is_value = Path(target).name == "value" and Path(target).parent.name.startswith("big-")
        if is_value and moment == "value":
            die()
        replace(source, target)
        if is_value and moment == "replaced":
            die()

    def writing(path, content):
        if Path(path).name == MARKER and Path(path).parent.name.startswith("big-") and moment == "marker":
            with files.writing(path) as file:
                file.write(content[:20].encode())
                file.flush()
                die()
        write(path, content)

    os.replace, files.write_atomically = replacing, writing


def main(folder: str, what: str) -> None:
    log = f"{folder}/log"
    if what == "race":
        big = Big(Source(log), log, seconds=1.0)
        Path(folder, f"ready-{os.getpid()}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.01)
    else:
        big = Big(Source(log), log, dies=what)
        kill_while_saving(what)
    value = Store(Path(folder, "store")).get(big)
    print(os.getpid(), value["sum"], value["table"].shape, float(value["table"].sum()))


if __name__ == "__main__":
    from tests.launch.keeping import store_toy  # the classes of `__main__` would have other keys

    store_toy.main(*sys.argv[1:])
