"""The loop of one run and of a stack: logs, rates, saving, resuming, stopping, and members that fail alone."""

import json
import re
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from launch.processes.stop import Preempted
from launch.stages import SettingError, Stage, free, numbers, stackable, stacked_numbers, with_numbers
from launch.store import Store
from launch.training import duration, fit, pace, places, sharding
from launch.training.checkpoint import Checkpoints
from launch.training.fit import Cadence, NonFiniteLoss, Training
from launch.training.program import as_arrays


@struct.dataclass
class State:
    step: jax.Array
    total: jax.Array  # (3, 4)


@dataclass(frozen=True)
class Sums(Stage):
    """Adds up its batches, each scaled by `rate`; the loss is their mean."""

    seed: int = stackable(0)
    rate: float = stackable(0.5)
    steps: int = 14
    bad_at: int = free(0)  # the step whose batch is NaN
    stop_at: int = free(0)  # the step whose batch asks for a stop

    def batch(self, at: int) -> np.ndarray:
        """The batch of a step from 1 on, (4, 3, 4)."""
        x = np.random.default_rng((self.seed, at)).normal(size=(4, 3, 4)).astype(np.float32)
        return np.full_like(x, np.nan) if at == self.bad_at else x

    def step(self, numbers, state, batch, *, axis_name=None):
        own = with_numbers(self, numbers)
        x = own.rate * batch["x"].sum(0)
        loss = jnp.mean(x)
        return State(state.step + 1, state.total + x), {"loss": loss, "square": loss**2}

    @property
    def initial(self) -> State:
        return State(np.zeros((), np.int32), np.full((3, 4), self.seed, np.float32))

    def expected(self, steps: int | None = None) -> np.ndarray:
        """The total, as NumPy has it."""
        xs = [np.float32(self.rate) * self.batch(at).sum(0) for at in range(1, (steps or self.steps) + 1)]
        return np.sum(xs, 0) + self.seed

    def losses(self) -> np.ndarray:
        return np.array([self.rate * self.batch(at).sum(0).mean() for at in range(1, self.steps + 1)])


def training(stage: Sums, store: Store, **options) -> Training:
    def batches(start):
        for at in range(start + 1, stage.steps + 1):
            if at == stage.stop_at:
                store.stop.asked.set()
            yield {"x": stage.batch(at)}

    fields = dict(
        place=places.One(sharding.layout(devices=jax.devices()[:1])),
        step=stage.step,
        numbers=as_arrays(numbers(stage)),
        batches=batches,
        batch_size=4,
        steps=stage.steps,
    )
    return Training(**(fields | options))


def train(path, stage=Sums(), **options):
    store = Store(path)
    return fit.train(store, stage, stage.initial, training(stage, store, **options))


def train_together(path, stages, **options):
    store = Store(path)

    def of(indices) -> Training:
        members = [stages[i] for i in indices]

        def batches(start):
            for at in range(start + 1, stages[0].steps + 1):
                if any(at == member.stop_at for member in members):
                    store.stop.asked.set()
                yield {"x": np.stack([member.batch(at) for member in members])}

        place = places.stack(len(members), jax.devices()[:1])
        given = as_arrays(stacked_numbers(members))
        fields = {name: make(place) if name == "evaluate" else make for name, make in options.items()}
        return replace(training(members[0], store), place=place, numbers=given, batches=batches, **fields)

    states = jax.tree.map(lambda *leaves: np.stack(leaves), *(stage.initial for stage in stages))
    return fit.train_together(store, stages, states, of)


def rows(path, stage=Sums()):
    file = Store(path).folder(stage) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def saved(path, stage=Sums()):
    folder = Store(path).folder(stage) / fit.CHECKPOINTS
    return sorted(int(place.name) for place in folder.iterdir() if place.name.isdigit())


def plain(lines):
    """Log lines without what depends on the clock."""
    rates = ("steps_per_second", "examples_per_second", "flops_per_second", "compile_seconds")
    timed = ("time", *(f"train/{rate}" for rate in rates))
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def measured(state):
    return {"val/total": float(state.total.sum())}


# -- one run ----------------------------------------------------------------------------------


