"""Stages: which config fields reach which stage, and tables that are written whole or not at all."""

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs.tldr import scenes
from launch.run import Preempted, Run
from tldr_jax import experiment, stages

CONFIG = FrozenConfigDict(scenes.get_config())
LATE = {"words", "retrain"}
FROM_PROJECTOR = {"projector", *LATE}
FROM_ERM = {"erm", "features", "moments", "dfr", "afr", "class_balanced", *FROM_PROJECTOR}


@pytest.mark.parametrize(
    ("field", "value", "reached"),
    [
        ("retrain.learning_rate", 0.5, {"retrain"}),
        ("words.junk", 0.25, LATE),
        ("words.source", "x.json", {*LATE, "zero_shot"}),
        ("text.templates", "photo", {*LATE, "zero_shot"}),
        ("projector.ridge", 1.5, FROM_PROJECTOR),
        ("gap.pairs", 7, {"gap", *FROM_PROJECTOR}),
        ("clip.source", "elsewhere", {"images", "gap", "moments", "zero_shot", *FROM_PROJECTOR}),
        ("dfr.draws", 3, {"dfr"}),
        ("seed", 9, FROM_ERM),
        ("pretrain.seed", 9, {"pretrain", *FROM_ERM}),
        ("data.correlation", 0.9, set(stages.STAGES) - {"pretrain", "gap"}),
        ("data.workers", 3, set()),
        ("evaluation.batch_size", 3, set()),
        ("clip.batch_size", 3, set()),
        ("erm.log_every", 3, set()),
    ],
)
def test_a_field_reaches_exactly_the_stages_that_depend_on_it(field, value, reached):
    other = experiment.changed(CONFIG, {field: value})
    assert {name for name in stages.STAGES if stages.key(other, name) != stages.key(CONFIG, name)} == reached


def test_every_field_of_a_config_reaches_a_stage_or_is_known_not_to():
    reached = set().union(*(stages.described(CONFIG, name) for name in stages.STAGES))
    from launch.run import flatten

    rest = set(flatten(CONFIG)) - reached - set(stages.NEUTRAL)
    assert rest == {"experiment", "baselines", "ablations"}


def test_a_config_without_a_field_is_refused():
    with pytest.raises(KeyError, match=r"'gap' depends on config\.gap"):
        stages.key({"clip": {"source": "a"}}, "gap")


@pytest.fixture
def run(tmp_path):
    opened = Run.open(tmp_path / "run", CONFIG)
    yield opened
    opened.close()


SHAPES = {"features": {"train": (5, 3), "val": (2, 3)}, "images": {"train": (5, 4), "val": (2, 4)}}


def rows(missing):
    for stage in missing:
        for name, (n, width) in SHAPES[stage].items():
            for first in range(0, n, 2):
                block = np.arange(first, min(first + 2, n))[:, None] + np.zeros(width)
                yield stage, name, first, block


def test_tables_are_made_once_and_mapped(run):
    asked = []

    def make(missing):
        asked.append(missing)
        return rows(missing)

    one = stages.keep_tables(run, CONFIG, ("images",), SHAPES, make)
    both = stages.keep_tables(run, CONFIG, ("features", "images"), SHAPES, make)
    again = stages.keep_tables(run, CONFIG, ("features", "images"), SHAPES, make)
    assert asked == [("images",), ("features",)]  # one pass for what is missing, and no more
    for found in (one["images"]["train"], both["images"]["train"], again["features"]["train"]):
        assert isinstance(found, np.memmap) and found.dtype == np.float32 and not found.flags.writeable
        np.testing.assert_array_equal(found, np.arange(5)[:, None] + np.zeros(found.shape[1]))
    assert again["features"]["val"].shape == (2, 3)


def test_every_process_prepares_and_one_makes_the_tables(run, monkeypatch):
    asked = []

    def make(missing):
        asked.append(missing)  # restoring a classifier takes all of them
        return rows(missing)

    def process_0(name):
        with monkeypatch.context() as patch:
            patch.setattr(stages.jax, "process_count", lambda: 1)
            patch.setattr(run, "writes", True)
            stages.keep_tables(run, CONFIG, ("images",), SHAPES, rows)

    monkeypatch.setattr(stages.jax, "process_count", lambda: 2)
    monkeypatch.setattr(stages.multihost_utils, "broadcast_one_to_all", lambda array: array)
    monkeypatch.setattr(stages.multihost_utils, "sync_global_devices", process_0)
    monkeypatch.setattr(run, "check_stop", lambda: None)
    monkeypatch.setattr(run, "writes", False)
    found = stages.keep_tables(run, CONFIG, ("images",), SHAPES, make)
    assert asked == [("images",)] and found["images"]["train"].shape == (5, 4)


def test_a_table_of_data_that_have_changed_is_refused(run):
    stages.keep_tables(run, CONFIG, ("images",), SHAPES, rows)
    grown = SHAPES | {"images": {"train": (6, 4), "val": (2, 4)}}
    with pytest.raises(ValueError, match=r"train\.npy is a table of shape \(5, 4\), and the data are of \(6, 4\) now"):
        stages.keep_tables(run, CONFIG, ("images",), grown, rows)


def test_a_stopped_table_leaves_nothing(run):
    def make(missing):
        for i, row in enumerate(rows(missing)):
            if i == 2:
                run.stop_asked.set()
            yield row

    with pytest.raises(Preempted):
        stages.keep_tables(run, CONFIG, ("features",), SHAPES, make)
    assert not list((run.path / "artifacts").iterdir())
    run.stop_asked.clear()
    found = stages.keep_tables(run, CONFIG, ("features",), SHAPES, rows)
    assert found["features"]["train"][4, 0] == 4
