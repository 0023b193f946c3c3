"""A stack of classifiers against the same ones made alone, in float64, and every number that stacks."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs.robustgrad import digits_lenet
from launch.data import augment
from launch.files import load_tree
from launch.journal import Journal
from launch.processes.stop import Preempted, Stop
from launch.stages import SettingError, numbers, stacked_numbers, with_numbers
from launch.store import MARKER, Store
from launch.training import checkpoint, fit, sharding
from robustgrad_jax import experiment, regularizers, training
from robustgrad_jax.stages.classifier import Classifier
from tests.commands import finish, start

SMALL = {
    "duration": "6 steps",
    "batch_size": 8,
    "data.train_examples": 40,
    "data.val_examples": 12,
    "data.test_examples": 12,
    "data.crop_padding": 2,
    "data.flip": True,
    "data.image_size": 12,
    "optimizer.schedule.milestones": ("4 steps",),
    "loop.log_every": 1,
    "loop.eval_every": "2 steps",
    "loop.checkpoint_every": "2 steps",
    "loop.best_metric": "val/cross_entropy",
    "loop.best_mode": "min",
    "evaluation.perturbations": (),
    "evaluation.curves": (),
    "evaluation.attributions": (),
    "evaluation.attack_examples": 0,
    "evaluation.upper_bound": False,
    "evaluation.batch_size": 8,
}
MEMBERS = (
    {"seed": 0, "optimizer.learning_rate": 1e-3, "regularizer.cosine_weight": 1.0, "optimizer.b1": 0.9},
    {"seed": 1, "optimizer.learning_rate": 3e-3, "regularizer.cosine_weight": 0.3, "optimizer.b1": 0.8},
)


def plan(overrides):
    config = digits_lenet.get_config()
    config.update_from_flattened_dict(SMALL | overrides)
    return experiment.plan(FrozenConfigDict(config))


@contextlib.contextmanager
def in_double():
    """float64 parameters and images, and with them all that follows; also in the threads of the loop."""
    create = training.create_state

    def created(*args):
        to_double = lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a
        return jax.tree.map(to_double, create(*args))

    def textured(images, mean, std, original=augment.normalize):
        """Digits stand on one colour, where the maxima of a pool are equal: rounding would pick one of them."""
        texture = np.random.default_rng(0).normal(size=images.shape[1:])
        return original(images, mean, std, dtype=jnp.float64) + 0.01 * texture

    jax.config.update("jax_enable_x64", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "create_state", created)
        patch.setattr(augment, "normalize", textured)
        yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def double():
    with in_double():
        yield


@pytest.fixture(scope="module")
def both(double, tmp_path_factory):
    """(folder, plans, results alone, results of a stack that was stopped midway and made again)."""
    folder, plans = tmp_path_factory.mktemp("stacked"), [plan(overrides) for overrides in MEMBERS]
    store = Store(folder / "alone")
    alone = [store.get(root) for root in plans]
    stages = [root.weights for root in plans]
    assert stages[0].stack_key == stages[1].stack_key and plans[0].stack_key == plans[1].stack_key

    stop, log = Stop(), Journal.log

    def stopping(self, step, values):
        log(self, step, values)
        if step == 3:
            stop.asked.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "log", stopping)
        with pytest.raises(Preempted, match="saved at step"):
            Classifier.make_together(stages, Store(folder / "stack", stop))
    assert not list((folder / "stack").glob(f"*/{MARKER}"))
    assert len(list((folder / "stack").glob("*/checkpoints/[0-9]*"))) >= 2
    store = Store(folder / "stack")
    assert Classifier.make_together(stages, store) == {}
    assert set(store.used) == {stage.key for stage in stages}
    return folder, plans, alone, [store.get(root) for root in plans]


def rows(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in line.items() if k != "time" and "second" not in k} for line in lines]
    return [row for row in rows if row.keys() != {"step"}]


@pytest.mark.parametrize("index", [0, 1])
def test_members_are_as_if_made_alone(both, index):
    folder, plans, alone, together = both
    key = plans[index].weights.key
    ours, theirs = rows(folder / "stack" / key), rows(folder / "alone" / key)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] and len(ours) == 9
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-12)
    assert together[index] == pytest.approx(alone[index], rel=1e-8)
    assert together[index].keys() == alone[index].keys() >= {"best_step", "val/accuracy", "test/cross_entropy"}
    descriptions = [json.loads((folder / side / key / MARKER).read_text()) for side in ("stack", "alone")]
    assert [description.pop("seconds") > 0 for description in descriptions] == [True, True]
    assert descriptions[0] == descriptions[1]


def last_state(folder, stage) -> tuple[training.NormState, int]:
    """What the last checkpoint of a training holds, and its step."""
    state = stage.initial_state(stage.images.data.spec())
    best = (stage.loop.best_metric, stage.loop.best_mode) if stage.loop.best_metric else None
    with checkpoint.Checkpoints(folder / stage.key / fit.CHECKPOINTS, best=best) as checkpoints:
        return checkpoints.restore_latest(checkpoint.abstract(state))[:2]


def test_checkpoints_are_as_if_made_alone(both):
    folder, plans, _, _ = both
    stage = plans[1].weights
    states = [last_state(folder / side, stage) for side in ("stack", "alone")]
    assert states[0][1] == states[1][1] == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), states[0][0], states[1][0])
    state = stage.initial_state(stage.images.data.spec())
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), states[0][0].params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    values = [load_tree(folder / side / stage.key / "value") for side in ("stack", "alone")]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    jax.tree.map(close, values[0]["variables"], values[1]["variables"])
    assert values[0]["best_step"] == values[1]["best_step"]


def test_without_validation_the_last_state_is_the_result(tmp_path):
    """As published: all images train, and nothing is chosen; alone and in a stack."""
    own = {"data.val_examples": 0, "data.train_examples": 0, "loop.best_metric": ""}
    stages = [plan(own | member).weights for member in MEMBERS]
    stores = [Store(tmp_path / "alone"), Store(tmp_path / "stack")]
    assert stores[0].get(stages[0].images).val is None and stages[0].images.data.spec().examples == 1437
    alone = [stores[0].get(stage) for stage in stages]
    assert Classifier.make_together(stages, stores[1]) == {}
    for index, stage in enumerate(stages):
        together = stores[1].get(stage)
        assert alone[index]["best_step"] == together["best_step"] == 6 and alone[index]["metrics"] == {}
        state, at = last_state(tmp_path / "alone", stage)
        jax.tree.map(np.testing.assert_array_equal, alone[index]["variables"]["params"], jax.device_get(state.params))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, alone[index]["variables"]["params"], together["variables"]["params"])
        assert at == 6


def test_a_stack_over_eight_devices_is_that_of_one():
    output = finish(start("-m", "tests.robustgrad_jax.stages.stack_worker", devices=8), timeout=600)
    found = json.loads(output.splitlines()[-1])
    assert found["devices"] == [1, 5]  # ten members, two on each of five
    assert found["apart"] < 1e-8 < 1e-5 < found["differ"]


def test_members_differ(both):
    _, _, _, together = both
    losses = [result["test/cross_entropy"] for result in together]
    assert len(losses) == 2 and abs(losses[0] - losses[1]) > 1e-4


STACKABLE = {
    "seed",
    "regularizer.radius",
    "regularizer.l2_weight",
    "regularizer.cosine_weight",
    "regularizer.hessian.weight",
    "regularizer.iga.weight",
    "regularizer.atex.weight",
    "regularizer.atex.temperature",
    "regularizer.ig_norm.weight",
    "regularizer.ig_norm.beta",
    "regularizer.curvature.weight",
    "regularizer.curvature.h",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.momentum",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.eps",
    "optimizer.schedule.factor",
    "optimizer.schedule.final",
}


@pytest.mark.parametrize("name", regularizers.NAMES)
def test_every_number_may_be_traced(name):
    """The program takes a member's numbers as arguments, whichever of them members differ in."""
    optimizer = {"none": "sgd", "l2": "adamw"}.get(name, "adam")
    overrides = {"regularizer.name": name, "optimizer.name": optimizer, "optimizer.momentum": 0.5}
    overrides |= {"regularizer.ig_norm.sum": name == "ig_norm"}
    stage = plan(overrides).weights
    own = {field for field in numbers(stage) if field.startswith("regularizer.")}
    section = lambda field: field.replace("regularizer.", f"regularizer.{name}.") if field not in STACKABLE else field
    assert {section(field) for field in own} <= STACKABLE
    shared = {field for field in STACKABLE if not field.startswith("regularizer.")}
    other = plan(overrides | {field: 1 if field == "seed" else 0.25 for field in shared}).weights
    values = stacked_numbers([stage, other])  # all of them, as two members differ in all
    assert set(values) == own | shared
    program, spec = stage.program(sharding.layout()), stage.images.data.spec()
    shapes = {k: jax.ShapeDtypeStruct((), jnp.int32 if k == "seed" else jnp.float32) for k in values}
    state = jax.eval_shape(lambda own: with_numbers(stage, own).initial_state(spec), shapes)
    batch = {**program.batch, sharding.RESIDENT: program.resident}
    after, metrics = jax.eval_shape(program.step, shapes, state, batch)
    shape = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shape(after) == shape(state) == shape(program.state)
    assert all(value.shape == () for value in metrics.values()) and "loss" in metrics


