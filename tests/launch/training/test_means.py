"""Means over data sets, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.networks import loops
from launch.processes.stop import Preempted
from launch.training import means, sharding
from launch.training.means import masked_means


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
    found = masked_means(sharding.layout(), measure, scale, padded(values, 4))
    np.testing.assert_allclose(found["x"], 2 * values.astype(np.float64).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["positive"], (values > 0).mean(), rtol=1e-6)
    assert found["examples"] == 11 and all(type(v) is float for v in found.values())


def test_repeats_and_what_is_done_with_each_examples_mean():
    """sqrt of the mean over draws, then the mean over examples: not the root of the mean of everything."""
    values = np.random.default_rng(1).uniform(1, 9, size=5).astype(np.float32)
    measure = lambda _, batch, repeat: {"a": batch["x"] * (repeat + 1)}
    finish = lambda means: {"root": jnp.sqrt(means["a"]), "plain": means["a"]}
    found = masked_means(sharding.layout(), measure, None, padded(values, 4), repeats=3, finish=finish)
    np.testing.assert_allclose(found["root"], np.sqrt(values * 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["plain"], (values * 2).mean(), rtol=1e-5)


def test_all_draws_of_a_batch_are_one_program_off_cpu(monkeypatch):
    """The same means, from a program that is compiled once and called once a batch; here it runs on the CPU."""
    values = np.random.default_rng(1).uniform(1, 9, size=10).astype(np.float32)

    def measure(shift, batch, repeat):
        noise = jax.random.uniform(jax.random.fold_in(jax.random.key(0), repeat), batch["x"].shape)
        return {"a": jnp.sin(batch["x"]) * noise + shift, "positive": batch["x"] > 5}

    finish = lambda means: means | {"root": jnp.sqrt(means["a"])}
    found = lambda: masked_means(
        sharding.layout(), measure, jnp.float32(3), padded(values, 4), repeats=7, finish=finish
    )
    calls = found()
    monkeypatch.setattr(loops, "in_program", lambda *trees: True)
    inside = []
    monkeypatch.setattr(means, "_draws", lambda *a, _draws=means._draws, **k: inside.append(1) or _draws(*a, **k))
    assert found() == pytest.approx(calls, rel=1e-6)
    assert len(inside) == 3


@pytest.mark.parametrize("compiled", [True, False])
def test_what_repeats_have_in_common_is_found_once_a_batch(compiled):
    values = np.random.default_rng(2).normal(size=6).astype(np.float32)
    called = []

    def once(shift, batch):
        called.append(isinstance(batch["x"], jax.core.Tracer))
        return batch["x"] + shift

    measure = lambda _, batch, repeat: {"a": batch["once"] * repeat}
    found = masked_means(
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
        found = masked_means(sharding.layout(), measure, jnp.float32(weight), values, repeats=3)
        assert found["a"] == pytest.approx(weight * 4.5 + 1)
    assert len(traced) == 1


def test_resident_arrays_reach_the_measure():
    layout = sharding.layout()
    table = layout.replicate({"table": np.arange(8, dtype=np.float32) ** 2})
    measure = lambda _, batch, repeat: {"a": batch[sharding.RESIDENT]["table"][batch["slot"]]}
    found = masked_means(layout, measure, None, padded(np.zeros(6), 4), resident=table)
    np.testing.assert_allclose(found["a"], np.mean(np.arange(6) ** 2))


def test_nothing_to_evaluate():
    measure = lambda _, batch, repeat: {"a": batch["x"]}
    nothing = [{"x": np.ones(4, np.float32), "mask": np.zeros(4, bool)}]
    for batches in ([], nothing):
        with pytest.raises(ValueError, match="there are no examples to evaluate"):
            masked_means(sharding.layout(), measure, None, batches)


def test_a_value_per_batch_is_refused():
    measure = lambda _, batch, repeat: {"mean": batch["x"].mean(keepdims=True)}
    with pytest.raises(ValueError, match=r"mean has shape \(1,\), the batch's mask \(4,\)"):
        masked_means(sharding.layout(), measure, None, padded(np.ones(6), 4))


def test_a_request_to_stop_ends_an_evaluation():
    calls = []

    def check_stop():
        calls.append(1)
        if len(calls) == 2:
            raise Preempted("now")

    measure = lambda _, batch, repeat: {"a": batch["x"]}
    with pytest.raises(Preempted):
        masked_means(sharding.layout(), measure, None, padded(np.ones(40), 4), check_stop=check_stop)
    assert len(calls) == 2
