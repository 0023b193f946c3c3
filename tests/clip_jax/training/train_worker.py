"""Run with 4 fake CPU devices: prints, as JSON, how far two training steps are from those of one device. float64."""

import json
import sys
from dataclasses import replace

import jax
import numpy as np

from clip_jax.preprocess import Preprocessing
from clip_jax.sharding import partition_rules
from clip_jax.training import attributes
from clip_jax.training import step as steps
from configs.clip import base
from launch.data import feed
from launch.data.scenes import world
from launch.training import optim, sharding
from launch.training.accumulation import WHOLE, Parts
from tests.clip_jax.towers import TINY, parameters, texts
from tests.sections import read

CONFIG = replace(TINY, dtype="float64")
SPEC = Preprocessing(size=16, crop=16)
BATCH, STEPS = 8, 2
TRAINABLE = ("image/.*", "text/blocks/.*", "logit_scale", "attribute_head/.*")
IMAGES = np.random.default_rng(1).integers(0, 256, (20, 16, 16, 3), np.uint8)
ATTRIBUTES = np.random.default_rng(2).integers(0, world.COUNTS, (20, 5)).astype(np.int32)


def build(parts=WHOLE):
    optimizer, _ = read(optim.Optimizer, base.get_config().optimizer, "optimizer").create(
        total_steps=10, to_steps=lambda text: 0
    )
    params = attributes.add_head(parameters(CONFIG), jax.random.key(0), world.COUNTS)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    state = steps.create_state(params, optimizer, TRAINABLE)
    loss = attributes.supervised(1.0, 60, world.COUNTS)
    options = dict(preprocessing=SPEC, optimizer=optimizer, trainable=TRAINABLE, attribute_loss=loss, parts=parts)

    def step(numbers, state, batch, *, axis_name=None):
        del numbers
        return steps.update(state, batch, config=CONFIG, axis_name=axis_name, **options)

    return state, step


def data():
    """Resident arrays of 20 images and 30 texts, and a batch of rows of them for every step."""
    rng = np.random.default_rng(0)
    ids = texts(CONFIG, rng.integers(3, 20, 30))
    resident = {"images": feed.Table.of(IMAGES), "ids": feed.Table.of(ids), "attributes": ATTRIBUTES}
    rows = lambda high: rng.permutation(high)[:BATCH].astype(np.int32)
    return resident, [{"row": rows(20), "text": rows(30)} for _ in range(STEPS)]


def train(layout, parts=WHOLE):
    """(parameters, metrics) after the steps, on the host."""
    state, step = build(parts)
    compiled = layout.jit(step, state)
    state = layout.place(state)
    resident, batches = data()
    resident = layout.replicate(resident)
    for batch in batches:
        state, metrics = compiled({}, state, layout.put(batch) | {sharding.RESIDENT: resident})
    return jax.device_get((state.params, metrics))


def apart(ours, reference):
    """Largest difference in each leaf, relative to the leaf's largest entry (an absolute one where that is 0)."""
    error = lambda a, b: float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))
    return max(jax.tree.leaves(jax.tree.map(error, ours, reference)))


def main():
    one = sharding.layout("jit", devices=jax.devices()[:1])
    reference, metrics = train(one)
    start = build()[0].params
    layouts = {
        "jit": sharding.layout("jit"),
        "pmap": sharding.layout("pmap"),
        "split parameters": sharding.layout("jit", model=2, rules=partition_rules(CONFIG, 2)),
        "jit, two parts": sharding.layout("jit"),
        "pmap, two parts": sharding.layout("pmap"),
    }
    parts = {"jit, two parts": Parts(2, 4), "pmap, two parts": Parts(2)}
    out = {"devices": jax.device_count(), "moved": apart(reference, start), "loss": float(metrics["loss"])}
    for name, layout in layouts.items():
        found, logs = train(layout, parts.get(name, WHOLE))
        out[name] = {"parameters": apart(found, reference), "metrics": apart(logs, metrics)}
    out["frozen"] = apart(reference["text"]["tokens"], start["text"]["tokens"])
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
