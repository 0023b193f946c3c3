"""Run by test_stacked.py with 8 fake CPU devices: prints, as JSON, how stacks over 8 devices are from one device's."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from launch.run import Run
from launch.training import stack
from tests.launch import stack_toy, stack_toy_program


def train(configs, folder: Path, devices):
    runs = [Run.open(folder / str(i), config) for i, config in enumerate(configs)]
    found = dict(stack_toy_program.run(configs, runs, devices))
    for run in runs:
        run.close()
    return [found[i]["distance"] for i in range(len(runs))]


def main():
    jax.config.update("jax_enable_x64", True)
    out = {"devices": jax.device_count()}
    for count in (3, 10):
        configs = []
        for i in range(count):
            config = stack_toy.get_config()
            config.update({"seed": i % 4, "rate": 0.01 * (i + 1), "steps": 5})
            configs.append(config)
        with tempfile.TemporaryDirectory() as folder:
            one = train(configs, Path(folder) / "one", jax.devices()[:1])
            many = train(configs, Path(folder) / "many", None)
        spread = stack.stack(count).put(np.zeros((count, 2)))
        out[str(count)] = {
            "shape": spread.shape,
            "on": len(spread.sharding.device_set),
            "apart": float(np.abs(np.subtract(one, many)).max()),
            "differ": float(np.diff(sorted(one)).min()),
        }
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
