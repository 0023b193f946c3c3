"""The plan: every setting reaches a stage or is declared free, a late one redoes only what it reaches."""

import dataclasses
import importlib

import pytest
from ml_collections import FrozenConfigDict

from configs.robustgrad import base, digits_lenet
from launch import stages as core
from launch.data import DataSet
from launch.run import flatten
from launch.stages import walk
from launch.store import Store
from robustgrad_jax import experiment
from robustgrad_jax.stages import inputs
from robustgrad_jax.stages.classifier import Classifier
from tests.commands import ROOT

# fields of the config that no result depends on
FREE = {
    "data.workers",
    "data.cache",
    "loop.log_every",
    "loop.checkpoint_every",
    "loop.steps_per_call",
    "experiment",  # which module plans
}
# what has to be asked for before a field matters
ASKED = {
    "regularizer.noise": {"regularizer.name": "l2_cosine"},
    "regularizer.hessian.": {"regularizer.name": "hessian"},
    "regularizer.iga.": {"regularizer.name": "iga"},
    "regularizer.atex.": {"regularizer.name": "atex"},
    "regularizer.ig_norm.": {"regularizer.name": "ig_norm"},
    "regularizer.curvature.": {"regularizer.name": "curvature"},
    "evaluation.path_steps": {"evaluation.attributions": ("integrated_gradients",)},
    "evaluation.samples": {"evaluation.attributions": ("smoothgrad",)},
    "evaluation.noise_level": {"evaluation.attributions": ("smoothgrad",)},
    "evaluation.references": {"evaluation.attributions": ("expected_gradients",)},
    "evaluation.grad_cam_layer": {"evaluation.attributions": ("grad_cam",)},
    "evaluation.attacked": {"evaluation.attributions": ("gradient", "input_x_gradient")},
    "evaluation.top_k": {"evaluation.metrics": ("top_k",)},
    "evaluation.attack_beta": {"model.activation": "relu"},
    "evaluation.sensitivity_": {"evaluation.sensitivity": ("max_sensitivity",)},
}
# another valid value, where it does not follow from the type
OTHER = {
    "data.name": "scenes",
    "data.memory": "no",
    "data.mean": (0.5,),
    "data.std": (0.5,),
    "data.correlation": 0.5,
    "data.image_size": 20,
    "data.train_examples": 600,
    "data.test_examples": 350,
    "data.cache": "elsewhere",
    "precision": "high",
    "model.name": "resnet18_cifar",
    "model.activation": "relu",
    "model.dtype": "bfloat16",
    "regularizer.name": "iga",
    "regularizer.noise": "gaussian",
    "regularizer.variant": "jvp",
    "optimizer.name": "adamw",
    "optimizer.decay_mask": (".*kernel",),
    "optimizer.b1": 0.8,
    "optimizer.b2": 0.9,
    "optimizer.schedule.name": "cosine",
    "optimizer.schedule.milestones": ("20 epochs",),
    "optimizer.schedule.warmup": "3 steps",
    "duration": "29 epochs",
    "sharding.mode": "pmap",
    "loop.eval_every": "3 epochs",
    "loop.checkpoint_every": "3 epochs",
    "loop.best_metric": "val/cross_entropy",
    "loop.best_mode": "min",
    "evaluation.split": "val",
    "evaluation.attributions": ("input_x_gradient",),
    "evaluation.attacked": ("gradient",),
    "evaluation.composites": ("epsilon_plus",),
    "evaluation.perturbations": ("pgd",),
    "evaluation.metrics": ("pcc",),
    "evaluation.radii": (2.0,),
    "evaluation.attack_radii": (2.0,),
    "evaluation.curves": ("deletion",),
    "evaluation.sensitivity": ("infidelity",),
    "evaluation.attack_gamma": 0.25,
    "evaluation.grad_cam_layer": "conv21",
}
WITH_FILES = ("data.path", "data.classes", "data.memory", "train", "init_from")  # other tests have them


def config_with(overrides=None):
    config = digits_lenet.get_config()
    config.optimizer.name = "sgd" if "optimizer.momentum" in (overrides or {}) else config.optimizer.name
    config.update_from_flattened_dict(overrides or {})
    return FrozenConfigDict(config)