def test_logged_values_are_means_of_every_step(tmp_path):
    outcome = train(tmp_path, evaluate=fit.alone(measured), cadence=Cadence(log_every=4, eval_every=6))
    lines, losses = rows(tmp_path), Sums().losses()
    windows = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in windows] == [4, 6, 8, 12, 14]  # an evaluation ends a window
    first = 0
    for line in windows:
        part = losses[first : line["step"]]
        np.testing.assert_allclose(line["train/loss"], part.mean(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(line["train/square"], (part**2).mean(), rtol=1e-4)
        first = line["step"]
    seen = {line["step"]: line["val/total"] for line in lines if "val/total" in line}
    assert set(seen) == {6, 12, 14}
    for step, total in seen.items():
        np.testing.assert_allclose(total, Sums().expected(step).sum(), rtol=1e-4)
    assert outcome.step == 14 and outcome.metrics == {}
    np.testing.assert_allclose(outcome.state.total, Sums().expected(), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
def test_rates_leave_out_compilation_evaluations_and_checkpoints(tmp_path, monkeypatch, k):
    """All three take days by the clock of the loop: a rate that counted one would be next to nothing."""
    days, added = 1e6, [0.0]
    clock = time.perf_counter
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock() + added[0])

    def slow(owner, name):
        fast = getattr(owner, name)

        def taking(*arguments, **options):
            result = fast(*arguments, **options)
            if name != "prepare" or result:  # whether it had to compile
                added[0] += days
            return result

        monkeypatch.setattr(owner, name, taking)

    slow(places.Compiled, "prepare")
    slow(Checkpoints, "save")

    def evaluate(numbers, state, resident):
        added[0] += days
        return [{"val/x": 1.0}] * k

    stages = [Sums(seed=seed, steps=40) for seed in range(k)]
    cadence = Cadence(log_every=4, eval_every=14, checkpoint_every=10)
    if k == 1:
        train(tmp_path, stages[0], evaluate=evaluate, cadence=cadence)
    else:
        train_together(tmp_path, stages, evaluate=lambda place: evaluate, cadence=cadence)
    for stage in stages:
        lines = [line for line in rows(tmp_path, stage) if "train/loss" in line]
        assert [line["step"] for line in lines] == [4, 8, 10, 12, 14, 16, 20, 24, 28, 30, 32, 36, 40]
        compiling = [line for line in lines if "train/compile_seconds" in line]
        assert [line["step"] for line in compiling] == [4] and compiling[0]["train/compile_seconds"] >= days
        assert "train/steps_per_second" not in lines[0] and "train/examples_per_second" not in lines[0]
        for line in lines[1:]:
            assert line["train/steps_per_second"] > 1e3 / days
            assert line["train/examples_per_second"] == pytest.approx(4 * line["train/steps_per_second"])


def test_another_shape_of_batch_is_compiled_and_said(tmp_path):
    stage = Sums(steps=8)
    sizes = {6: 2}  # one batch is smaller

    def batches(start):
        for at in range(start + 1, 9):
            yield {"x": stage.batch(at)[: sizes.get(at, 4)]}

    train(tmp_path, stage, batches=batches, cadence=Cadence(log_every=2))
    lines = rows(tmp_path, stage)
    assert [line["step"] for line in lines if "train/compile_seconds" in line] == [2, 6]
    assert [line["step"] for line in lines if "train/steps_per_second" in line] == [4, 8]


def test_the_host_looks_at_windows_not_at_steps(tmp_path, monkeypatch):
    """40 steps, windows of 10: four looks at the numbers, whatever way the host may look."""
    looks = []
    array = type(jnp.zeros(()))
    get, convert, number = jax.device_get, array.__array__, array.__float__
    monkeypatch.setattr(jax, "device_get", lambda tree: (looks.append("get"), get(tree))[1])
    monkeypatch.setattr(array, "__array__", lambda *a, **k: (looks.append("array"), convert(*a, **k))[1])
    monkeypatch.setattr(array, "__float__", lambda a: (looks.append("float"), number(a))[1])
    float(jnp.zeros(()))
    assert looks == ["float"]  # the counting works
    looks.clear()
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)
    train(tmp_path, Sums(steps=40), cadence=Cadence(log_every=10))
    assert looks.count("get") == 4 and looks.count("float") == 0
    assert looks.count("array") <= 4 * 3  # those gets' own: two metrics and a step


def test_batches_that_were_not_put_on_the_devices_are_refused(tmp_path):
    """The guard around the step: NumPy arguments would be copied at every step without a word."""

    class Forgetful(places.One):
        def put(self, batch, *, stacked=False):
            return batch

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(tmp_path, place=Forgetful(sharding.layout(devices=jax.devices()[:1])))


def test_a_stop_saves_and_a_resumed_run_has_the_same_bits(tmp_path):
    options = dict(evaluate=fit.alone(measured), cadence=Cadence(log_every=3, eval_every=5, checkpoint_every=4))
    whole = train(tmp_path / "whole", **options)
    with pytest.raises(Preempted, match=r"saved at step \d+ of 14 in .*/sums-"):
        train(tmp_path / "parts", Sums(stop_at=7), **options)
    assert 4 <= saved(tmp_path / "parts")[-1] <= 7
    resumed = train(tmp_path / "parts", **options)
    np.testing.assert_array_equal(resumed.state.total, whole.state.total)
    assert int(resumed.state.step) == 14
    evaluated = [[line for line in plain(rows(tmp_path / name)) if "val/total" in line] for name in ("whole", "parts")]
    assert evaluated[0] == evaluated[1]
    again = train(tmp_path / "parts", **options)  # finished: nothing is trained
    np.testing.assert_array_equal(again.state.total, whole.state.total)
    assert plain(rows(tmp_path / "parts"))[-1] == plain(rows(tmp_path / "whole"))[-1]


def test_the_best_state_is_returned(tmp_path):
    totals = {step: float(Sums().expected(step).sum()) for step in (4, 8, 12, 14)}
    for mode, choose in (("min", min), ("max", max)):
        outcome = train(
            tmp_path / mode, evaluate=fit.alone(measured), cadence=Cadence(eval_every=4), best=("val/total", mode)
        )
        best = choose(totals, key=totals.get)
        assert outcome.step == best and outcome.metrics["val/total"] == pytest.approx(totals[best], rel=1e-4)
        np.testing.assert_allclose(outcome.state.total, Sums().expected(best), rtol=1e-5)


@pytest.mark.parametrize(("log_every", "bad_at", "kept"), [(5, 12, [10]), (0, 14, [10]), (1, 3, [])])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, log_every, bad_at, kept):
    cadence = Cadence(log_every=log_every, checkpoint_every=10)
    with pytest.raises(NonFiniteLoss, match=rf"not finite at step {bad_at}: loss is nan.*before that step"):
        train(tmp_path, Sums(bad_at=bad_at), cadence=cadence)
    assert saved(tmp_path) == kept
    whole = train(tmp_path, cadence=cadence)  # the batch is mended: the run goes on from what was saved
    np.testing.assert_allclose(whole.state.total, Sums().expected(), rtol=1e-5)


