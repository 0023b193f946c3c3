"""Run by test_stacked.py with 8 fake CPU devices: prints, as JSON, how a stack over some is from one device's."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.training import stack
from robustgrad_jax import stacked
from tests.robustgrad_jax.test_stacked import config_with, in_double, last_state, new_state, open_all

SHORT = {"duration": "3 steps", "optimizer.schedule.milestones": ("2 steps",), "loop.checkpoint_every": "3 steps"}
CONFIGS = [
    config_with(SHORT | {"seed": i % 2, "optimizer.learning_rate": 1e-3 * (i + 1), "regularizer.l2_weight": 0.1 * i})
    for i in range(10)
]


def train(folder: Path, devices, used: list[int]):
    """The members' last states, as flat arrays (10, n); how many devices the stack was on is added to `used`."""
    create = stack.stack

    def watched(members):
        place = create(members, devices)
        used.append(len(place.used))
        return place

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "stack", watched)
        runs = open_all(folder, CONFIGS)
        found = dict(stacked.run(CONFIGS, runs))
        for run in runs:
            run.close()
    assert not any(isinstance(result, Exception) for result in found.values()), found
    state = new_state(CONFIGS[0])
    states = [last_state(folder / str(i), config, state) for i, config in enumerate(CONFIGS)]
    assert {step for _, step in states} == {3}
    return np.stack([np.concatenate([np.ravel(a) for a in jax.tree.leaves(own.params)]) for own, _ in states])


def main():
    used: list[int] = []
    with in_double(), tempfile.TemporaryDirectory() as folder:
        one, many = train(Path(folder) / "one", jax.devices()[:1], used), train(Path(folder) / "many", None, used)
    out = {
        "devices": used,
        "apart": float(np.abs(one - many).max()),
        "differ": float(np.abs(np.diff(one, axis=0)).max(1).min()),
    }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