def plan(overrides=None):
    return experiment.plan(config_with(overrides))


def changed(field, value):
    if field in OTHER:
        return OTHER[field]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 2 + 0.125


@pytest.mark.parametrize("field", sorted(flatten(base.get_config())))
def test_every_field_reaches_a_stage_or_is_free(field):
    if field in WITH_FILES:
        return  # below, and in test_pretrained.py
    asked = next((values for prefix, values in ASKED.items() if field.startswith(prefix)), {})
    if field == "optimizer.nesterov":
        asked = {"optimizer.name": "sgd", "optimizer.momentum": 0.5}
    before = config_with(asked)
    value = flatten(before)[field]
    if field == "experiment":
        return
    other = plan(asked | {field: changed(field, value)})
    same = experiment.plan(before)
    assert (other.key == same.key) == (field in FREE), field


@pytest.mark.parametrize(
    "one, other",
    [
        ({"name": "idx", "path": "here"}, {"name": "idx", "path": "there"}),
        ({"name": "image_folder", "path": "here", "image_size": 32, "classes": "imagenet100"}, {"classes": ""}),
        ({"name": "image_folder", "path": "here", "image_size": 32, "memory": "no"}, {"memory": "yes"}),
    ],
)
def test_fields_of_data_in_files_reach_the_images(one, other):
    keys = {inputs.ImageSplits(DataSet(**one | change)).key for change in ({}, other)}
    assert len(keys) == 2


@pytest.mark.parametrize("path", sorted(p.stem for p in (ROOT / "configs" / "robustgrad").glob("[!_]*.py")))
def test_every_config_has_the_fields_of_the_base(path):
    """So that what was said of the base holds for all of them."""
    config = importlib.import_module(f"configs.robustgrad.{path}").get_config()
    assert flatten(config).keys() == flatten(base.get_config()).keys()


SMALL = {
    "duration": "2 steps",
    "batch_size": 8,
    "data.train_examples": 24,
    "data.val_examples": 8,
    "data.test_examples": 8,
    "data.image_size": 12,
    "optimizer.schedule.milestones": ("1 steps",),
    "evaluation.batch_size": 8,
    "evaluation.radii": (8.0,),
    "evaluation.draws": 1,
    "evaluation.attack_radii": (8.0,),
    "evaluation.attack_examples": 2,
    "evaluation.attack_steps": 1,
    "evaluation.curve_steps": 2,
    "evaluation.upper_bound": False,
    "evaluation.metrics": ("pcc",),
}