def test_every_stackable_number_is_stackable_for_some_regulariser():
    names = set()
    for name in regularizers.NAMES:
        stage = plan({"regularizer.name": name}).weights
        for field in numbers(stage):
            nested = field.replace("regularizer.", f"regularizer.{name}.")
            names.add(nested if nested in STACKABLE else field)
    assert {field for field in STACKABLE if field.startswith("regularizer.")} <= names


@pytest.mark.parametrize("key, value", [("optimizer.learning_rate", -1.0), ("optimizer.b1", 1.5)])
def test_numbers_that_cannot_be_used_are_refused_by_the_plan(key, value):
    """So that the other members of a stack go on."""
    with pytest.raises(SettingError, match=key) as error:
        plan({key: value})
    assert str(value) in str(error.value)


def test_a_member_that_diverges_does_not_stop_the_rest(tmp_path):
    short = {"duration": "4 steps", "optimizer.schedule.milestones": (), "optimizer.schedule.name": "constant"}
    rates = ({"optimizer.learning_rate": 1e30}, {})
    stages = [plan(short | rate).weights for rate in rates]
    store = Store(tmp_path)
    failures = Classifier.make_together(stages, store)
    assert set(failures) == {0} and isinstance(failures[0], fit.NonFiniteLoss)
    assert not store.has(stages[0]) and store.get(stages[1])["best_step"] in (2, 4)


def test_without_training_nothing_stacks(tmp_path):
    trained = plan({})
    assert [stage.STACKS for stage in (trained.weights, trained, *trained.measurements)] == [True, False, False]
