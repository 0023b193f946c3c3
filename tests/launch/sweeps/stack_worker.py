"""Run by test_stacked.py with 8 fake CPU devices: prints, as JSON, how stacks over 8 devices are from one device's."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from launch.store import Store
from launch.training import places
from tests.launch.sweeps.stack_toy import Squares, distance, together


def train(stages, folder: Path, devices):
    store = Store(folder)
    assert together(stages, store, devices) == {}
    assert all(map(store.has, stages))
    return [distance(store.get(stage)) for stage in stages]


def main():
    jax.config.update("jax_enable_x64", True)
    out = {"devices": jax.device_count()}
    for count in (3, 10):
        stages = [Squares(seed=i % 4, rate=0.01 * (i + 1), steps=5) for i in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            one = train(stages, Path(folder) / "one", jax.devices()[:1])
            many = train(stages, Path(folder) / "many", None)
        spread = places.stack(count).put(np.zeros((count, 2)))
        out[str(count)] = {
            "shape": spread.shape,
            "on": len(spread.sharding.device_set),
            "apart": float(np.abs(np.subtract(one, many)).max()),
            "differ": float(np.diff(sorted(one)).min()),
        }
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