def made(store) -> set[str]:
    """Kinds of the stages that a store made."""
    return {key.split("-")[0] for key, use in store.used.items() if use.seconds is not None}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store with everything of the small config, and its result."""
    folder = tmp_path_factory.mktemp("plan") / "store"
    store = Store(folder)
    result = store.get(plan(SMALL))
    assert made(store) == {
        "classifier",
        "clean_accuracy",
        "random_perturbations",
        "under_attack",
        "pixel_curves",
        "robustness_result",
    }
    return folder, result


@pytest.mark.parametrize(
    "overrides, kinds",
    [
        ({"loop.log_every": 7, "data.workers": 3}, set()),
        ({"evaluation.radii": (4.0,)}, {"random_perturbations"}),
        ({"evaluation.attack_radii": (8.0, 4.0)}, {"under_attack"}),
        ({"evaluation.curve_steps": 3}, {"under_attack", "pixel_curves"}),
        ({"evaluation.curves": ("insertion", "deletion", "adversarial_insertion")}, {"pixel_curves"}),
        ({"evaluation.sensitivity": ("max_sensitivity",), "evaluation.sensitivity_draws": 1}, {"local_stability"}),
        ({"evaluation.upper_bound": True}, {"upper_bound"}),
        ({"evaluation.perturbations": ("aam",)}, set()),  # less than there is
        ({"evaluation.path_steps": 3, "evaluation.attack_beta": 3.0}, set()),  # of what is not measured
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_late_field_redoes_only_what_it_reaches(kept, overrides, kinds):
    folder, result = kept
    root, store = plan(SMALL | overrides), Store(folder)
    again = store.get(root)
    assert made(store) - {"robustness_result"} == kinds
    assert ("robustness_result" in made(store)) == (root.key != plan(SMALL).key)
    reused = {key for key, use in store.used.items() if use.seconds is None}
    assert root.weights.key in reused or not made(store)
    same = [key for key in again if key in result and not kinds]
    assert {key: again[key] for key in same} == {key: result[key] for key in same}


def test_validation_images_can_be_measured(kept):
    """The same network, measured on the images by which its checkpoint was chosen: the same accuracy."""
    folder, result = kept
    root, store = plan(SMALL | {"evaluation.split": "val"}), Store(folder)
    on_val = store.get(root)
    clean = store.get(root.measurements[0])["values"]
    assert "classifier" not in made(store) and clean["examples"] == SMALL["data.val_examples"]
    assert clean["cross_entropy"] == pytest.approx(result["val/cross_entropy"], rel=1e-6)
    assert on_val["val/accuracy"] == result["val/accuracy"] and "test/accuracy" not in on_val
    assert on_val["gradient/rps-8/pcc"] != result["gradient/rps-8/pcc"]


def test_attributions_can_be_left_out_of_the_attacks():
    both = {"evaluation.attributions": ("gradient", "input_x_gradient"), "evaluation.composites": ("epsilon_plus",)}
    kinds = lambda own: {
        (type(m).__name__, m.attribution) for m in plan(SMALL | both | own).measurements if m.attribution
    }
    every, gradient = kinds({}), kinds({"evaluation.attacked": ("gradient",)})
    assert {name for _, name in every} == {"gradient", "input_x_gradient", "lrp_epsilon_plus"}
    assert every - gradient == {
        (kind, name) for kind in ("UnderAttack", "PixelCurves") for name in ("input_x_gradient", "lrp_epsilon_plus")
    }
    with pytest.raises(ValueError, match=r"'smoothgrad'.*'gradient'"):
        plan(SMALL | {"evaluation.attacked": ("smoothgrad",)})


def test_a_sweep_shares_what_its_members_share(tmp_path, monkeypatch):
    """Two regularisers and two seeds, counted: each data set is read once, nothing is trained twice."""
    reads, trained = [], []
    read, train = inputs.ImageSplits.make, Classifier.make
    monkeypatch.setattr(inputs.ImageSplits, "make", lambda self, store: reads.append(self.seed) or read(self, store))
    monkeypatch.setattr(Classifier, "make", lambda self, store: trained.append(self.key) or train(self, store))
    light = {"evaluation.attributions": (), "evaluation.perturbations": (), "evaluation.curves": ()}
    members = [
        plan(SMALL | light | {"regularizer.name": name, "seed": seed})
        for seed in (0, 1)
        for name in ("none", "l2_cosine")
    ]
    store = Store(tmp_path)
    results = [store.get(root) for root in members]
    assert reads == [0, 1] and trained == [root.weights.key for root in members] and len(set(trained)) == 4
    assert len({result["test/cross_entropy"] for result in results}) == 4
    again = Store(tmp_path)
    assert [again.get(root) for root in members] == results and made(again) == set() and len(trained) == 4


def test_members_that_differ_in_numbers_make_one_stack():
    keys = lambda *overrides: {plan(own).stack_key for own in overrides}
    radius, rate = {"regularizer.radius": 8.0}, {"optimizer.learning_rate": 1e-4, "seed": 3}
    assert len(keys({}, radius, rate, {"optimizer.b1": 0.8})) == 1
    assert len(keys({}, {"regularizer.name": "hessian"}, {"batch_size": 64}, {"optimizer.clip_norm": 0.0})) == 4


def test_stages_say_where_their_numbers_come_from():
    """Every stackable field of a training is a number of the config, by the same name or in its section."""
    root = plan()
    numbers = set(core.numbers(root.weights)) - {"seed"}
    assert numbers == {
        "regularizer.radius",
        "regularizer.l2_weight",
        "regularizer.cosine_weight",
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
    }
    assert all(dataclasses.is_dataclass(stage) for stage in walk(root))