def test_too_few_batches_are_an_error(tmp_path):
    with pytest.raises(ValueError):
        train(tmp_path, batches=lambda start: iter([{"x": Sums().batch(1)}]))
    assert saved(tmp_path) == []


def test_an_error_while_reading_reaches_the_caller_and_keeps_the_checkpoint(tmp_path):
    def batches(start):
        for at in range(start + 1, 15):
            if at == 7:
                raise OSError("row 7 cannot be read")
            yield {"x": Sums().batch(at)}

    with pytest.raises(OSError, match="row 7"):
        train(tmp_path, batches=batches, cadence=Cadence(checkpoint_every=4))
    assert saved(tmp_path) == [4]
    assert not [thread for thread in threading.enumerate() if thread.name in ("prefetch", "watch")]


def test_resident_arrays_reach_the_step_and_the_evaluation(tmp_path):
    def step(numbers, state, batch, *, axis_name=None):
        return State(state.step + 1, state.total + batch["resident"]["y"]), {"loss": batch["x"].mean()}

    def evaluate(numbers, state, resident):
        return [{"val/y": float(resident["y"]), "val/rate": float(numbers["rate"])}]

    outcome = train(tmp_path, step=step, resident={"y": np.float32(2)}, evaluate=evaluate)
    np.testing.assert_array_equal(outcome.state.total, np.full((3, 4), 28))
    assert rows(tmp_path)[-1]["val/y"] == 2 and rows(tmp_path)[-1]["val/rate"] == 0.5


# -- a stack ----------------------------------------------------------------------------------

MEMBERS = [Sums(seed=1), Sums(seed=2, rate=0.25), Sums(seed=3, rate=-1.0)]
OFTEN = Cadence(log_every=3, eval_every=5, checkpoint_every=4)


def measure_members(place):
    return lambda numbers, state, resident: [measured(member) for member in place.each(state)]


def assert_same_logs(one, other, stage):
    for mine, theirs in zip(plain(rows(one, stage)), plain(rows(other, stage)), strict=True):
        assert mine.keys() == theirs.keys()
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("best", [None, ("val/total", "min")])
def test_a_stack_is_its_members_alone(tmp_path, best):
    together = train_together(tmp_path / "stack", MEMBERS, evaluate=measure_members, cadence=OFTEN, best=best)
    for stage, outcome in zip(MEMBERS, together, strict=True):
        alone = train(tmp_path / "alone", stage, evaluate=fit.alone(measured), cadence=OFTEN, best=best)
        assert outcome.step == alone.step
        np.testing.assert_allclose(outcome.state.total, alone.state.total, rtol=1e-6)
        assert saved(tmp_path / "stack", stage) == saved(tmp_path / "alone", stage)
        assert_same_logs(tmp_path / "stack", tmp_path / "alone", stage)
        for name in outcome.metrics:
            assert outcome.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-5)


