"""The experiment and its configs: smallest real runs by the command line, published numbers, refusals."""

import ast
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs.robustgrad import base
from launch import data
from launch.data import sources
from launch.networks import activations
from launch.run import flatten
from launch.stages import settings
from launch.store import MARKER
from launch.train import called, module_of
from launch.training import duration, optim, sharding
from robustgrad_jax import attributions, experiment, lrp, models, regularizers
from robustgrad_jax.gradients import NOISE_KINDS
from robustgrad_jax.measures import evaluation
from robustgrad_jax.measures.settings import CURVES, PERTURBATIONS
from tests.commands import ROOT, finish, start, train
from tests.launch.test_train import logged

FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "configs" / "robustgrad").glob("[!_]*.py"))
RUNNABLE = [p for p in FILES if p.stem != "base"]
SMALL = (
    "--config.batch_size=16",
    "--config.data.train_examples=64",
    "--config.data.val_examples=32",
    "--config.data.test_examples=24",
    "--config.data.image_size=12",
    "--config.loop.log_every=1",
    "--config.evaluation.batch_size=16",
    "--config.evaluation.examples=20",
    "--config.evaluation.draws=2",
    "--config.evaluation.radii=(8.0,)",
    "--config.evaluation.attack_radii=(8.0,)",
    "--config.evaluation.attack_examples=6",
    "--config.evaluation.attack_steps=2",
    "--config.evaluation.curve_steps=4",
)


def load(path) -> ConfigDict:
    return importlib.import_module(".".join(path.with_suffix("").parts)).get_config()


# -- configs ----------------------------------------------------------------------------------


