"""The training step against its definition written plainly: each text encoded by itself, every ablation; float64.

On several devices: test_devices.py.
"""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import model
from launch.training import keys
from launch.training.sharding import RESIDENT
from rtd_jax import losses
from rtd_jax.tuning import step, training
from tests.rtd_jax import toy

SEED = 5
OPTIMIZER = optax.chain(optax.trace(decay=0.9), optax.scale(-0.1))  # after one step the trace is the gradient


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def batch():
    return toy.batch()


@lru_cache
def compiled(objective, shards=1, config=toy.CONFIG):
    module = toy.network().module if objective.concatenation == "refined" else None
    run = step.make_step(config, OPTIMIZER, module, objective, prompt=toy.PROMPT, seed=SEED, shards=shards)
    return jax.jit(run)


def one_step(objective, batch, *, shards=1, params=None, at=0, config=toy.CONFIG):
    """(gradients, metrics) of the step."""
    state = step.create_state(toy.tower() if params is None else params, OPTIMIZER).replace(step=np.int32(at))
    columns = {name: batch[name] for name in step.columns(objective)}
    resident = {"phi": toy.network().params} if objective.concatenation == "refined" else {}
    state, logs = compiled(objective, shards, config)(state, columns | {RESIDENT: resident})
    return state.opt_state[0].trace, logs


def plainly(objective, batch, *, sets=1, at=0):
    """Gradients, loss and accuracy as the method is defined; `sets` of negatives, one after the other."""
    refined, hard = objective.concatenation == "refined", objective.hard_negatives
    n = len(batch["ids"])
    if refined:
        noise = training.noise(keys.stream(SEED, "noise", at), batch["slot"], toy.CONFIG.projection)
        pseudo = toy.network()(batch["reference"] + objective.noise * noise)
        base = np.tile(np.array(toy.PROMPT.ids, np.int32), (n, 1))

    def embed(params):
        encode = partial(model.encode_text, toy.CONFIG, params)
        with_token = partial(encode, pseudo_tokens=pseudo, marker_id=toy.PROMPT.marker_id) if refined else None
        queries = [with_token(batch["ids"]) if refined else encode(batch["ids"])]
        targets = [batch["target"] if objective.frozen_targets else encode(batch["target_ids"])]
        if hard:
            queries.append(with_token(base) if refined else encode(batch["reference_ids"]))
            targets.append(batch["reference"] if objective.frozen_targets else encode(batch["reference_ids"]))
        return jnp.stack(queries), jnp.stack(targets)

    def loss(params):
        queries, targets = embed(params)
        parts = lambda x: [x[:, rows].reshape(-1, x.shape[-1]) for rows in np.split(np.arange(n), sets)]
        values = [
            losses.target_anchored(q, t, objective.temperature)
            for q, t in zip(parts(queries), parts(targets), strict=True)
        ]
        first = zip(parts(queries[:1]), parts(targets[:1]), strict=True)
        return sum(values) / sets, sum(losses.accuracy(q, t) for q, t in first) / sets

    graded = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, accuracy), gradients = graded({"text": toy.tower()})
    return gradients, {"loss": value, "accuracy": accuracy, "gradient_norm": optax.global_norm(gradients)}


def check(found, expected, rtol=1e-8):
    (gradients, logs), (their_gradients, their_logs) = found, expected
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-11), gradients, their_gradients)
    assert set(logs) == {"loss", "accuracy", "gradient_norm"}
    for name, value in logs.items():
        assert value == pytest.approx(float(their_logs[name]), rel=rtol), name
    assert logs["gradient_norm"] > 0.01


OBJECTIVES = {
    "as published": step.Objective(),
    "no hard negatives": step.Objective(hard_negatives=False, temperature=0.2),
    "plain": step.Objective(concatenation="plain"),
    "plain, no hard negatives": step.Objective(concatenation="plain", hard_negatives=False),
    "trained targets, no hard negatives": step.Objective(frozen_targets=False, hard_negatives=False),
    "plain, trained targets": step.Objective(concatenation="plain", frozen_targets=False),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_ablation(name, batch):
    check(one_step(OBJECTIVES[name], batch), plainly(OBJECTIVES[name], batch))


def test_shards_and_parts_together(batch):
    """Rows 0-3 belong to the first device, 0-1 are its first part: sets (0, 1), (2, 3), (4, 5), (6, 7)."""
    objective = step.Objective(accumulation=2)
    check(one_step(objective, batch, shards=2), plainly(objective, batch, sets=4))


def test_accumulated_global_negatives_with_trained_targets(batch):
    objective = step.Objective(negatives="global", accumulation=2, frozen_targets=False)
    check(one_step(objective, batch), plainly(objective, batch))


def test_noise_follows_from_slot_and_step(batch):
    objective = step.Objective()
    moved = {name: np.ascontiguousarray(column[::-1]) for name, column in batch.items()}
    first = one_step(objective, batch)[1]
    assert one_step(objective, moved)[1]["loss"] == pytest.approx(float(first["loss"]), rel=1e-12)
    elsewhere = batch | {"slot": batch["slot"] + 8}
    assert abs(one_step(objective, elsewhere)[1]["loss"] - first["loss"]) > 1e-4
    assert abs(one_step(objective, batch, at=1)[1]["loss"] - first["loss"]) > 1e-4


def test_columns_are_what_the_step_reads():
    assert step.columns(step.Objective()) == ("slot", "ids", "reference", "target")
    assert step.columns(step.Objective(hard_negatives=False)) == ("slot", "ids", "reference", "target")
    plain = partial(step.Objective, concatenation="plain")
    assert step.columns(plain()) == ("ids", "reference", "target", "reference_ids")
    assert step.columns(plain(hard_negatives=False)) == ("ids", "target")
    assert step.columns(plain(frozen_targets=False)) == ("ids", "reference_ids", "target_ids")
    trained = step.Objective(frozen_targets=False)
    assert step.columns(trained) == ("slot", "ids", "reference", "reference_ids", "target_ids")


def test_bfloat16_on_float32_parameters(batch):
    """The computation is coarse, parameters, moments and gradients are not."""
    config = replace(toy.CONFIG, dtype="bfloat16")
    params = jax.tree.map(lambda a: a.astype(np.float32), toy.tower())
    batch = jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, batch)
    gradients, logs = one_step(step.Objective(), batch, params=params, config=config)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {"float32"}
    exact, their_logs = plainly(step.Objective(), batch)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    a, b = flat(gradients), flat(exact)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert logs["loss"] == pytest.approx(float(their_logs["loss"]), rel=0.05) and logs["loss"] != their_logs["loss"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"negatives": "all"}, "negatives='all'; valid names: 'per_device', 'global'"),
        ({"concatenation": "naive"}, "concatenation='naive'; valid names: 'refined', 'plain'"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"noise": -1.0}, "noise=-1.0: must be at least 0"),
        ({"accumulation": 0}, "accumulation=0: must be a whole number"),
    ],
)
def test_objectives_that_there_are_not(fields, message):
    with pytest.raises(ValueError, match=message):
        step.Objective(**fields)


def test_mistakes_are_named(batch):
    with pytest.raises(ValueError, match="'refined' needs a φ network"):
        step.make_step(toy.CONFIG, OPTIMIZER, None, step.Objective(), prompt=toy.PROMPT, seed=0)
    with pytest.raises(ValueError, match="a batch of 8 does not divide over 1 devices and 3 parts"):
        one_step(step.Objective(accumulation=3), batch)
