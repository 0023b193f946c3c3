"""The plan of a config: every field reaches a stage or is free, a late field redoes only what it reaches."""

import json
from pathlib import Path

import pytest
from flax import traverse_util

import clip_jax
from clip_jax.training import experiment
from clip_jax.training.stages import ClipEvaluation, ClipTraining
from configs.clip import base
from launch.run import flatten
from launch.store import Store
from launch.train import execute
from tests.clip_jax.training.small import CAPTIONS, small
from tests.commands import finish, start

FRESH = {}
CHECKPOINT = {"init_from": "embedded:scenes"}
PLAIN = CHECKPOINT | {"data.path": CAPTIONS, "data.alike": ((),), "attribute_weight": 0.0}
FILE = PLAIN | {"data.name": "captions"}
# Field -> the config, another value, and what has to be made again: the training, the evaluation, or nothing ("free").
FIELDS = {
    "seed": (FRESH, 1, "training"),
    "precision": (FRESH, "highest", "training"),
    "batch_size": (FRESH, 32, "training"),
    "accumulation": (FRESH, 2, "training"),
    "duration": (FRESH, "5 steps", "training"),
    "init_from": (FRESH, "embedded:scenes", "training"),
    "trainable": (FRESH, ("text/.*",), "training"),
    "attribute_weight": (FRESH, 0.5, "training"),
    "attribute_until": (FRESH, 0.5, "training"),
    "checkpoint_dtype": (FRESH, "float32", "free"),
    "data.name": (
        CHECKPOINT | {"data.path": CAPTIONS, "data.alike": ((),), "attribute_weight": 0.0},
        "captions",
        "training",
    ),
    "data.val_examples": (FRESH, 21, "training"),
    "data.test_examples": (FRESH, 31, "evaluation"),
    "data.train_examples": (FRESH, 301, "training"),
    "data.captions_per_image": (FRESH, 3, "training"),
    "data.evaluation_seed": (FRESH, 1, "training"),
    "data.alike": (FRESH, ((),), "training"),
    "data.group": (FRESH, 4, "training"),
    "data.path": (FILE, "OTHER", "training"),
    "data.val_path": (FILE, "OTHER", "training"),
    "data.test_path": (FILE, "OTHER", "training"),  # without it the test images are held out of the training file
    "data.images": (FILE, "FOLDER", "training"),
    "data.image_column": (FILE, "file", "training"),
    "data.caption_column": (FILE, "text", "training"),
    "data.workers": (FRESH, 2, "free"),
    "model.dtype": (FRESH, "bfloat16", "training"),
    "model.remat": (FRESH, "yes", "free"),
    "model.unroll": (FRESH, False, "free"),
    "model.tokenizer_from": (FRESH, "embedded:scenes", "training"),
    "model.projection": (FRESH, 4, "training"),
    "model.activation": (FRESH, "gelu", "training"),
    "model.image.image_size": (FRESH, 16, "training"),
    "model.image.patch_size": (FRESH, 4, "training"),
    "model.image.width": (FRESH, 8, "training"),
    "model.image.layers": (FRESH, 2, "training"),
    "model.image.heads": (FRESH, 2, "training"),
    "model.image.mlp_width": (FRESH, 8, "training"),
    "model.text.context_length": (FRESH, 40, "training"),
    "model.text.width": (FRESH, 8, "training"),
    "model.text.layers": (FRESH, 2, "training"),
    "model.text.heads": (FRESH, 2, "training"),
    "model.text.mlp_width": (FRESH, 8, "training"),
    "optimizer.name": (FRESH, "adam", "training"),
    "optimizer.learning_rate": (FRESH, 1e-4, "training"),
    "optimizer.weight_decay": (FRESH, 0.2, "training"),
    "optimizer.clip_norm": (FRESH, 2.0, "training"),
    "optimizer.b1": (FRESH, 0.8, "training"),
    "optimizer.b2": (FRESH, 0.9, "training"),
    "optimizer.eps": (FRESH, 1e-6, "training"),
    "optimizer.momentum": (FRESH, 0.5, "training"),
    "optimizer.nesterov": (FRESH, True, "training"),
    "optimizer.decay_mask": (FRESH, (".*",), "training"),
    "optimizer.schedule.name": (FRESH, "constant", "training"),
    "optimizer.schedule.warmup": (FRESH, "2 steps", "training"),
    "optimizer.schedule.milestones": (FRESH, ("2 steps",), "training"),
    "optimizer.schedule.factor": (FRESH, 0.5, "training"),
    "optimizer.schedule.final": (FRESH, 0.5, "training"),
    "sharding.mode": (FRESH, "pmap", "free"),
    "sharding.model": (FRESH, 2, "free"),
    "sharding.fsdp": (FRESH, True, "free"),
    "loop.log_every": (FRESH, 2, "free"),
    "loop.eval_every": (FRESH, "3 steps", "training"),
    "loop.checkpoint_every": (FRESH, "3 steps", "free"),
    "loop.steps_per_call": (FRESH, 2, "free"),
    "loop.best_metric": (FRESH, "val/image_to_text_recall_at_1", "training"),
    "evaluation.batch_size": (FRESH, 8, "free"),
}
NOWHERE = {"experiment", "loop.best_mode"}  # names the module; has one valid value


