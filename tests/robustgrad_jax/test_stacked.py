"""A stack of robustgrad members against the same members run alone, in float64, and every number that stacks."""

import contextlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs.robustgrad import digits_lenet
from launch import train
from launch.data import augment
from launch.run import Preempted, Run, flatten
from launch.training import checkpoint, duration, optim, sharding, stack
from robustgrad_jax import experiment, regularizers, stacked
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


def config_with(overrides) -> FrozenConfigDict:
    config = digits_lenet.get_config()
    config.update_from_flattened_dict(SMALL | overrides)
    return FrozenConfigDict(config)


@contextlib.contextmanager
def in_double():
    """float64 parameters and images, and with them all that follows; also in the threads of the loop."""
    create = experiment.create_state

    def created(*args):
        to_double = lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a
        return jax.tree.map(to_double, create(*args))

    def textured(images, mean, std, original=augment.normalise):
        """Digits stand on one colour, where the maxima of a pool are equal: rounding would pick one of them."""
        texture = np.random.default_rng(0).normal(size=images.shape[1:])
        return original(images, mean, std, dtype=jnp.float64) + 0.01 * texture

    jax.config.update("jax_enable_x64", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "create_state", created)
        patch.setattr(augment, "normalise", textured)
        yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def double():
    with in_double():
        yield


def open_all(folder, configs):
    return [Run.open(folder / str(i), config) for i, config in enumerate(configs)]


@pytest.fixture(scope="module")
def both(double, tmp_path_factory):
    """(folder, results) of the members alone, and of a stack that was stopped midway and taken up again."""
    folder, configs = tmp_path_factory.mktemp("stacked"), [config_with(overrides) for overrides in MEMBERS]
    alone = [train.execute(config, str(folder / "alone" / str(i))) for i, config in enumerate(configs)]
    runs = open_all(folder / "stack", configs)
    asked, log = runs[0].stop_asked, runs[0].log

    def stopping(step, values):
        log(step, values)
        if step == 3:
            asked.set()

    runs[0].log = stopping
    with pytest.raises(Preempted, match="2 members saved at step"):
        dict(stacked.run(configs, runs))
    for run in runs:
        run.close()
    runs = open_all(folder / "stack", configs)
    found = dict(stacked.run(configs, runs))
    for index, run in enumerate(runs):
        run.finish(found[index])
        run.close()
    return folder, alone, found


def rows(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "train/steps_per_second")} for line in lines]


@pytest.mark.parametrize("index", [0, 1])
def test_members_are_as_if_run_alone(both, index):
    folder, alone, found = both
    ours, theirs = rows(folder / "stack" / str(index)), rows(folder / "alone" / str(index))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] and len(ours) == 9
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-12)
    assert found[index] == pytest.approx(alone[index], rel=1e-8)
    assert found[index].keys() == alone[index].keys() >= {"best_step", "val/accuracy", "test/cross_entropy"}
    for name in ("config.json", "table.md"):
        texts = [(folder / side / str(index) / name).read_text() for side in ("stack", "alone")]
        assert texts[0] == texts[1]


def new_state(config) -> experiment.State:
    plan = experiment.plan(config, sharding.layout())
    to_steps = partial(duration.to_steps, examples=40, batch_size=8)
    optimizer, _ = optim.create(config.optimizer, total_steps=6, to_steps=to_steps)
    return experiment.create_state(plan.model, optimizer, plan.splits.image_shape, config.seed)


def last_state(path, config, state) -> tuple[experiment.State, int]:
    """What the last checkpoint of a run holds, and its step."""
    with checkpoint.Checkpoints(path / "checkpoints", best=experiment.best_of(config)) as checkpoints:
        return checkpoints.restore_latest(checkpoint.abstract(state))[:2]


def test_checkpoints_are_as_if_run_alone(both):
    folder, _, _ = both
    config = config_with(MEMBERS[1])
    state = new_state(config)
    states = [last_state(folder / side / "1", config, state) for side in ("stack", "alone")]
    assert states[0][1] == states[1][1] == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), states[0][0], states[1][0])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), states[0][0].params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_a_stack_over_eight_devices_is_that_of_one():
    output = finish(start("-m", "tests.robustgrad_jax.stack_worker", devices=8), timeout=600)
    found = json.loads(output.splitlines()[-1])
    assert found["devices"] == [1, 5]  # ten members, two on each of five
    assert found["apart"] < 1e-8 < 1e-5 < found["differ"]


def test_members_differ(both):
    _, _, found = both
    losses = [result["test/cross_entropy"] for result in found.values()]
    assert len(losses) == 2 and abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("name", regularizers.NAMES)
def test_every_number_may_be_traced(name):
    """The program takes a member's numbers as arguments, whichever of them members differ in."""
    optimizer = {"none": "sgd", "l2": "adamw"}.get(name, "adam")
    overrides = {"regularizer.name": name, "optimizer.name": optimizer, "optimizer.momentum": 0.5}
    overrides |= {"regularizer.ig_norm_sum": name == "ig_norm"}
    config = config_with(overrides)
    plan = experiment.plan(config, sharding.layout())
    to_steps = partial(duration.to_steps, examples=40, batch_size=8)
    create, step, _ = stacked.functions(config, plan, 6, to_steps)
    values = stack.numbers([config], stacked.STACKABLE)
    assert set(values) == set(stacked.STACKABLE) <= set(flatten(config))
    numbers = {key: jax.ShapeDtypeStruct((), value.dtype) for key, value in values.items()}
    resident, batches, _ = stacked.feeds(config, {0: plan.splits}, [0])
    batch = stack.member(next(batches(0)), 0)
    state = jax.eval_shape(create, numbers)
    after, metrics = jax.eval_shape(step, numbers, state, batch, resident)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert all(value.shape == () for value in metrics.values()) and "loss" in metrics


def test_a_member_whose_numbers_are_refused_does_not_stop_the_rest(tmp_path):
    refused = ({"optimizer.learning_rate": -1.0}, {"optimizer.b1": 1.5})
    short = {"duration": "1 steps", "optimizer.schedule.milestones": (), "optimizer.schedule.name": "constant"}
    configs = [config_with(short | overrides) for overrides in (*refused, {})]
    runs = open_all(tmp_path, configs)
    found = dict(stacked.run(configs, runs))
    for run in runs:
        run.close()
    for index, overrides in enumerate(refused):
        [(key, value)] = overrides.items()
        assert isinstance(found[index], ValueError)
        assert key.split(".")[-1] in str(found[index]) and str(value) in str(found[index])
    assert found[2]["best_step"] == 1


def test_without_training_there_is_nothing_to_stack():
    with pytest.raises(ValueError, match=r"config\.train=False.*--executor=local"):
        next(stacked.run([config_with({"train": False})], [None]))
