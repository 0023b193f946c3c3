"""A run that is over in no time, for sweeps of it: a parabola's value, or what its config asks to go wrong."""

import os
import signal
import time
from dataclasses import dataclass

from ml_collections import ConfigDict, config_dict
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from launch.stages import Stage, free, settings


def get_config():
    return ConfigDict(
        {
            "experiment": "tests.launch.sweep_toy",
            "seed": 0,
            "x": 1.0,
            "pause": 0.0,
            "ending": "",
            "flag": False,
            "free": config_dict.placeholder(int),
            "nested": {"rate": 0.1, "names": ("a", "b"), "radii": (4.0, 8.0), "sizes": [1, 2]},
        }
    )


def sweep():
    return [{"x": 0.5}, {"x": 2}]


@dataclass(frozen=True)
class Parabola(Stage):
    """The result of a member; of `seed` nothing depends, but that members with different seeds share nothing."""

    seed: int
    x: float
    ending: str
    pause: float = free(0.0)

    def make(self, store):
        with store.journal(self) as journal:
            for step in range(1, 4):
                journal.log(step, {"train/loss": self.x / step, "train/steps_per_second": 1.0})
                for _ in range(max(1, int(self.pause / 0.05))):
                    store.stop.check()
                    time.sleep(min(self.pause, 0.05))
        if self.ending == "raise":
            raise ArithmeticError(f"x = {self.x} was not to be")
        if self.ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"parabola": (self.x - 3) ** 2, "cores": len(os.sched_getaffinity(0)), "nothing": float("nan")}


def plan(config) -> Parabola:
    return settings(Parabola, config)


def compare(folder, members):
    """A pixel for each member; the caption says which."""
    notes = PngInfo()
    notes.add_text("Description", "; ".join(f"{title}: {path.name}" for title, path in members))
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (len(members), 1)).save(folder / "members.png", pnginfo=notes)