def test_every_field_has_a_line_here():
    """The files of configs/clip have the fields of the base."""
    assert set(FIELDS) | NOWHERE == set(flatten(base.get_config()))


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_reaches_a_stage_or_is_free(field, tmp_path):
    context, value, reached = FIELDS[field]
    (tmp_path / "other.csv").write_text("image,caption\nc.png,a ring\n")
    value = {"OTHER": str(tmp_path / "other.csv"), "FOLDER": str(tmp_path)}.get(str(value), value)
    one, other = (experiment.plan(small(**context | change)) for change in ({}, {field: value}))
    assert one != other
    assert (one.training.key != other.training.key) == (reached == "training")
    assert (one.key != other.key) == (reached != "free")


def test_members_of_a_sweep_over_numbers_can_share_a_program():
    one, other = (
        experiment.plan(small(**{"seed": seed, "optimizer.learning_rate": rate, "attribute_weight": weight}))
        for seed, rate, weight in ((0, 1e-3, 1.0), (1, 2e-3, 0.5))
    )
    assert one.training.stack_key == other.training.stack_key and one.training.key != other.training.key
    without = experiment.plan(small(attribute_weight=0.0))
    assert without.training.stack_key != one.training.stack_key


def test_a_captions_file_counts_by_its_content_and_a_test_file_of_its_own_by_itself(tmp_path):
    copy = tmp_path / "copy.csv"
    copy.write_text(Path(CAPTIONS).read_text())
    images = {"data.images": str(tmp_path)}
    one, moved = (experiment.plan(small(**FILE | images | {"data.path": str(path)})) for path in (CAPTIONS, copy))
    assert one.key == moved.key
    copy.write_text(copy.read_text() + "c.png,a ring\n")
    assert one.training.key != experiment.plan(small(**FILE | images | {"data.path": str(copy)})).training.key
    tested = [
        experiment.plan(small(**FILE | images | {"data.test_path": str(copy), "data.test_examples": n})) for n in (2, 3)
    ]
    assert tested[0].training.key == tested[1].training.key and tested[0].key != tested[1].key


def test_a_plan_starts_no_backend():
    """Sweeps plan their members on machines whose accelerators are busy, or that have none."""
    program = (
        "from clip_jax.training import experiment; from tests.clip_jax.training.small import small\n"
        "experiment.plan(small())\n"
        "from jax._src import xla_bridge; print(list(xla_bridge._backends))"
    )
    assert finish(start("-c", program)).splitlines()[-1] == "[]"


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run directory, and its result."""
    workdir = tmp_path_factory.mktemp("plan") / "run"
    return workdir, execute(small(), str(workdir))


@pytest.fixture
def made(monkeypatch):
    """The names of stages that are made from now on."""
    names = []

    def watch(kind):
        make = kind.make

        def watched(self, store):
            names.append(kind.__name__)
            return make(self, store)

        monkeypatch.setattr(kind, "make", watched)

    watch(ClipTraining)
    watch(ClipEvaluation)
    return names


def test_a_program_has_the_shapes_of_the_training(whole):
    root = experiment.plan(small())
    training = root.training
    program = training.program(training.sharding.layout(training.sharding.rules(training.outline().config)))
    assert {name: array.shape for name, array in program.batch.items()} == {"row": (16,), "text": (16,)}
    images, ids = program.resident["images"], program.resident["ids"]
    assert (len(images), images.row_shape, len(ids)) == (300, (32, 32, 3), 600)
    assert program.numbers.keys() >= {"optimizer.learning_rate", "optimizer.weight_decay", "attribute_weight"}
    shapes = training.outline().params
    trained = root.training.trained(Store(whole[0] / "store")).params
    assert {p: a.shape for p, a in _flat(shapes).items()} == {p: a.shape for p, a in _flat(trained).items()}
    assert _flat(program.state.params).keys() == _flat(trained).keys() | {
        "attribute_head/kernel",
        "attribute_head/bias",
    }


def _flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_a_finished_run_asked_again_trains_nothing(whole, made):
    workdir, result = whole
    assert execute(small(), str(workdir)) == result
    (workdir / "result.json").unlink()
    assert execute(small(), str(workdir)) == result
    assert made == []


def test_a_late_field_redoes_only_the_evaluation(whole, made):
    workdir, result = whole
    later = execute(small(**{"data.test_examples": 25}), str(workdir))
    assert made == ["ClipEvaluation"]
    assert later["test/images"] == 25 and later["best_step"] == result["best_step"]
    assert len(list(workdir.glob("store/clip_training-*"))) == 1
    assert len(list(workdir.glob("store/clip_evaluation-*"))) == 2  # the earlier result stays
    assert execute(small(), str(workdir)) == result and made == ["ClipEvaluation"]


def test_a_free_field_makes_nothing_and_changes_what_is_left(whole, made):
    workdir, result = whole
    stored = lambda: json.loads((experiment.checkpoint_folder(workdir) / "config.json").read_text())["dtype"]
    assert stored() == "float16"
    assert execute(small(checkpoint_dtype="float32"), str(workdir)) == result and made == []
    assert stored() == "float32"
    assert clip_jax.load(experiment.checkpoint_folder(workdir)).config.projection == 8


def test_an_early_field_redoes_what_it_reaches(whole, made):
    workdir, result = whole
    again = execute(small(**{"optimizer.learning_rate": 1e-2}), str(workdir))
    assert made == ["ClipEvaluation", "ClipTraining"]  # the evaluation asks for the training
    assert again.keys() == result.keys() and again != result