def test_the_published_configs_are_there():
    names = {p.stem for p in RUNNABLE}
    assert names >= {"cifar10_lenet", "cifar10_resnet18", "imagenet100_resnet18"}
    assert names >= {"fashion_mnist_lenet", "digits_lenet", "scenes", "scenes_comparison", "fashion_comparison"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_names_what_exists(path):
    config = load(path)
    assert module_of(config.experiment) is experiment
    models.check(config.model.name)
    activations.get(config.model.activation, config.model.beta)
    assert config.data.name in data.NAMES
    assert config.sharding.mode in sharding.MODES
    assert config.regularizer.noise in NOISE_KINDS
    for name in regularizers.NAMES:  # every method by --config.regularizer.name
        config.regularizer.name = name
        assert type(experiment._regularizer(config)) is regularizers.kind(name)[0]

    def to_steps(text):
        return duration.to_steps(text, examples=45_000, batch_size=config.batch_size)

    total = to_steps(config.duration)
    settings(optim.Optimizer, config, "optimizer").create(total_steps=total, to_steps=to_steps)
    assert all(to_steps(m) < total for m in config.optimizer.schedule.milestones)
    assert to_steps(config.loop.eval_every) > 0 and to_steps(config.loop.checkpoint_every) > 0


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_can_be_frozen_stored_and_overridden(path):
    config = load(path)
    assert set(json.loads(config.to_json())) == set(config)
    config.lock()
    with pytest.raises((AttributeError, KeyError), match="learning_rat"):
        config.optimizer.learning_rat = 1.0
    for key, value in flatten(FrozenConfigDict(config)).items():
        assert isinstance(value, str | bool | int | float | tuple), key
        # a whole number would refuse "--config.…=0.5"
        assert not key.endswith(("radius", "weight", "rate", "beta", "decay")) or type(value) is float, key
    assert flatten(config).keys() == flatten(base.get_config()).keys()


@pytest.mark.parametrize("path", RUNNABLE, ids=str)
def test_a_config_says_how_to_run_it(path):
    text = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    workdir = f"runs/{path.stem.replace('scenes', 'robustgrad_scenes')}"
    command = "sweep" if path.stem.endswith("_comparison") else "train"
    assert f"python -m launch.{command} --config={path} --workdir={workdir}" in text


@pytest.mark.parametrize("name, seeds", [("scenes_comparison", ()), ("fashion_comparison", (0, 1, 2))])
def test_a_comparison_is_a_sweep_over_regularisers_and_seeds(name, seeds):
    config, members = load(Path(f"configs/robustgrad/{name}.py")), called(f"configs/robustgrad/{name}.py", "sweep")
    assert {member["regularizer.name"] for member in members} == {"none", "l2_cosine"}
    assert len(members) == 2 * max(1, len(seeds)) and {member.get("seed") for member in members} == set(seeds or [None])
    assert all(member.keys() <= flatten(config).keys() for member in members)


PUBLISHED = {
    "cifar10_lenet": {
        "data.name": "cifar10",
        "model.name": "lenet",
        "optimizer.name": "adam",
        "optimizer.weight_decay": 4e-5,
        "duration": "300 epochs",
        "optimizer.schedule.milestones": ("100 epochs", "150 epochs"),
        "regularizer.l2_weight": 0.01,
        "regularizer.cosine_weight": 1.0,
        "regularizer.hessian.weight": 1e-3,
        "data.crop_padding": 4,
        "data.flip": True,
    },
    "cifar10_resnet18": {
        "data.name": "cifar10",
        "model.name": "resnet18_cifar",
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 1e-2,
        "duration": "200 epochs",
        "optimizer.schedule.milestones": ("100 epochs", "150 epochs"),
        "regularizer.l2_weight": 0.01,
        "regularizer.cosine_weight": 0.1,
        "regularizer.hessian.weight": 1e-4,
        "data.crop_padding": 4,
        "data.flip": True,
    },
    "imagenet100_resnet18": {
        "data.name": "imagenet100",
        "model.name": "resnet18",
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 1e-2,
        "duration": "90 epochs",
        "optimizer.schedule.milestones": ("40 epochs", "60 epochs", "80 epochs"),
        "regularizer.l2_weight": 1.0,
        "regularizer.cosine_weight": 0.01,
        "regularizer.hessian.weight": 1e-3,
        "data.image_size": 224,
        "data.flip": True,
    },
}
EVERYWHERE = {
    "batch_size": 128,
    "optimizer.learning_rate": 1e-3,
    "optimizer.clip_norm": 0.5,
    "optimizer.schedule.name": "step",
    "optimizer.schedule.factor": 0.1,
    "model.activation": "softplus",
    "model.beta": 3.0,
    "regularizer.name": "l2_cosine",
    "regularizer.radius": 4.0,
    "regularizer.noise": "uniform",
    "regularizer.detach_source": True,
    "evaluation.batch_size": 100,
    "evaluation.radii": (4.0, 8.0, 16.0),
    "evaluation.draws": 10,
    "evaluation.upper_bound": True,
    "evaluation.attributions": ("gradient",),
    "evaluation.perturbations": ("rps", "aam"),
    "evaluation.attack_steps": 100,
    "evaluation.attack_gamma": 0.5,
    "evaluation.attack_beta": 20.0,
    "evaluation.curves": ("insertion", "adversarial_insertion"),
    "evaluation.curve_steps": 20,
    "evaluation.path_steps": 50,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyperparameters(name):
    """Joo et al. 2023, section 5 and appendix."""
    config = flatten(load(ROOT.joinpath("configs/robustgrad", f"{name}.py").relative_to(ROOT)))
    wanted = EVERYWHERE | PUBLISHED[name]
    assert {key: config[key] for key in wanted} == wanted


def test_published_normalisation():
    assert sources.CIFAR10 == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert sources.IMAGENET == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, expected",
    [
        ({"regularizer.name": "l3"}, ["regularizer.name='l3'; valid names", *regularizers.NAMES]),
        ({"model.name": "vgg"}, ["model.name='vgg'", *models.NAMES]),
        ({"regularizer.noise": "salt"}, ["regularizer.noise='salt'", *NOISE_KINDS]),
        ({"regularizer.radius": -4.0}, ["regularizer.radius=-4.0", "at least 0"]),
        ({"regularizer.name": "iga", "regularizer.radius": -4.0}, ["regularizer.radius=-4.0", "at least 0"]),
        ({"regularizer.name": "iga", "regularizer.iga.steps": -1}, ["regularizer.iga.steps=-1", "at least 0"]),
        ({"regularizer.iga_weight": 0.5}, ["regularizer.iga_weight=0.5", "it is regularizer.iga.weight now"]),
        ({"regularizer.ig_norm_path_steps": 5}, ["it is regularizer.ig_norm.path_steps now"]),
        ({"regularizer.weight": 5}, ["regularizer.weight=5", "no such setting"]),
        ({"optimizer.decay_mask": (".*kernle",)}, [".*kernle", "matches no"]),
        ({"optimizer.schedule.milestones": ("9 steps", "7 steps")}, ["optimizer.schedule.milestones", "increase"]),
        ({"loop.best_metric": "val/loss"}, ["loop.best_metric='val/loss'", "val/accuracy", "val/cross_entropy"]),
        ({"loop.best_mode": "most"}, ["loop.best_mode='most'", "max", "min"]),
        ({"seed": 2**31}, ["seed=2147483648", "below 2**31"]),
        ({"model.activation": "tanh"}, ["unknown activation 'tanh'", "gelu, relu, silu, softplus"]),
        ({"data.name": "mnist"}, ["data.name='mnist'", *data.NAMES]),
        ({"optimizer.name": "lion"}, ["optimizer.name='lion'", *optim.OPTIMIZERS]),
        ({"optimizer.schedule.name": "linear"}, ["schedule.name='linear'", *optim.SCHEDULES]),
        ({"sharding.mode": "ddp"}, ["sharding.mode='ddp'", *sharding.MODES]),
        ({"duration": "3 weeks"}, ["3 weeks", "epochs, steps, examples"]),
        ({"data.val_examples": 0}, ["data.val_examples=0", "loop.best_metric='' for the last"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"train": False}, ["--config.init_from=RUN_OR_FILE"]),
        ({"evaluation.attributions": ("lime",)}, ["evaluation.attributions has 'lime'", *attributions.NAMES]),
        ({"evaluation.composites": ("gamma",)}, ["evaluation.composites has 'gamma'", *lrp.NAMES]),
        ({"evaluation.perturbations": ("fgsm",)}, ["evaluation.perturbations has 'fgsm'", *PERTURBATIONS]),
        ({"evaluation.metrics": ("lpips",)}, ["evaluation.metrics has 'lpips'", *evaluation.SIMILARITIES]),
        ({"evaluation.curves": ("roar",)}, ["evaluation.curves has 'roar'", *CURVES]),
        ({"evaluation.sensitivity": ("x",)}, ["evaluation.sensitivity has 'x'", *evaluation.SENSITIVITIES]),
        ({"evaluation.perturbations": ("rps",)}, ["'adversarial_insertion'", "no attack", "aam"]),
        ({"evaluation.attack_steps": 0}, ["evaluation.attack_steps=0"]),
        ({"evaluation.curve_steps": 1}, ["evaluation.curve_steps=1", "at least 2"]),
        ({"evaluation.top_k": 257}, ["evaluation.top_k=257", "256 pixels"]),
        ({"evaluation.attack_gamma": 0.0}, ["evaluation.attack_gamma=0.0"]),
        ({"evaluation.radii": (8.0, -1.0)}, ["evaluation.radii=(8.0, -1.0)", "above 0"]),
        ({"evaluation.sensitivity_radius": 0.0}, ["evaluation.sensitivity_radius=0.0", "above 0"]),
        ({"evaluation.attack_examples": 9999}, ["evaluation.attack_examples=9999"]),
        ({"data.image_size": 8}, ["SSIM's window of 11", "data.image_size"]),
        (
            {"evaluation.attributions": ("grad_cam",), "evaluation.grad_cam_layer": "layer9"},
            ["unknown layer 'layer9'", "conv22"],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_run_is_refused_with_what_can(override, expected):
    """Before anything is computed: there is no run directory to touch."""
    config = load(next(p for p in FILES if p.stem == "digits_lenet"))
    config.update_from_flattened_dict(override)
    with pytest.raises(ValueError) as error:
        experiment.plan(FrozenConfigDict(config))
    for text in expected:
        assert text in str(error.value)


# -- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The runs started here share what they compile."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        environment.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three steps on the bundled digits, with evaluation after each."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    budget = ("--config.duration=3 steps", "--config.optimizer.schedule.milestones=('2 steps',)")
    every = "--config.loop.eval_every=1 steps"
    command = ("configs/robustgrad/digits_lenet.py", workdir, *SMALL, *budget, every)
    return workdir, finish(train(*command)), command


def test_the_smallest_run(digits):
    workdir, output, _ = digits
    assert "handwritten digits" in output
    result = json.loads((workdir / "result.json").read_text())
    similar = ("cosine", "pcc", "ssim", "ssim_published", "mse_published", "signed_cosine")
    attacked = (*similar, *(f"target_{k}" for k in similar[:-1]), "accuracy", "logits_change", "nonfinite", "examples")
    bounds = ("l2", "cosine_distance", "gradient_norm", "hessian_product_norm", "bound", "hessian_frobenius")
    bounds = (*bounds, "hessian_published", *similar, "accuracy", "nonfinite")
    wanted = {"best_step", "val/accuracy", "val/cross_entropy"}
    wanted |= {"test/accuracy", "test/cross_entropy", "test/examples"}
    wanted |= {f"gradient/rps-8/{k}" for k in (*similar, "accuracy", "nonfinite", "examples")}
    wanted |= {f"gradient/aam-8/{k}" for k in attacked} | {f"upper-bound/{k}" for k in (*bounds, "examples")}
    wanted |= {f"gradient/{c}/{k}" for c in ("insertion", "aam-8-insertion") for k in ("area", "nonfinite", "examples")}
    assert result.keys() == wanted
    assert all(np.isfinite(v) for v in result.values())
    assert result["test/examples"] == 24 and result["gradient/aam-8/examples"] == 6
    assert result["gradient/rps-8/examples"] == result["upper-bound/examples"] == 20
    assert all(value == 0 for key, value in result.items() if key.endswith("/nonfinite"))
    assert 0.5 < result["gradient/rps-8/cosine"] <= 1 and 0 <= result["test/accuracy"] <= 1
    assert "RPS ε=8" in output and f"{result['gradient/rps-8/pcc']:.3f}" in output
    assert {str(p.relative_to(workdir / "artifacts")) for p in (workdir / "artifacts").rglob("*.*")} == {
        "figures/attributions.png",
        "figures/curves.png",
    }
    assert {path.parent.name.split("-")[0] for path in (workdir / "store").glob(f"*/{MARKER}")} == {
        "classifier",
        "clean_accuracy",
        "random_perturbations",
        "under_attack",
        "pixel_curves",
        "upper_bound",
        "robustness_result",
    }
    assert all(experiment.describe(key) for key in result)  # every number has a meaning


def classifier(workdir) -> Path:
    """The folder of the store in which the network was trained."""
    (folder,) = (workdir / "store").glob("classifier-*")
    return folder


def test_the_loss_is_cross_entropy_and_the_weighted_terms(digits):
    rows = [row for row in logged(classifier(digits[0])) if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        terms = 0.01 * row["train/l2"] + 1.0 * row["train/cosine"]
        assert terms > 0 and row["train/loss"] == pytest.approx(row["train/cross_entropy"] + terms, rel=1e-5)
        assert 0 <= row["train/accuracy"] <= 1 and row["train/gradient_norm"] > 0


def test_the_best_checkpoint_on_validation_is_measured(digits):
    workdir = digits[0]
    result = json.loads((workdir / "result.json").read_text())
    accuracy = {row["step"]: row["val/accuracy"] for row in logged(classifier(workdir)) if "val/accuracy" in row}
    assert set(accuracy) == {1, 2, 3}
    best = max(accuracy, key=lambda step: (accuracy[step], step))
    assert result["best_step"] == best and result["val/accuracy"] == pytest.approx(accuracy[best])


def times(folder) -> dict[Path, int]:
    """When each file was written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and ".lock" not in str(p)}


def test_what_is_measured_is_measured_once(digits):
    """Without its result the run goes through its stages again and finds all of them done."""
    workdir, _, command = digits
    before, result = times(workdir / "store"), json.loads((workdir / "result.json").read_text())
    (workdir / "result.json").unlink()
    output = finish(train(*command))
    assert json.loads((workdir / "result.json").read_text()) == result
    assert times(workdir / "store") == before
    assert re.search(r"robustness_result-\w+: reused", output) and "made in" not in output


def test_other_measurements_retrain_nothing(digits):
    """Another radius of the attack makes that attack alone, and the earlier result stays."""
    workdir, _, command = digits
    before, result = times(workdir / "store"), json.loads((workdir / "result.json").read_text())
    kept = [argument for argument in command if "attack_radii" not in str(argument)]
    output = finish(train(*kept, "--config.evaluation.attack_radii=(4.0,8.0)"))
    assert before.items() <= times(workdir / "store").items()
    made = re.findall(r"^ *(\w+)-\w+: made in", output, re.MULTILINE)
    assert made == ["under_attack", "robustness_result"]
    again = json.loads((workdir / "result.json").read_text())
    assert again.items() > result.items()
    assert {key.split("/")[1] for key in again.keys() - result.keys()} == {"aam-4", "aam-4-insertion"}
    assert json.loads((workdir / "history" / "1" / "result.json").read_text()) == result


def test_a_comparison(tmp_path):
    """Both networks trained a little, from one store; a table of both, and their figures side by side."""
    store, study = tmp_path / "store", tmp_path / "study"
    budget = ("--config.duration=2 steps", "--config.optimizer.schedule.milestones=('1 steps',)")
    args = (*SMALL, *budget, "--config.evaluation.upper_bound=False", f"--store={store}")
    members = called("configs/robustgrad/scenes_comparison.py", "sweep")
    names = [member["regularizer.name"] for member in members]
    for name in names:
        member = f"--config.regularizer.name={name}"
        finish(train("configs/robustgrad/scenes_comparison.py", study / name, *args, member))
    configs = [json.loads((study / name / "config.json").read_text()) for name in names]
    assert [config["regularizer"].pop("name") for config in configs] == ["none", "l2_cosine"]
    assert configs[0] == configs[1]  # the same budget and the same seed
    results = [json.loads((study / name / "result.json").read_text()) for name in names]
    assert results[0].keys() == results[1].keys() and results[0] != results[1]
    assert len(list(store.glob("classifier-*"))) == 2 and not (study / "none" / "store").exists()

    table = finish(start("-m", "launch.report", study, "--tables"))
    for title in ("none", "l2_cosine", "accuracy", "RPS ε=8", "AAM ε=8", "cosine", "PCC", "SSIM", "insertion", "area"):
        assert title in table
    keys = ["test/accuracy", "gradient/aam-8/accuracy", "gradient/insertion/area", "gradient/aam-8-insertion/area"]
    keys += [f"gradient/{group}/{metric}" for group in ("rps-8", "aam-8") for metric in ("cosine", "pcc", "ssim")]
    shown = [float(number) for number in re.findall(r"\d\.\d+", table)]
    for result in results:
        assert all(min(abs(result[key] - number) for number in shown) < 6e-4 for key in keys)

    before = times(store)
    experiment.compare(tmp_path / "artifacts", [(name, study / name) for name in names])
    assert times(store) == before
    for name in ("attributions", "curves"):
        assert (tmp_path / "artifacts" / "gradient" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
