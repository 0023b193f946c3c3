"""Run by test_devices.py with 4 fake CPU devices: prints, as JSON, how far steps are from those of one device.

float64. What one device does with per-device negatives is the step with as many parts as there are devices and parts.
"""

import json
import sys

import jax
import numpy as np
import optax

from clip_jax.sharding import partition_rules
from clip_jax.training.options import Devices
from launch.training import fsdp, sharding
from rtd_jax.tuning import step
from tests.rtd_jax import toy

STEPS = 2
OPTIMIZER = optax.chain(optax.trace(decay=0.9), optax.scale(-0.05))


def train(layout, objective):
    """(states, metrics) after the steps, on the host."""
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


def main():
    one = sharding.layout(devices=jax.devices()[:1])
    out = {"devices": jax.device_count()}
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
    fsdp.LEAST = 1
    state, split = train(sharding.layout(fsdp=True), objective)
    shards = [leaf.shape != leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(state)]
    out["fully sharded"] = {"shards": sum(shards), "apart": apart(split, alone[4])}
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
