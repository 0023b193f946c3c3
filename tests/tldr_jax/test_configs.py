"""The configs: complete, checkable before a run, with the published numbers and the command that runs them."""

import ast
import importlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs.tldr import base, scenes, scenes_study
from launch.run import flatten
from launch.stages import walk
from tests.commands import ROOT
from tests.tldr_jax.small import changed
from tldr_jax import experiment

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
    assert flatten(config).keys() == flatten(base.get_config()).keys()
    experiment.plan(FrozenConfigDict(config))


@pytest.mark.parametrize("path", RUNNABLE, ids=str)
def test_a_config_says_how_to_run_it(path):
    text = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    workdir = f"runs/{path.stem.replace('scenes', 'tldr_scenes')}"
    command = "sweep" if path.stem in ("scenes_study", "scenes_map") else "train"
    assert f"python -m launch.{command} --config={Path(path).as_posix()} --workdir={workdir}" in text


def test_the_published_text_stage():
    config = base.get_config()
    assert (config.projector.ridge, config.gap.pairs, config.projector.gap_rows) == (50.0, 1000, 1)
    retrain_ = config.retrain
    found = (retrain_.learning_rate, retrain_.weight_decay, retrain_.batch_size, retrain_.duration)
    assert found == (1e-4, 1e-4, 128, "1 epoch") and config.text.templates == "imagenet"
    heads = dict(experiment.plan(FrozenConfigDict(config)).methods)["tldr"]
    assert (heads.schedule, heads.evaluations, heads.shared_templates) == ("constant", 1, True)


def test_the_sweep_of_scenes_is_of_fields_that_it_has():
    config = FrozenConfigDict(scenes.get_config())
    seeds = [changed(config, overrides).seed for overrides in scenes.sweep()]
    assert seeds == [0, 1, 2, 3, 4]


def test_the_study_shares_what_its_members_have_in_common():
    """Five classifiers, two CLIPs; every ridge and filter is planned before the first training."""
    config = FrozenConfigDict(scenes_study.get_config())
    clips = f"embedded:scenes,{ROOT / 'clip_jax/checkpoints/scenes'}"
    members = list(scenes_study.sweep("embedded:scenes")), list(scenes_study.sweep(clips))
    assert [len(own) for own in members] == [5 * 29, 2 * 5 * 29]
    plans = [experiment.plan(changed(config, overrides)) for overrides in members[0]]
    stages = {stage.key: type(stage).__name__ for plan in plans for stage in walk(plan)}
    counts = Counter(stages.values())
    assert counts["Erm"] == 5 and counts["Pretraining"] == counts["Gap"] == counts["FrozenClip"] == 1
    assert counts["Features"] == 15 and counts["ClipImages"] == 15 and counts["ImageMoments"] == 5
    assert counts["EmbeddedWords"] == 1 + 2 * 3  # without junk, and every draw of it
    baselines = [overrides["baselines"] for overrides in members[1] if "baselines" in overrides]
    assert baselines == [base.get_config().baselines, ("zero_shot",)] * 5  # once a seed, what no CLIP changes
    assert {overrides.get("clip.source") for overrides in members[1]} == {None, clips.split(",")[1]}
    assert scenes_study.get_config(clips).clip.source == "embedded:scenes"
    with pytest.raises(ValueError, match="90% junk"):
        experiment.plan(changed(config, {"words.junk": 0.9}))


DATA_SETS = ("waterbirds_resnet50", "waterbirds_vit_b16", "celeba_resnet50", "spuco_animals_resnet50")


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_classifier_is_trained_as_published_or_to_the_end(name):
    module = importlib.import_module(f"configs.tldr.{name}")
    published = experiment.plan(FrozenConfigDict(module.get_config())).train.erm
    own = published.optimizer
    found = (own.name, own.learning_rate, own.weight_decay, own.momentum, own.schedule.name, own.clip_norm)
    assert found == ("sgd", 1e-4, 1e-2, 0.9, "constant", 0.0)
    assert (published.duration, published.batch_size) == ("1 epoch", 32)
    assert not (published.augmentation.flip or published.augmentation.crop or published.augmentation.crop_padding)
    longer = experiment.plan(FrozenConfigDict(module.get_config("kirichenko"))).train.erm
    assert longer.augmentation.flip and longer.augmentation.crop and longer.optimizer.learning_rate == 1e-3
    epochs, batch_size, decay = {"celeba_resnet50": (50, 100, 1e-4), "spuco_animals_resnet50": (100, 128, 1e-4)}.get(
        name, (100, 32, 1e-3)
    )
    assert (longer.duration, longer.batch_size) == (f"{epochs} epochs", batch_size)
    assert longer.optimizer.weight_decay == decay
    with pytest.raises(ValueError, match="unknown setting of ERM 'dfr'; valid names: 'published', 'kirichenko'"):
        module.get_config("dfr")


def test_afr_has_the_grid_of_its_authors():
    for name, gammas, ridges, rate, steps in (
        ("waterbirds_resnet50", np.linspace(4, 20, 33), [0, 0.1, 0.2, 0.3], 1e-2, 500),
        ("celeba_resnet50", np.linspace(1, 3, 10), np.logspace(-3, -1, 3), 2e-2, 1000),
    ):
        module = importlib.import_module(f"configs.tldr.{name}")
        own = dict(experiment.plan(FrozenConfigDict(module.get_config())).baselines)["afr"]
        np.testing.assert_allclose(own.gammas, gammas)
        np.testing.assert_allclose(own.ridges, ridges)
        assert (own.learning_rate, own.steps, own.evaluations, own.clip_norm) == (rate, steps, steps, 1.0)
