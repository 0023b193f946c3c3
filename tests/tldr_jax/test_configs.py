"""The configs: complete, checkable before a run, with the published numbers and the command that runs them."""

import ast
import importlib
import json
from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

from configs.tldr import base, scenes
from launch.run import flatten
from tests.commands import ROOT
from tldr_jax import experiment, study

FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "configs/tldr").glob("*.py") if p.stem not in ("__init__", "words"))
RUNNABLE = [p for p in FILES if p.stem != "base"]


def load(path):
    return importlib.import_module(".".join(path.with_suffix("").parts)).get_config()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_can_be_frozen_stored_and_checked(path):
    config = load(path)
    assert set(json.loads(config.to_json())) == set(config)
    for key, value in flatten(FrozenConfigDict(config)).items():
        assert isinstance(value, str | bool | int | float | tuple), key
        # a whole number would refuse "--config.…=0.5"
        assert not key.endswith(("ridge", "rate", "decay", "correlation", "junk")) or type(value) in (float, tuple), key
    fields = {key for key in flatten(config) if not key.startswith("study.")}
    assert fields == flatten(base.get_config()).keys()
    experiment.check(FrozenConfigDict(config))


@pytest.mark.parametrize("path", RUNNABLE, ids=str)
def test_a_config_says_how_to_run_it(path):
    text = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    workdir = f"runs/{path.stem.replace('scenes', 'tldr_scenes')}"
    assert f"python -m launch.train --config={Path(path).as_posix()} --workdir={workdir}" in text


def test_the_published_text_stage():
    config = base.get_config()
    assert (config.projector.ridge, config.gap.pairs, config.projector.gap_rows) == (50.0, 1000, 1)
    retrain_ = config.retrain
    found = (retrain_.learning_rate, retrain_.weight_decay, retrain_.batch_size, retrain_.duration)
    assert found == (1e-4, 1e-4, 128, "1 epoch") and config.text.templates == "imagenet"


def test_the_sweep_of_scenes_is_of_fields_that_it_has():
    config = FrozenConfigDict(scenes.get_config())
    seeds = [experiment.changed(config, overrides).seed for overrides in scenes.sweep()]
    assert seeds == [0, 1, 2, 3, 4]


def test_a_study_is_checked_before_its_first_training():
    config = load(Path("configs/tldr/scenes_study.py"))
    study.check(FrozenConfigDict(config))
    for overrides, message in (
        ({"study.seeds": ()}, "at least one of seeds"),
        ({"study.junk_draws": 0}, r"study\.junk_draws=0"),
        ({"study.junk": (0.9,)}, "90% junk"),
        ({"ablations": ("x",)}, "config.ablations has 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            study.check(experiment.changed(config, overrides))
