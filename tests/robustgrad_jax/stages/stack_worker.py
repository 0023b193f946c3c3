"""Run by test_stacked.py with 8 fake CPU devices: prints, as JSON, how a stack over some is from one device's."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.store import Store
from launch.training import places
from robustgrad_jax.stages import classifier
from robustgrad_jax.stages.classifier import Classifier
from tests.robustgrad_jax.stages.test_stacked import in_double, last_state, plan

SHORT = {"duration": "3 steps", "optimizer.schedule.milestones": ("2 steps",), "loop.checkpoint_every": "3 steps"}


def train(folder: Path, stages, devices, used: set[int]):
    """The members' last states, as flat arrays (10, n); how many devices the stack was on is added to `used`."""

    def watched(members):
        place = places.stack(members, devices)
        used.add(len(place.used))
        return place

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "stack", watched)
        assert Classifier.make_together(stages, Store(folder)) == {}
    states = [last_state(folder, stage) for stage in stages]
    assert {step for _, step in states} == {3}
    return np.stack([np.concatenate([np.ravel(a) for a in jax.tree.leaves(own.params)]) for own, _ in states])


def main():
    one_device, many_devices = set(), set()
    with in_double(), tempfile.TemporaryDirectory() as folder:
        stages = [
            plan(
                SHORT | {"seed": i % 2, "optimizer.learning_rate": 1e-3 * (i + 1), "regularizer.l2_weight": 0.1 * i}
            ).weights
            for i in range(10)
        ]
        one = train(Path(folder) / "one", stages, jax.devices()[:1], one_device)
        many = train(Path(folder) / "many", stages, None, many_devices)
    out = {
        "devices": [*one_device, *many_devices],
        "apart": float(np.abs(one - many).max()),
        "differ": float(np.abs(np.diff(one, axis=0)).max(1).min()),
    }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
