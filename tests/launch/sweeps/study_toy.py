"""A study: two seeds of a method and two ablations, whose plans share stages; each make leaves a file behind."""

import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from launch.stages import Stage, free, require, settings, stackable

VARIANTS = {"method": {}, "unshifted": {"shift": 0.0}, "squared": {"squared": True}}


def get_config():
    return ConfigDict(
        {
            "experiment": "tests.launch.sweeps.study_toy",
            "seed": 0,
            "shift": 2.0,
            "squared": False,
            "trace": "",  # the folder for the files that say what was made
            "racing": 0,  # a sample is finished once so many members have planned
            "doomed": False,  # kill the first process that makes a sample
        }
    )


def sweep():
    for seed in range(2):
        for variant in VARIANTS.values():
            yield {"seed": seed, **variant}


def note(trace: str, what: str) -> None:
    if trace:
        os.close(tempfile.mkstemp(prefix=f"{what}.", dir=trace)[0])


@dataclass(frozen=True)
class Sample(Stage):
    """Numbers (5,), one set for a seed: what all variants share."""

    seed: int = stackable(0)
    trace: str = free("")
    racing: int = free(0)
    doomed: bool = free(False)

    def __post_init__(self):
        require(self.seed >= 0, self, "seed", "at least 0")

    def make(self, store):
        first = not list(Path(self.trace).glob("sample-*")) if self.trace else True
        note(self.trace, self.key)
        deadline = time.monotonic() + 100
        while len(list(store.path.parent.glob("*/plan.json"))) < self.racing and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.doomed and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seed == 13:
            raise ArithmeticError("an unlucky seed")
        return np.random.default_rng(self.seed).normal(size=5)


@dataclass(frozen=True)
class Shifted(Stage):
    """What an ablation changes."""

    STACKS = True
    sample: Sample
    shift: float = stackable(2.0, off_at_zero=True)
    trace: str = free("")

    def make(self, store):
        numbers = store.get(self.sample)
        note(self.trace, self.key)
        return numbers + self.shift

    @classmethod
    def make_together(cls, stages, store):
        note(stages[0].trace, f"together-{len(stages)}")
        for stage in stages:
            store.put(stage, stage.make(store))
        return {}


@dataclass(frozen=True)
class Score(Stage):
    """The result."""

    shifted: Shifted
    squared: bool = False
    trace: str = free("")

    def make(self, store):
        values = store.get(self.shifted)
        note(self.trace, self.key)
        return {"score": float((values**2 if self.squared else values).sum())}


def plan(config) -> Score:
    shifted = settings(Shifted, config, sample=settings(Sample, config))
    return settings(Score, config, shifted=shifted)
