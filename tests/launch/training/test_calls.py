"""Several steps in one call: the same states, logs and checkpoints as one by one, at most two programs."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from launch.processes.stop import Preempted
from launch.training import fit, places, program, sharding
from launch.training.fit import Cadence, NonFiniteLoss
from launch.training.prefetch import calls
from tests.launch.training.test_fit import (
    MEMBERS,
    OFTEN,
    Sums,
    assert_same_logs,
    measure_members,
    measured,
    plain,
    rows,
    saved,
    train,
    train_together,
)


def batches(count, sizes=None):
    return ({"x": np.full(((sizes or {}).get(at, 4), 2), at)} for at in range(count))


def lengths(most, total=20, start=0, ends=lambda at: at % 10 == 0, **sizes):
    found = list(calls(batches(total - start, **sizes), start, total, most, ends))
    rows = np.concatenate([batch["x"][:, 0, 0] if count > 1 else batch["x"][:1, 0] for count, batch in found])
    np.testing.assert_array_equal(rows, np.arange(total - start))  # every batch once, in order
    assert all(batch["x"].shape[0] == count for count, batch in found if count > 1)
    return [count for count, _ in found]


@pytest.mark.parametrize(
    "most, options, expected",
    [
        (1, {"total": 3}, [1, 1, 1]),
        (4, {}, [4, 4, 1, 1, 4, 4, 1, 1]),  # cut at every tenth step
        (10, {}, [10, 10]),
        (11, {}, [1] * 20),
        (4, {"start": 7}, [1, 1, 1, 4, 4, 1, 1]),
        (4, {"ends": lambda at: False, "total": 9}, [4, 4, 1]),
        (4, {"sizes": {5: 3}}, [4, 1, 1, 1, 1, 1, 1, 4, 4, 1, 1]),  # a batch of another shape among them
    ],
)
def test_calls_have_one_of_two_lengths_and_end_where_they_must(most, options, expected):
    assert lengths(most, **options) == expected


@pytest.mark.parametrize("most, there", [(1, 3), (4, 6), (4, 4), (4, 0)])
def test_too_few_batches_are_said(most, there):
    with pytest.raises(ValueError, match=f"^the batches end after step {there} of 8$"):
        list(calls(batches(there), 0, 8, most, lambda at: False))


def in_calls(most, cadence=OFTEN):
    return replace(cadence, steps_per_call=most)


@pytest.mark.parametrize("most", [2, 3, 14, 100])
@pytest.mark.parametrize("cadence", [OFTEN, Cadence(log_every=7), Cadence(log_every=0)])
def test_one_run_is_the_same_to_the_bit(tmp_path, most, cadence):
    options = dict(evaluate=fit.alone(measured), best=("val/total", "max"))
    one = train(tmp_path / "one", cadence=in_calls(1, cadence), **options)
    many = train(tmp_path / "many", cadence=in_calls(most, cadence), **options)
    assert one.step == many.step and one.metrics == many.metrics
    np.testing.assert_array_equal(one.state.total, many.state.total)
    assert saved(tmp_path / "one") == saved(tmp_path / "many")
    assert plain(rows(tmp_path / "one")) == plain(rows(tmp_path / "many"))


@pytest.mark.parametrize("most", [2, 5])
def test_a_stack_is_the_same_to_the_bit(tmp_path, most):
    run = lambda name, most: train_together(
        tmp_path / name, MEMBERS, evaluate=measure_members, cadence=in_calls(most, replace(OFTEN, log_every=5))
    )
    for stage, one, many in zip(MEMBERS, run("one", 1), run("many", most), strict=True):
        np.testing.assert_array_equal(one.state.total, many.state.total)
        assert_same_logs(tmp_path / "one", tmp_path / "many", stage)
        assert saved(tmp_path / "one", stage) == saved(tmp_path / "many", stage)


def test_two_programs_are_compiled_and_the_devices_get_few_calls(tmp_path, monkeypatch):
    compiled, called = [], []
    prepare, call = places.Compiled.prepare, places.Compiled.__call__

    def preparing(self, numbers, state, batch, resident):
        new = prepare(self, numbers, state, batch, resident)
        compiled.extend([batch["x"].shape] * new)
        return new

    def calling(self, numbers, state, batch, resident):
        called.append(batch["x"].shape)
        return call(self, numbers, state, batch, resident)

    monkeypatch.setattr(places.Compiled, "prepare", preparing)
    monkeypatch.setattr(places.Compiled, "__call__", calling)
    train(tmp_path, Sums(steps=40), cadence=Cadence(log_every=10, steps_per_call=4))
    assert compiled == [(4, 4, 3, 4), (4, 3, 4)]
    assert called == 4 * [(4, 4, 3, 4), (4, 4, 3, 4), (4, 3, 4), (4, 3, 4)]


def test_batches_of_other_shapes_are_trained_on_too(tmp_path):
    stage = Sums(steps=9)
    feed = lambda start: ({"x": stage.batch(at)[: 2 if at == 6 else 4]} for at in range(start + 1, 10))
    one, many = (
        train(tmp_path / str(most), stage, batches=feed, cadence=Cadence(steps_per_call=most)) for most in (1, 3)
    )
    np.testing.assert_array_equal(one.state.total, many.state.total)


@pytest.mark.parametrize("bad_at", [1, 6, 8, 13])
def test_a_bad_step_within_a_call_is_named(tmp_path, bad_at):
    with pytest.raises(NonFiniteLoss, match=rf"not finite at step {bad_at}: loss is nan"):
        train(tmp_path, Sums(bad_at=bad_at), cadence=Cadence(log_every=0, checkpoint_every=7, steps_per_call=3))
    assert saved(tmp_path) == ([7] if bad_at > 7 else [])


def test_a_stop_within_a_call_saves_at_its_end_and_another_length_goes_on(tmp_path):
    cadence = Cadence(log_every=0, steps_per_call=5)
    whole = train(tmp_path / "whole", cadence=replace(cadence, steps_per_call=1))
    with pytest.raises(Preempted, match=r"saved at step (5|10) of 14"):
        train(tmp_path / "parts", Sums(stop_at=7), cadence=cadence)
    resumed = train(tmp_path / "parts", cadence=replace(cadence, steps_per_call=4))
    np.testing.assert_array_equal(resumed.state.total, whole.state.total)


# -- the default ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    platform: str


def default(platform="tpu", log_every=50, parameters=10**6, batch=10**3):
    on_one = sharding.layout(devices=jax.devices()[:1]).replicated
    state = jax.ShapeDtypeStruct((2, parameters), np.float32, sharding=on_one)
    return fit.automatic_steps_per_call([Device(platform)], log_every, state, {"x": np.empty(batch, np.uint8)})


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, 10),  # 5 calls a window, as many as of 16 or 12
        ({"log_every": 100}, 14),
        ({"log_every": 17}, 16),
        ({"log_every": 0}, 16),
        ({"log_every": 1}, 1),
        ({"platform": "cuda"}, 10),
        ({"platform": "cpu"}, 1),
        ({"parameters": 10**7}, 1),
        ({"batch": 5 * 10**6}, 1),
    ],
)
def test_the_default_is_by_device_and_size(options, expected):
    assert default(**options) == expected


def test_what_is_compiled_for_other_devices():
    """The rule counts a process's part of a batch, on the devices of the topology."""
    layout = sharding.layout(devices=jax.devices()[:1])
    image, state = jax.ShapeDtypeStruct((8, 10**6), np.uint8), {"step": np.zeros((), np.int32)}
    whole = program.Program(lambda numbers, state, batch, *, axis_name=None: (state, {}), {}, state, {"x": image})
    assert places.One(layout).fed({"x": image})["x"].shape == (8, 10**6)
    assert places.Stack(3, layout.mesh.devices[0]).fed({"x": image})["x"].shape == (3, 8, 10**6)
    for loop, names in (fit.Loop(), ["T"]), (fit.Loop(steps_per_call=5), ["T", "T, 5 steps"]):
        found = fit.outlines(places.One(layout), "T", whole, loop)
        assert [one.name for one in found] == names
    assert found[1].arguments[2]["x"].shape == (5, 8, 10**6)


def test_the_default_is_used(tmp_path, monkeypatch):
    """As if the devices were accelerators."""
    asked = []
    monkeypatch.setattr(fit, "automatic_steps_per_call", lambda *arguments: asked.append(arguments) or 5)
    called, call = [], places.Compiled.__call__
    noted = lambda self, *given: (called.append(given[2]["x"].shape), call(self, *given))[1]
    monkeypatch.setattr(places.Compiled, "__call__", noted)
    outcome = train(tmp_path, cadence=Cadence(log_every=0))
    assert called == 2 * [(5, 4, 3, 4)] + 4 * [(4, 3, 4)]
    ((used, log_every, state, batch),) = asked
    assert (used, log_every, batch["x"].shape) == ((jax.devices()[0],), 0, (4, 3, 4)) and state.total.shape == (3, 4)
    np.testing.assert_allclose(outcome.state.total, Sums().expected(), rtol=1e-5)
