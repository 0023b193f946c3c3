"""Several steps of a LeNet in one call, on data that stays on the devices, against one by one; float64."""

import json

import jax
import numpy as np
import pytest

from launch.journal import Journal
from launch.processes.stop import Preempted, Stop
from launch.stages import SettingError
from launch.store import Store
from launch.training import fit
from robustgrad_jax.stages.classifier import Classifier
from tests.robustgrad_jax.stages.test_stacked import MEMBERS, in_double, plan

CADENCE = {"loop.log_every": 0, "loop.eval_every": "8 steps", "loop.checkpoint_every": "0 steps", "duration": "8 steps"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The store of two members that were trained step by step."""
    with in_double():
        store = Store(tmp_path_factory.mktemp("alone"))
        for member in MEMBERS:
            store.get(stage_of(1, member))
        yield store


def stage_of(steps_per_call, member=MEMBERS[0]) -> Classifier:
    return plan(CADENCE | member | {"loop.steps_per_call": steps_per_call}).weights


def losses(store, stage):
    """The sums of the losses up to each step of the log, from the means of its windows."""
    lines = [json.loads(line) for line in (store.folder(stage) / "metrics.jsonl").read_text().splitlines()]
    steps, means = zip(*((line["step"], line["train/loss"]) for line in lines if "train/loss" in line), strict=True)
    return dict(zip(steps, np.cumsum(np.diff((0, *steps)) * means), strict=True))


def assert_same(one: Store, other: Store, stage):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    jax.tree.map(close, one.get(stage), other.get(stage))
    assert losses(other, stage)[8] == pytest.approx(losses(one, stage)[8], rel=1e-10)


def test_one_run_stopped_and_continued_with_another_number_of_steps(alone, tmp_path, monkeypatch):
    stop, rewind = Stop(), Journal.rewind
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "rewind", lambda self, step: (rewind(self, step), stop.asked.set()))
        with pytest.raises(Preempted, match="saved at step 3 of 8"):  # at the end of the first call
            Store(tmp_path, stop).get(stage_of(3))
    store = Store(tmp_path)
    assert_same(alone, store, stage_of(4))
    assert losses(store, stage_of(4)).keys() == {3, 8}


def test_a_stack(alone, tmp_path):
    store, stages = Store(tmp_path), [stage_of(4, member) for member in MEMBERS]
    assert Classifier.make_together(stages, store) == {}
    for stage in stages:
        assert_same(alone, store, stage)


def test_the_setting_is_checked_and_free():
    assert stage_of(1).key == stage_of(3).key
    with pytest.raises(SettingError, match=r"^loop\.steps_per_call=-1: must be a number, at least 0"):
        stage_of(-1)
    assert fit.Loop(steps_per_call=3).cadence(lambda text: 0).steps_per_call == 3