def test_a_bad_member_fails_alone(tmp_path):
    members = [MEMBERS[0], replace(MEMBERS[1], bad_at=6), MEMBERS[2]]
    outcomes = train_together(tmp_path, members, evaluate=measure_members, cadence=OFTEN)
    assert isinstance(outcomes[1], NonFiniteLoss) and "at step 6" in str(outcomes[1])
    assert saved(tmp_path, MEMBERS[1]) == [4, 5] and saved(tmp_path, MEMBERS[0])[-1] == 14
    for index in (0, 2):
        np.testing.assert_allclose(outcomes[index].state.total, MEMBERS[index].expected(), rtol=1e-5)
    assert max(line["step"] for line in rows(tmp_path, MEMBERS[1])) == 5
    mended = train_together(tmp_path, MEMBERS, evaluate=measure_members, cadence=OFTEN)
    for stage, outcome in zip(MEMBERS, mended, strict=True):  # the other two were finished
        np.testing.assert_allclose(outcome.state.total, stage.expected(), rtol=1e-5)


def test_a_stack_ends_when_all_members_are_bad(tmp_path):
    members = [replace(stage, bad_at=2 + index) for index, stage in enumerate(MEMBERS)]
    outcomes = train_together(tmp_path, members, cadence=Cadence(log_every=1))
    assert [f"at step {2 + i}" in str(outcome) for i, outcome in enumerate(outcomes)] == [True] * 3
    assert all(isinstance(outcome, NonFiniteLoss) for outcome in outcomes)


def test_a_stack_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    options = dict(evaluate=measure_members, cadence=OFTEN)
    whole = train_together(tmp_path / "whole", MEMBERS, **options)
    with pytest.raises(Preempted, match="saved at step"):
        train_together(tmp_path / "parts", [replace(MEMBERS[0], stop_at=7), *MEMBERS[1:]], **options)
    parts = train_together(tmp_path / "parts", MEMBERS, **options)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.state.total, other.state.total)


def test_members_at_different_steps_go_on_in_groups(tmp_path):
    with pytest.raises(Preempted):
        train(tmp_path, replace(MEMBERS[1], stop_at=6), cadence=OFTEN)
    train(tmp_path, MEMBERS[2], cadence=OFTEN)
    outcomes = train_together(tmp_path, MEMBERS, evaluate=measure_members, cadence=OFTEN)
    for stage, outcome in zip(MEMBERS, outcomes, strict=True):
        assert outcome.step == 14 and outcome.state.total.shape == (3, 4)
        np.testing.assert_allclose(outcome.state.total, stage.expected(), rtol=1e-5)


@pytest.mark.parametrize("best", [None, ("val/total", "max")])
def test_a_stack_that_was_killed_after_its_last_step_has_its_states(tmp_path, best):
    """All checkpoints are there, the results are not: nothing is trained again."""
    options = dict(evaluate=measure_members, cadence=OFTEN, best=best)
    before = train_together(tmp_path, MEMBERS, **options)
    lines = [rows(tmp_path, stage) for stage in MEMBERS]
    after = train_together(tmp_path, MEMBERS, **options)
    for one, other in zip(before, after, strict=True):
        assert one.step == other.step and one.metrics == other.metrics
        np.testing.assert_array_equal(one.state.total, other.state.total)
    assert [rows(tmp_path, stage) for stage in MEMBERS] == lines


def test_members_of_a_stack_have_numbers_and_batches_of_their_own():
    stack = places.stack(3, jax.devices()[:1])
    assert stack.shape == (1, 3) and stack.members == 3
    tree = {"a": np.arange(12).reshape(3, 4)}
    np.testing.assert_array_equal(stack.pull(stack.put(tree))["a"], tree["a"])
    assert [int(stack.select(stack.put({"a": np.arange(3)}), i)["a"]) for i in range(3)] == [0, 1, 2]
    np.testing.assert_array_equal(stack.each(stack.begin(tree))[1]["a"], tree["a"][1])


class AccuracyLoop(fit.BestLoop):
    METRICS = ("val/accuracy",)


def test_a_loop_is_counted_in_steps_and_refuses_what_cannot_be():
    to_steps = partial(duration.to_steps, examples=100, batch_size=10)
    assert fit.Loop(7, "2 epochs", "30 steps").cadence(to_steps) == Cadence(7, 20, 30)
    assert fit.Loop().cadence(to_steps) == Cadence(50, 0, 0)
    for values, message in (
        ({"log_every": -1}, "log_every=-1: must be a number, at least 0"),
        ({"eval_every": "2"}, "eval_every: cannot read the duration '2'"),
        ({"checkpoint_every": "1 day"}, "checkpoint_every: cannot read the duration '1 day'"),
        ({"best_metric": "val/loss"}, "best_metric='val/loss'; valid names: 'val/accuracy'"),
        ({"best_metric": "val/accuracy", "best_mode": "least"}, "best_mode='least'; valid names: 'max', 'min'"),
    ):
        with pytest.raises(SettingError, match=f"^{re.escape(message)}"):
            AccuracyLoop(**{"best_metric": "val/accuracy"} | values)
