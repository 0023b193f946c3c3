"""A run that is over in no time, for sweeps of it: a parabola's value, or what its config asks to go wrong."""

import os
import signal
import time

from ml_collections import ConfigDict, config_dict


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


def run(config, run):
    for step in range(1, 4):
        run.log(step, {"train/loss": config.x / step, "train/steps_per_second": 1.0})
        for _ in range(max(1, int(config.pause / 0.05))):
            run.check_stop()
            time.sleep(min(config.pause, 0.05))
    if config.ending == "raise":
        raise ArithmeticError(f"x = {config.x} was not to be")
    if config.ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"parabola": (config.x - 3) ** 2, "cores": len(os.sched_getaffinity(0)), "nothing": float("nan")}
