"""Run by test_devices.py with 4 fake CPU devices: prints, as JSON, how far steps are from those of one device.

float64, but for SEARLE's inversion. What one device does with per-device negatives is the step with as many parts as
there are devices and parts.
"""

import json
import sys

import jax
import numpy as np
import optax

from clip_jax.sharding import partition_rules
from clip_jax.training.options import Devices
from launch.training import sharding
from launch.training.program import repeated
from rtd_jax import clips
from rtd_jax.phi import searle
from rtd_jax.tuning import step
from tests.rtd_jax import toy

STEPS = 2
OPTIMIZER = optax.chain(optax.trace(decay=0.9), optax.scale(-0.05))


def step_of(objective, layout):
    """A `Step`, and the φ that it reads."""
    network = toy.network()
    run = step.make_step(
        Devices(fsdp=layout.fsdp).spread(toy.CONFIG, layout),
        OPTIMIZER,
        network.module,
        objective,
        prompt=toy.PROMPT,
        seed=0,
        shards=layout.data_shards,
    )
    own = lambda numbers, state, batch, *, axis_name=None: run(state, batch, axis_name=axis_name)
    return own, {"phi": network.params}


def batch_at(at, objective):
    return {name: toy.batch(16, seed=at)[name] for name in step.columns(objective)}


def train(layout, objective, *, in_one_call=False):
    """(states, metrics) after the steps, on the host."""
    own, resident = step_of(objective, layout)
    state = step.create_state(toy.tower(), OPTIMIZER)
    compiled = layout.jit(repeated(own) if in_one_call else own, state, stacked=in_one_call)
    state, resident = layout.place(state), layout.replicate(resident)
    batches = [batch_at(at, objective) for at in range(STEPS)]
    if in_one_call:
        batches = [jax.tree.map(lambda *parts: np.stack(parts), *batches)]
    for batch in batches:
        state, logs = compiled({}, state, layout.put(batch, stacked=in_one_call) | {sharding.RESIDENT: resident})
    logs = jax.tree.map(lambda value: value[-1], logs) if in_one_call else logs
    return state, jax.device_get((state.params, state.opt_state, logs))


def by_jax_pmap(objective):
    """The same by `jax.pmap` of the step; every device must have the same."""
    shards = jax.device_count()
    own, resident = step_of(objective, sharding.layout("pmap"))
    state = step.create_state(toy.tower(), OPTIMIZER)
    mapped = jax.pmap(
        lambda state, batch, resident: own({}, state, batch | {sharding.RESIDENT: resident}, axis_name="data"),
        axis_name="data",
        in_axes=(None, 0, None),
    )
    for at in range(STEPS):
        shares = {k: v.reshape(shards, len(v) // shards, *v.shape[1:]) for k, v in batch_at(at, objective).items()}
        every = jax.device_get(mapped(state, shares, resident))
        jax.tree.map(lambda a: np.testing.assert_array_equal(a, a[:1].repeat(shards, 0)), every)
        state, logs = jax.tree.map(lambda a: a[0], every)
    return state.params, state.opt_state, logs


def apart(ours, reference):
    """Largest difference in each leaf, relative to the leaf's largest entry; all leaves as one number."""
    error = lambda a, b: float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))
    return max(jax.tree.leaves(jax.tree.map(error, ours, reference)))


def inverted(devices):
    """Tokens of five images in batches of three, which four devices round up to four."""
    clip = clips.load("embedded:scenes")
    known = searle.concepts(clip, ["red", "circle", "grass"], searle.PHRASES[:2])
    images = np.random.default_rng(0).normal(size=(5, clip.config.projection)).astype(np.float32)
    return searle.invert(clip, images, known, sharding.layout(devices=devices), steps=8, nearest=2, batch_size=3)


def main():
    one = sharding.layout(devices=jax.devices()[:1])
    out = {"devices": jax.device_count()}
    with jax.enable_x64(False):
        out["inversion"] = apart(inverted(jax.devices()), inverted(jax.devices()[:1]))
    alone = {parts: train(one, step.Objective(accumulation=parts))[1] for parts in (2, 4, 8)}
    together = train(one, step.Objective(negatives="global"))[1]
    for negatives in step.NEGATIVES:
        for accumulation in (1, 2):
            objective = step.Objective(negatives=negatives, accumulation=accumulation)
            reference = together if negatives == "global" else alone[4 * accumulation]
            found = {mode: apart(train(sharding.layout(mode), objective)[1], reference) for mode in sharding.MODES}
            out[f"{negatives} {accumulation}"] = found | {"moved": apart(reference[0]["text"], toy.tower())}
    for mode in sharding.MODES:
        layout, objective = sharding.layout(mode), step.Objective()
        one_by_one = train(layout, objective)[1]
        out[f"in one call, {mode}"] = apart(train(layout, objective, in_one_call=True)[1], one_by_one)
    out["pmap against jax.pmap"] = apart(one_by_one, by_jax_pmap(step.Objective()))
    out["kinds apart"] = abs(float(together[2]["loss"] - alone[4][2]["loss"]))
    objective = step.Objective()
    rules = partition_rules(toy.CONFIG, 2, towers=("text",))
    state, split = train(sharding.layout(model=2, rules=rules), objective)
    shards = [leaf.shape != leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(state.params)]
    out["split"] = {"shards": sum(shards), "apart": apart(split, alone[2])}
    sharding.SPLIT_LEAST = 1
    state, split = train(sharding.layout(fsdp=True), objective)
    shards = [leaf.shape != leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(state)]
    out["fully sharded"] = {"shards": sum(shards), "apart": apart(split, alone[4])}
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
