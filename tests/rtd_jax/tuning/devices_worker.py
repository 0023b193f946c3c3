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
from launch.training import sharding
from rtd_jax import clips
from rtd_jax.phi import searle
from rtd_jax.tuning import step
from tests.rtd_jax import toy

STEPS = 2
OPTIMIZER = optax.chain(optax.trace(decay=0.9), optax.scale(-0.05))


def train(layout, objective):
    """(states, metrics) after the steps, on the host."""
    network = toy.network()
    run = step.make_step(
        toy.CONFIG,
        OPTIMIZER,
        network.module,
        objective,
        prompt=toy.PROMPT,
        seed=0,
        shards=layout.data_shards,
    )
    state = step.create_state(toy.tower(), OPTIMIZER)
    compiled = layout.jit(
        lambda numbers, state, batch, *, axis_name=None: run(state, batch, axis_name=axis_name), state
    )
    state, resident = layout.place(state), layout.replicate({"phi": network.params})
    for at in range(STEPS):
        batch = {name: toy.batch(16, seed=at)[name] for name in step.columns(objective)}
        state, logs = compiled({}, state, layout.put(batch) | {sharding.RESIDENT: resident})
    return state, jax.device_get((state.params, state.opt_state, logs))


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
    out["kinds apart"] = abs(float(together[2]["loss"] - alone[4][2]["loss"]))
    objective = step.Objective()
    rules = partition_rules(toy.CONFIG, 2, towers=("text",))
    state, split = train(sharding.layout(model=2, rules=rules), objective)
    shards = [leaf.shape != leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(state.params)]
    out["split"] = {"shards": sum(shards), "apart": apart(split, alone[2])}
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
