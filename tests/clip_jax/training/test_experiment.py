"""Training: configs, refusals, the smallest real runs by the command line, resuming, several devices, the folder."""

import ast
import dataclasses
import importlib
import json
import socket
from functools import partial

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image

import clip_jax
from clip_jax import losses
from clip_jax.embed import Embedder
from clip_jax.training import attributes, experiment, measures, sources, step
from clip_jax.training.stages import ScenesPairs
from configs.clip import base
from launch.data import scenes
from launch.processes.stop import Preempted, Stop
from launch.reports.metrics import LOOP
from launch.run import flatten
from launch.stages import SettingError
from launch.store import Store
from launch.train import execute
from launch.training import duration, optim
from tests.clip_jax.towers import TINY, parameters, texts
from tests.clip_jax.training.small import CAPTIONS, SMALL, load, logged, small
from tests.commands import ROOT, finish, start, train
from tests.sections import read

FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "configs" / "clip").glob("[!_]*.py"))
RUNNABLE = [p for p in FILES if p.stem != "base"]


def options(values) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


def stopping(monkeypatch, at: int) -> None:
    """Ask every run of this process to stop after it has taken `at` steps."""
    asked = iter(range(10**6))
    monkeypatch.setattr(Stop, "requested", lambda self: next(asked) > at)


# -- configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_names_what_exists(path):
    config = load(path.stem)
    assert callable(importlib.import_module(config.experiment).plan)
    assert config.data.name in experiment.NAMES
    assert {name for kind in config.data.alike for name in kind} <= set(scenes.ATTRIBUTES)
    assert config.loop.best_metric in measures.VALIDATION

    def to_steps(text):
        return duration.to_steps(text, examples=20_000, batch_size=config.batch_size)

    total = to_steps(config.duration)
    read(optim.Optimizer, config.optimizer, "optimizer").create(total_steps=total, to_steps=to_steps)
    assert 0 < to_steps(config.loop.eval_every) < total and to_steps(config.optimizer.schedule.warmup) < total


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_can_be_frozen_stored_and_overridden(path):
    config = load(path.stem)
    assert set(json.loads(config.to_json())) == set(config)
    config.lock()
    with pytest.raises((AttributeError, KeyError), match="learning_rat"):
        config.optimizer.learning_rat = 1.0
    for key, value in flatten(FrozenConfigDict(config)).items():
        assert isinstance(value, str | bool | int | float | tuple), key
        assert not key.endswith(("weight", "rate", "decay", "until")) or type(value) is float, key
    assert flatten(config).keys() == flatten(base.get_config()).keys()


