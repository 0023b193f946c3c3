"""Every stage that trains, of every config, says what it compiles: from shapes alone, and in one way."""

import importlib
import inspect

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from launch.stages import numbers, walk
from launch.training import sharding
from launch.training.program import LOSS, Program, as_arrays
from tests.commands import ROOT

# What stands in for data and checkpoints that are not here: sections of the config on Scenes, and fields.
SECTIONS = {
    "clip": ("data",),
    "robustgrad": ("data",),
    "rtd": ("captions", "images", "triplets", "evaluation"),
    "tldr": (),
}
FIELDS = {
    "clip": {"init_from": "embedded:scenes", "batch_size": 64, "data.train_examples": 2000, "data.group": 2},
    "robustgrad": {},
    "rtd": {"clip": "embedded:scenes"},
    "tldr": {"clip.source": "embedded:scenes"},
}
TRAINED = {  # in the configs on Scenes
    "clip": {"ClipTraining"},
    "robustgrad": {"Classifier"},
    "rtd": {"LincirPhi", "Tuning"},
    "tldr": {"Pretraining", "Erm", "Heads"},
}
FILES = sorted(
    p for p in (ROOT / "configs").glob("*/*.py") if not p.stem.endswith(("__init__", "words", "_comparison", "_study"))
)


def planned(path):
    """The plan of a config file, on what is here."""
    method = path.parent.name
    load = lambda stem: importlib.import_module(f"configs.{method}.{stem}").get_config()
    config, scenes = load(path.stem), load("scenes")
    for section in SECTIONS[method]:
        config[section].update(scenes[section])
    config.update_from_flattened_dict(FIELDS[method])
    return importlib.import_module(config.experiment).plan(FrozenConfigDict(config))


def trains(stage) -> bool:
    return any(name.endswith("learning_rate") for name in numbers(stage))


def traced(program: Program):
    """The shapes that a program's step gives for those that it takes."""
    batch = dict(program.batch) | ({} if program.resident is None else {sharding.RESIDENT: program.resident})
    return jax.eval_shape(program.step, program.numbers, program.state, batch)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_trained_stage_has_a_program(path):
    layout, trained = sharding.layout(devices=jax.devices()[:1]), set()
    for stage in walk(planned(path)):
        assert trains(stage) == hasattr(stage, "program"), type(stage).__name__
        if not trains(stage):
            continue
        trained.add(type(stage).__name__)
        assert list(inspect.signature(stage.program).parameters) == ["layout"]
        program = stage.program(layout)
        assert dict(program.numbers).keys() == numbers(stage).keys()
        jax.tree.map(np.testing.assert_array_equal, dict(program.numbers), as_arrays(numbers(stage)))
        state, metrics = traced(program)
        assert shapes(state) == shapes(program.state)
        assert LOSS in metrics and all(value.shape == () for value in metrics.values())
    assert trained == TRAINED[path.parent.name] or path.stem != "scenes"
    assert trained


def test_nothing_is_computed_for_a_program(monkeypatch):
    """Heads at published size: shapes in place of embeddings and projectors, whatever the length of the training."""
    heads = dict(planned(ROOT / "configs/tldr/waterbirds_resnet50.py").methods)["tldr"]
    monkeypatch.setattr(jax, "device_put", lambda *_: pytest.fail("an array was put on a device"))
    program = heads.program(sharding.layout(devices=jax.devices()[:1]))
    leaves = jax.tree.leaves((program.state, program.batch, program.resident))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    members = len(heads.projectors) * len(heads.learning_rate) * len(heads.weight_decay) * len(heads.seed)
    evaluations, *grid, features, classes = program.state["heads"].kernel.shape
    assert (evaluations, np.prod(grid), features, classes) == (heads.evaluations, members, 2048, 2)
