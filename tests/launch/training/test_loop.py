"""The loop's parts: prefetching, windows of metrics, the guard against hidden transfers, masked means."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from ml_collections import ConfigDict

from launch.run import Preempted, Run
from launch.training import loop, sharding


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not workers()
    yield
    until(lambda: not workers())


# -- prefetch ---------------------------------------------------------------------------------


def test_prefetch_keeps_the_order():
    feed = loop.prefetch(iter(range(50)), lambda i: 10 * i, depth=3)
    assert list(feed) == [10 * i for i in range(50)]


@pytest.mark.parametrize("where", ["batches", "put"])
def test_prefetch_raises_where_the_batch_is_asked_for(where):
    def fail(i):
        if i == 2:
            raise OSError("image 2 is damaged")
        return i

    batches, put = (map(fail, range(5)), lambda i: i) if where == "batches" else (range(5), fail)
    feed = loop.prefetch(batches, put)
    assert [next(feed), next(feed)] == [0, 1]  # what came before is not lost
    with pytest.raises(OSError, match="image 2 is damaged"):
        next(feed)


def test_prefetch_runs_ahead_so_far_and_no_further():
    built = []
    feed = loop.prefetch(range(100), built.append, depth=3)
    assert not built  # nothing is built before the first is asked for
    next(feed)
    until(lambda: len(built) == 1 + 3 + 1)  # taken, waiting, in hand
    time.sleep(0.3)
    assert len(built) == 5
    next(feed)
    until(lambda: len(built) == 6)
    feed.close()


def test_closing_ends_the_thread():
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield len(asked)

    feed = loop.prefetch(endless(), lambda i: i)
    next(feed)
    assert len(workers()) == 1
    feed.close()
    assert not workers()
    before = len(asked)
    time.sleep(0.05)
    assert len(asked) == before


# -- fit --------------------------------------------------------------------------------------


@struct.dataclass
class State:
    step: jax.Array
    total: jax.Array


def add(state, batch, *, axis_name=None):
    """A step whose loss is what the batch says."""
    loss = batch["x"].mean()
    return State(state.step + 1, state.total + loss), {"loss": loss, "square": loss**2}


def fit(tmp_path, losses, *, step=add, layout=None, **options):
    """Train through `losses`, one a step; the final state and the lines of metrics.jsonl."""
    run = Run.open(tmp_path, ConfigDict({"seed": 0}))
    layout = layout or sharding.layout()

    def batches(start):
        for value in losses[start:]:
            yield {"x": np.full(4, value, np.float32)}

    try:
        with run.checkpoints() as checkpoints:
            state = loop.fit(
                run,
                state=State(jnp.zeros((), jnp.int32), jnp.zeros(())),
                step=step,
                batches=batches,
                steps=len(losses),
                layout=layout,
                checkpoints=checkpoints,
                **options,
            )
            return state, [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    finally:
        run.close()


def test_logged_values_are_means_of_every_step(tmp_path):
    losses = np.random.default_rng(0).normal(size=14)
    evaluate = lambda state: {"val/total": float(state.total)}
    state, rows = fit(tmp_path, losses, log_every=4, eval_every=6, evaluate=evaluate)
    windows = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in windows] == [4, 6, 8, 12, 14]  # an evaluation ends a window
    first = 0
    for row in windows:
        part = losses[first : row["step"]].astype(np.float32)
        np.testing.assert_allclose(row["train/loss"], part.mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(row["train/square"], (part**2).mean(), rtol=1e-5)
        assert row["train/steps_per_second"] > 0
        first = row["step"]
    seen = {row["step"]: row["val/total"] for row in rows if "val/total" in row}
    assert set(seen) == {6, 12, 14}
    for step, total in seen.items():
        np.testing.assert_allclose(total, losses[:step].sum(), rtol=1e-4, atol=1e-5)
    assert int(state.step) == 14


def test_the_host_looks_at_windows_not_at_steps(tmp_path, monkeypatch):
    """40 steps, a window of 10: four looks at the numbers, however the host may look."""
    looks = []
    array = type(jnp.zeros(()))
    get, convert, number = jax.device_get, array.__array__, array.__float__
    monkeypatch.setattr(jax, "device_get", lambda tree: (looks.append("get"), get(tree))[1])
    monkeypatch.setattr(array, "__array__", lambda *a, **k: (looks.append("array"), convert(*a, **k))[1])
    monkeypatch.setattr(array, "__float__", lambda a: (looks.append("float"), number(a))[1])
    float(jnp.zeros(()))
    assert looks == ["float"]  # the counting works

    saves = []
    monkeypatch.setattr(
        "launch.training.checkpoint.Checkpoints.save", lambda self, step, *_: saves.append((step, len(looks)))
    )
    looks.clear()
    fit(tmp_path, np.ones(40), log_every=10)
    assert looks.count("get") == 4
    assert looks.count("float") == 0
    assert looks.count("array") <= 4 * 3 + 4  # those gets' own (two metrics, a step), the initial state's
    assert [step for step, _ in saves] == [40]


def test_a_window_is_read_when_the_next_one_ends():
    emitted = []
    windows = loop.Windows(lambda step, values: emitted.append((step, values["loss"])), 0)
    for step in range(1, 7):
        windows.add({"loss": jnp.float32(step)})
        if step % 2 == 0:
            windows.turn(step)
            assert [at for at, _ in emitted] == list(range(2, step, 2))
    windows.turn(6, wait=True)
    assert emitted == [(2, 1.5), (4, 3.5), (6, 5.5)]


def test_batches_that_were_not_put_on_the_devices_are_refused(tmp_path):
    """The guard around the step: numpy arguments would be copied at every step without a word."""

    class Forgetful(sharding.Layout):
        def put(self, batch):
            return batch

    whole = sharding.layout()
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit(tmp_path, np.ones(3), layout=Forgetful(whole.mesh))


@pytest.mark.parametrize("value, shown", [(np.nan, "nan"), (np.inf, "inf")])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, value, shown):
    losses = np.ones(20)
    losses[11] = value
    with pytest.raises(loop.NonFiniteLoss, match=rf"not finite at step 12: loss is {shown}.*before that step"):
        fit(tmp_path, losses, log_every=5, checkpoint_every=10)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["10"]


def test_a_loss_that_is_not_finite_in_the_last_window(tmp_path):
    losses = np.ones(7)
    losses[6] = np.nan
    with pytest.raises(loop.NonFiniteLoss, match="at step 7"):
        fit(tmp_path, losses, log_every=0)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


def test_too_few_batches_are_an_error(tmp_path):
    """A data set that ends early must not pass for a finished run."""
    run = Run.open(tmp_path, ConfigDict({"seed": 0}))
    with run.checkpoints() as checkpoints, pytest.raises(ValueError):
        loop.fit(
            run,
            state=State(jnp.zeros((), jnp.int32), jnp.zeros(())),
            step=add,
            batches=lambda start: iter([{"x": np.ones(4, np.float32)}]),
            steps=3,
            layout=sharding.layout(),
            checkpoints=checkpoints,
        )
    run.close()


def test_an_error_while_reading_reaches_the_caller_and_keeps_the_checkpoint(tmp_path):
    def losses_with_a_hole(start):
        for at in range(start, 10):
            if at == 6:
                raise OSError("row 6 cannot be read")
            yield {"x": np.ones(4, np.float32)}

    run = Run.open(tmp_path, ConfigDict({"seed": 0}))
    with run.checkpoints() as checkpoints:
        with pytest.raises(OSError, match="row 6"):
            loop.fit(
                run,
                state=State(jnp.zeros((), jnp.int32), jnp.zeros(())),
                step=add,
                batches=losses_with_a_hole,
                steps=10,
                layout=sharding.layout(),
                checkpoints=checkpoints,
                checkpoint_every=4,
            )
        assert checkpoints.latest_step() == 4
    run.close()


def test_a_request_to_stop_saves_first(tmp_path):
    run = Run.open(tmp_path, ConfigDict({"seed": 0}))

    def batches(start):
        for at in range(start, 1000):
            if at == 5:
                run.stop_asked.set()
            yield {"x": np.ones(4, np.float32)}

    with run.checkpoints() as checkpoints:
        with pytest.raises(Preempted, match="saved at step"):
            loop.fit(
                run,
                state=State(jnp.zeros((), jnp.int32), jnp.zeros(())),
                step=add,
                batches=batches,
                steps=1000,
                layout=sharding.layout(),
                checkpoints=checkpoints,
            )
        assert 1 <= checkpoints.latest_step() <= 6
    run.close()


# -- masked means -----------------------------------------------------------------------------


def padded(values, size):
    """Batches of `size`; what fills the last one up is NaN."""
    for at in range(0, len(values), size):
        part = values[at : at + size]
        x = np.full(size, np.nan, np.float32)
        x[: len(part)] = part
        yield {"x": x, "mask": np.arange(size) < len(part), "slot": np.arange(at, at + size)}


def test_masked_means_are_numpys():
    values = np.random.default_rng(0).normal(size=11).astype(np.float32)
    scale = jnp.float32(2)
    measure = lambda scale, batch, repeat: {"x": scale * batch["x"], "positive": batch["x"] > 0}
    found = loop.masked_means(sharding.layout(), measure, scale, padded(values, 4))
    np.testing.assert_allclose(found["x"], 2 * values.astype(np.float64).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["positive"], (values > 0).mean(), rtol=1e-6)
    assert found["examples"] == 11 and all(type(v) is float for v in found.values())


def test_repeats_and_what_is_done_with_each_examples_mean():
    """sqrt of the mean over draws, then the mean over examples: not the root of the mean of everything."""
    values = np.random.default_rng(1).uniform(1, 9, size=5).astype(np.float32)
    measure = lambda _, batch, repeat: {"a": batch["x"] * (repeat + 1)}
    finish = lambda means: {"root": jnp.sqrt(means["a"]), "plain": means["a"]}
    found = loop.masked_means(sharding.layout(), measure, None, padded(values, 4), repeats=3, finish=finish)
    np.testing.assert_allclose(found["root"], np.sqrt(values * 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["plain"], (values * 2).mean(), rtol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
def test_what_repeats_have_in_common_is_found_once_a_batch(compiled):
    values = np.random.default_rng(2).normal(size=6).astype(np.float32)
    called = []

    def once(shift, batch):
        called.append(isinstance(batch["x"], jax.core.Tracer))
        return batch["x"] + shift

    measure = lambda _, batch, repeat: {"a": batch["once"] * repeat}
    found = loop.masked_means(
        sharding.layout(), measure, jnp.float32(3), padded(values, 4), repeats=3, once=once, compile_once=compiled
    )
    assert found["a"] == pytest.approx(values.mean() + 3, rel=1e-5)
    assert called == ([True] if compiled else [False, False])


def test_evaluating_again_compiles_nothing():
    """However many batches, repeats and evaluations: the measure is traced once."""
    traced = []

    def measure(variables, batch, repeat):
        traced.append(1)
        return {"a": variables * batch["x"] + repeat}

    for weight in (1.0, 2.0):
        values = padded(np.arange(10), 4)
        found = loop.masked_means(sharding.layout(), measure, jnp.float32(weight), values, repeats=3)
        assert found["a"] == pytest.approx(weight * 4.5 + 1)
    assert len(traced) == 1


def test_resident_arrays_reach_the_measure():
    layout = sharding.layout()
    table = layout.replicate({"table": np.arange(8, dtype=np.float32) ** 2})
    measure = lambda _, batch, repeat: {"a": batch[sharding.RESIDENT]["table"][batch["slot"]]}
    found = loop.masked_means(layout, measure, None, padded(np.zeros(6), 4), resident=table)
    np.testing.assert_allclose(found["a"], np.mean(np.arange(6) ** 2))


def test_nothing_to_evaluate():
    measure = lambda _, batch, repeat: {"a": batch["x"]}
    nothing = [{"x": np.ones(4, np.float32), "mask": np.zeros(4, bool)}]
    for batches in ([], nothing):
        with pytest.raises(ValueError, match="there is no example to evaluate"):
            loop.masked_means(sharding.layout(), measure, None, batches)


def test_a_value_per_batch_is_refused():
    measure = lambda _, batch, repeat: {"mean": batch["x"].mean(keepdims=True)}
    with pytest.raises(ValueError, match=r"mean has shape \(1,\), the batch's mask \(4,\)"):
        loop.masked_means(sharding.layout(), measure, None, padded(np.ones(6), 4))


def test_a_request_to_stop_ends_an_evaluation():
    calls = []

    def check_stop():
        calls.append(1)
        if len(calls) == 2:
            raise Preempted("now")

    measure = lambda _, batch, repeat: {"a": batch["x"]}
    with pytest.raises(Preempted):
        loop.masked_means(sharding.layout(), measure, None, padded(np.ones(40), 4), check_stop=check_stop)
    assert len(calls) == 2