@pytest.mark.parametrize("path", RUNNABLE, ids=str)
def test_a_config_says_how_to_run_it(path):
    text = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    workdir = f"runs/{path.stem.replace('scenes', 'clip_scenes')}"
    assert f"python -m launch.train --config={path} --workdir={workdir}" in text


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, expected",
    [
        ({"data.name": "coco"}, ["data.name='coco'", *experiment.NAMES]),
        ({"data.name": "captions", "data.path": CAPTIONS}, ["data.name='captions' needs a tokenizer", "init_from"]),
        ({"data.name": "captions", "init_from": "embedded:scenes", "data.path": "a.xml"}, ["a.xml", ".jsonl, .csv"]),
        (
            {"data.name": "captions", "data.path": CAPTIONS, "data.images": "/no/folder"},
            ["data.images: /no/folder: no such"],
        ),
        ({"data.val_examples": 0}, ["data.val_examples=0", "best checkpoint"]),
        ({"data.captions_per_image": 0}, ["data.captions_per_image=0", "positive"]),
        ({"data.test_examples": 10**6}, ["data.test_examples"]),
        ({"data.group": 12, "batch_size": 24}, ["data.alike", "12 different members", "more images"]),
        ({"data.alike": ()}, ["data.alike=()", "((),)"]),
        ({"data.alike": (("shapes",),)}, ["no attribute 'shapes'", *scenes.ATTRIBUTES]),
        ({"data.group": 3}, ["batch_size=16", "groups of 3"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"batch_size": 320}, ["batch_size=320: more than the 300 training images"]),
        ({"trainable": ("image/blok.*",)}, ["image/blok", "paths: "]),
        ({"trainable": ()}, ["trainable=()", "('.*',)"]),
        ({"init_from": "embedded:no"}, ["no embedded checkpoint 'no'", "scenes"]),
        ({"init_from": "nowhere"}, ["nowhere"]),
        ({"model.tokenizer_from": "embedded:scenes", "model.text.context_length": 20}, ["context length of 32", "20"]),
        ({"optimizer.decay_mask": ("kernels",)}, ["optimizer.decay_mask", "kernels"]),
        ({"checkpoint_dtype": "int8"}, ["checkpoint_dtype='int8'", "float16"]),
        ({"sharding.mode": "ddp"}, ["sharding.mode='ddp'", "jit", "pmap"]),
        ({"sharding.model": 3}, ["sharding.model", "divisible"]),
        ({"sharding.model": 2, "sharding.mode": "pmap"}, ["sharding.model=2", "'jit'"]),
        ({"sharding.fsdp": True, "sharding.mode": "pmap"}, ["sharding.fsdp=True", "'jit'"]),
        ({"loop.best_metric": "val/loss"}, ["val/loss", *measures.VALIDATION]),
        ({"loop.best_mode": "min"}, ["loop.best_mode='min'", "max"]),
        ({"loop.eval_every": "2 times"}, ["loop.eval_every", "2 times"]),
        ({"model.image.heads": 5}, ["width 16", "5 heads"]),
        ({"model.activation": "relu"}, ["model.activation='relu'; valid names", "quick_gelu"]),
        ({"duration": "3 weeks"}, ["3 weeks", "epochs, steps, examples"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_run_is_refused_with_what_can(override, expected):
    """While it is planned: no run directory is touched, nothing is computed."""
    with pytest.raises(SettingError) as error:
        experiment.plan(FrozenConfigDict(small(**override)))
    for text in expected:
        assert text in str(error.value)


@pytest.mark.parametrize(
    "override, expected",
    [
        ({"sharding.model": 2}, ["sharding.model", "divide"]),  # there is one device
        ({"batch_size": 24, "data.group": 2}, ["batch_size", "take 20 or 40"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_these_devices_cannot_run_is_refused_before_data_are_read(override, expected, tmp_path, monkeypatch):
    """A plan may be made on another machine than the one that trains."""
    training = experiment.plan(FrozenConfigDict(small(**override))).training
    monkeypatch.setattr(ScenesPairs, "make", lambda *_: pytest.fail("data were read"))
    if "batch_size" in override:
        monkeypatch.setattr("launch.training.sharding.Layout.data_shards", 20)
    with pytest.raises(SettingError) as error:
        training.make(Store(tmp_path))
    for text in expected:
        assert text in str(error.value)


def test_the_attribute_loss_needs_attributes():
    override = {"data.name": "captions", "data.path": CAPTIONS, "init_from": "embedded:scenes", "data.alike": ((),)}
    with pytest.raises(SettingError, match=r"attribute_weight=1\.0: these images have no attributes"):
        experiment.plan(small(**override, attribute_weight=1.0))


# -- a step -----------------------------------------------------------------------------------


def one_step(trainable=(".*",), params=None, **overrides):
    """Parameters before and after a step on a batch of 6, and its metrics."""
    config = base.get_config().optimizer
    config.update(overrides)
    optimizer, _ = read(optim.Optimizer, config, "optimizer").create(total_steps=10, to_steps=lambda text: 0)
    state = step.create_state(params or parameters(TINY), optimizer, trainable)
    spec = clip_jax.clip.preprocess.Preprocessing(size=16, crop=16)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (6, 16, 16, 3), np.uint8), "ids": texts(TINY, (4, 9, 20, 7, 5, 12))}
    update = partial(step.update, config=TINY, preprocessing=spec, optimizer=optimizer, trainable=trainable)
    after, metrics = jax.jit(update)(state, batch)
    return state, after, metrics, (spec, batch)


def changed(before, after):
    found = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    return {"/".join(key.key for key in path) for path, moved in jax.tree_util.tree_leaves_with_path(found) if moved}


def test_a_step_is_the_gradient_of_the_contrastive_loss():
    sgd = dict(name="sgd", learning_rate=0.1, weight_decay=0.0, clip_norm=0.0)
    before, after, metrics, (spec, batch) = one_step(**sgd)

    def loss(params):
        pixels = (batch["image"] / 255.0 - np.array(spec.mean)) / np.array(spec.std)
        image = clip_jax.clip.model.encode_image(TINY, params, pixels.astype(np.float32))
        text = clip_jax.clip.model.encode_text(TINY, params, batch["ids"])
        return losses.contrastive(image, text, params["logit_scale"])[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(before.params)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), after.params, wanted)
    assert int(after.step) == 1


@pytest.mark.parametrize("trainable", [("text/.*",), ("logit_scale", ".*/projection/kernel")])
def test_only_what_is_trainable_is_trained(trainable):
    before, after, _, _ = one_step(trainable, decay_mask=(".*",))
    moved = changed(before.params, after.params)
    assert moved == set(jax.tree.leaves(step.split(path_tree(before.params), trainable)[0]))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(step.split(before.params, trainable)[0]))
    assert sum(leaf.size for leaf in jax.tree.leaves(before.opt_state)) == pytest.approx(2 * sizes, abs=5)


def path_tree(tree):
    return jax.tree_util.tree_map_with_path(lambda path, leaf: "/".join(key.key for key in path), tree)


def test_the_temperature_stays_above_one_hundredth():
    params = parameters(TINY) | {"logit_scale": np.float32(6.0)}
    still = dict(name="sgd", learning_rate=0.0, weight_decay=0.0, decay_mask=())
    _, after, metrics, _ = one_step(("logit_scale",), params, **still)
    assert float(after.params["logit_scale"]) == pytest.approx(np.log(100))
    assert float(metrics["logit_scale"]) == pytest.approx(100)


def test_the_attribute_loss_is_the_sum_of_cross_entropies():
    from torch import nn, tensor

    params = attributes.add_head(parameters(TINY), jax.random.key(0), (3, 2))
    rng = np.random.default_rng(0)
    params[attributes.HEAD]["bias"] = rng.normal(size=5).astype(np.float32)
    image, labels = rng.normal(size=(7, 20)).astype(np.float32), rng.integers(0, 2, (7, 2))
    logits = tensor(image @ params[attributes.HEAD]["kernel"] + params[attributes.HEAD]["bias"])
    wanted = sum(
        nn.functional.cross_entropy(part, tensor(labels[:, i])) for i, part in enumerate(logits.split((3, 2), 1))
    )
    assert float(attributes.cross_entropy(params, image, labels, (3, 2))) == pytest.approx(float(wanted), rel=1e-5)
    weights = [float(attributes.weight_at(at, weight=2.0, until=10)) for at in (0, 5, 7, 10, 50)]
    assert weights == pytest.approx([2.0, 2.0, 1.2, 0.0, 0.0])
    assert attributes.without_head(params).keys() == {"image", "text", "logit_scale"}


# -- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The smallest run on Scenes, by the command line."""
    workdir = tmp_path_factory.mktemp("scenes") / "run"
    return workdir, finish(train("configs/clip/scenes.py", workdir, *options(SMALL)))


def test_the_smallest_run(whole):
    workdir, output = whole
    assert "Scenes: 300 images with 2 captions each" in output
    result = json.loads((workdir / "result.json").read_text())
    wanted = {f"test/{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    wanted |= {f"test/zero_shot/{name}" for name in (*scenes.ATTRIBUTES, "family", "ground")}
    wanted |= {"test/gap_norm", "test/paired_cosine", "test/modality_accuracy", "test/images", "best_step"}
    assert result.keys() == wanted | set(measures.VALIDATION)
    assert all(np.isfinite(value) for value in result.values())
    assert result["test/images"] == 30
    logs = {key for row in logged(workdir) for key in row} - {"step", "time"}
    assert all(experiment.describe(key) for key in result.keys() | logs - LOOP.keys())
    assert experiment.describe("test/image_to_text_recall_at_5").title == "R@5, image to text"
    rows = [row for row in logged(workdir) if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["train/loss"] == pytest.approx(row["train/contrastive"] + row["train/attributes"]) for row in rows)
    supervised = [row["train/attributes"] for row in rows]
    assert supervised[0] > 5 and supervised[-1] == 0  # at 60 % of the steps it has gone
    assert all(13 < row["train/logit_scale"] < 16 for row in rows)  # from 1 / 0.07
    evaluated = {row["step"]: row["val/recall"] for row in logged(workdir) if "val/recall" in row}
    assert set(evaluated) == {2, 4}
    best = max(evaluated, key=lambda step: (evaluated[step], step))
    assert (result["best_step"], result["val/recall"]) == (best, pytest.approx(evaluated[best]))


def test_the_folder_is_the_measured_clip(whole):
    workdir, _ = whole
    clip = clip_jax.load(experiment.checkpoint_folder(workdir))
    root = experiment.plan(ConfigDict(json.loads((workdir / "config.json").read_text())))
    test = root.test.make(Store(workdir / "store"))
    found = measures.measure(Embedder(clip, 16), test, sources.scenes_zero_shot(test.attributes))
    result = json.loads((workdir / "result.json").read_text())
    for name, value in found.items():
        tolerance = 1e-3 if name in ("test/gap_norm", "test/paired_cosine") else 2 / 30 + 1e-9  # float16; a rank or two
        assert value == pytest.approx(result[name], abs=tolerance), name


def test_transformers_loads_the_folder_and_embeds_the_same(whole):
    import torch
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessor

    folder = experiment.checkpoint_folder(whole[0])
    clip, theirs = clip_jax.load(folder), CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    pairs = scenes.pairs(5, 6, held_out=True, full=True)
    captions = [texts[0] for texts in pairs.captions]
    pictures = [Image.fromarray(image) for image in pairs.images]
    ids = CLIPTokenizer.from_pretrained(folder)(captions, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        out = theirs(**ids, **pixels)
    ours = [
        losses.normalize(clip.encode_image(clip.params, clip.preprocess(pictures))),
        losses.normalize(clip.encode_text(clip.params, clip.tokenize(captions))),
    ]
    np.testing.assert_allclose(ours[0], out.image_embeds, atol=1e-5)
    np.testing.assert_allclose(ours[1], out.text_embeds, atol=1e-5)
    logits = np.exp(clip.params["logit_scale"]) * ours[0] @ ours[1].T
    np.testing.assert_allclose(logits, out.logits_per_image, atol=1e-4)


def test_stopping_and_resuming_change_no_number(whole, tmp_path, monkeypatch):
    """At a step without evaluation: captions and hard batches follow from the step."""
    config = ConfigDict(json.loads((whole[0] / "config.json").read_text()))
    with monkeypatch.context() as patch:
        stopping(patch, 3)  # two stages ask before they are made, the loop at each step
        with pytest.raises(Preempted, match=r"step [123] of 4"):
            execute(config, str(tmp_path / "run"))
    execute(config, str(tmp_path / "run"))
    rates = ("steps_per_second", "examples_per_second", "flops_per_second", "compile_seconds")
    speed = ("time", *(f"train/{rate}" for rate in rates))
    rows = lambda folder: [{k: v for k, v in row.items() if k not in speed} for row in logged(folder)]
    assert rows(tmp_path / "run") == rows(whole[0])
    assert (tmp_path / "run" / "result.json").read_text() == (whole[0] / "result.json").read_text()
    one, two = (experiment.checkpoint_folder(folder) / "model.safetensors" for folder in (tmp_path / "run", whole[0]))
    assert one.read_bytes() == two.read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """PNG files with captions, and the options that make the smallest run of configs/clip/finetune.py of them."""
    folder = tmp_path_factory.mktemp("pairs")
    made = scenes.pairs(3, 24, held_out=False, captions_per_image=2)
    rows = []
    for i, (image, captions) in enumerate(zip(made.images, made.captions, strict=True)):
        Image.fromarray(image).resize((40, 36)).save(folder / f"{i}.png")
        rows += [{"image": f"{i}.png", "caption": text} for text in captions]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return options(
        {
            "init_from": "embedded:scenes",
            "data.path": folder / "pairs.jsonl",
            "data.val_examples": 4,
            "data.test_examples": 4,
            "batch_size": 8,
            "duration": "3 steps",
            "optimizer.learning_rate": 1e-2,
            "optimizer.eps": 1e-2,  # so that rounding does not decide the sign of a step
            "loop.eval_every": "2 steps",
            "loop.log_every": 1,
            "model.dtype": "float32",
            "model.remat": "yes",
            "trainable": "('text/.*','logit_scale')",
        }
    )


@pytest.fixture(scope="module")
def fine_tuned(files, tmp_path_factory):
    """Three steps on two devices of one process."""
    workdir = tmp_path_factory.mktemp("finetune") / "run"
    return workdir, finish(train("configs/clip/finetune.py", workdir, *files, devices=2))


def test_fine_tuning_on_files_on_two_devices(fine_tuned):
    workdir, output = fine_tuned
    assert "16 images to train on, 4 to validate" in output and "4 images to test" in output
    result = json.loads((workdir / "result.json").read_text())
    assert result["test/images"] == 4 and not any("zero_shot" in name for name in result)
    before, after = (clip_jax.load(p) for p in (clip_jax.embedded("scenes"), experiment.checkpoint_folder(workdir)))
    moved = changed(before.params, after.params)
    assert moved and all(path.startswith("text/") or path == "logit_scale" for path in moved)
    far = jax.tree.map(lambda a, b: float(abs(a - b).max()), before.params, after.params)
    assert max(jax.tree.leaves(far)) > 1e-3
    assert dataclasses.replace(after.config, dtype="float32") == before.config
    first = next(row["train/loss"] for row in logged(workdir) if "train/loss" in row)
    assert 0 < first < np.log(8)  # it knows Scenes


def test_two_processes_fine_tune_as_one(files, fine_tuned, tmp_path, monkeypatch):
    """Each reads its half of every batch; validation, the result and the folder are one process's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", address)
    command = ("configs/clip/finetune.py", tmp_path / "run", *files, f"--coordinator={address}", "--num_processes=2")
    processes = [train(*command, f"--process_id={i}") for i in range(2)]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    losses_of = lambda folder: [row["train/loss"] for row in logged(folder) if "train/loss" in row]
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(fine_tuned[0]), rel=1e-3, abs=1e-5)
    results = [json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run", fine_tuned[0])]
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    clips = [clip_jax.load(experiment.checkpoint_folder(folder)) for folder in (tmp_path / "run", fine_tuned[0])]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), clips[0].params, clips[1].params)


def test_training_on_four_devices_is_training_on_one():
    output = finish(start("-m", "tests.clip_jax.training.train_worker", devices=4))
    found = json.loads(output.splitlines()[-1])
    assert found["devices"] == 4 and found["moved"] > 1e-3  # otherwise equality would say nothing
    assert found["frozen"] == 0
    for name in ("jit", "pmap", "split parameters", "jit, two parts", "pmap, two parts"):
        assert found[name]["parameters"] < 1e-9 and found[name]["metrics"] < 1e-9, name
