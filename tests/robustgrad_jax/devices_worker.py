"""Run by test_devices.py with 8 fake CPU devices: prints, as JSON, how far each mode is from its one-device reference.

float64. The gradients are read from SGD's momentum buffer, which after the first step is the gradient itself.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from launch.networks import cnn
from launch.training import keys, sharding
from launch.training.accumulation import WHOLE, Parts
from launch.training.program import repeated
from robustgrad_jax import models, regularizers, training
from robustgrad_jax.gradients import Draws

BATCH, SHAPE = 16, (8, 8, 3)


def network(name):
    activation = models.create("lenet", num_classes=1).activation
    if name == "lenet":
        return models.create("lenet", num_classes=5)
    return cnn.ResNet(5, activation, (1, 1), bottleneck=False, imagenet_stem=False)


def as_double(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def build(name, parts=WHOLE):
    model = network(name)
    optimizer = optax.chain(optax.trace(decay=0.9), optax.scale(-0.05))
    state = as_double(training.create_state(model, optimizer, SHAPE, 0))
    penalty, std = regularizers.create("l2_cosine", l2_weight=0.5, radius=32.0), (0.2, 0.2, 0.2)

    def step(numbers, state, batch, *, axis_name=None):
        draws = Draws(keys.stream(numbers["seed"], "regularizer", state.step), batch["slot"])
        images = batch["x"], batch["y"]
        options = dict(std=std, axis_name=axis_name, parts=parts)
        return training.update(model, optimizer, penalty, state, *images, draws, **options)

    return jax.tree.map(np.asarray, state), step


NUMBERS = {"seed": np.int32(3)}


def batch_at(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(BATCH, *SHAPE))
    return {"x": x, "y": rng.integers(0, 5, BATCH), "slot": np.arange(BATCH, dtype=np.int32)}


def train(state, step, layout, steps=3):
    """(state, metrics) after every step, on the host."""
    compiled = layout.jit(step, state)
    state = layout.place(state)
    history = []
    for at in range(steps):
        state, metrics = compiled(NUMBERS, state, layout.put(batch_at(at)))
        history.append(jax.tree.map(np.array, (state, metrics)))  # copies: the state's buffers are donated
    return history


def per_device_reference(state, step, shards=8, steps=3):
    """What `pmap` mode means, by hand on one device: every shard by itself, then the mean of what they found.

    All shards start from the same state, so with an update linear in the gradient the mean of the updated states is
    the update by the mean gradient.
    """
    alone = jax.jit(step)
    size = BATCH // shards
    mean = lambda *leaves: jnp.stack(leaves).mean(0).astype(leaves[0].dtype)
    history = []
    for at in range(steps):
        shares = [{k: v[i * size : (i + 1) * size] for k, v in batch_at(at).items()} for i in range(shards)]
        state, metrics = jax.tree.map(mean, *[alone(NUMBERS, state, share) for share in shares])
        history.append((state, metrics))
    return history


def in_one_call(state, step, layout, steps=3):
    """The state after the steps as one program, and the metrics of the last."""
    compiled = layout.jit(repeated(step), state, stacked=True)
    batches = jax.tree.map(lambda *parts: np.stack(parts), *[batch_at(at) for at in range(steps)])
    state, metrics = compiled(NUMBERS, layout.place(state), layout.put(batches, stacked=True))
    return jax.tree.map(np.array, (state, jax.tree.map(lambda value: value[-1], metrics)))


def by_jax_pmap(state, step, shards=8, steps=3):
    """(state, metrics) after every step, by `jax.pmap` of the same step; every device must have the same."""
    mapped = jax.pmap(
        lambda state, batch: step(NUMBERS, state, batch, axis_name="data"), axis_name="data", in_axes=(None, 0)
    )
    history = []
    for at in range(steps):
        shares = {k: v.reshape(shards, BATCH // shards, *v.shape[1:]) for k, v in batch_at(at).items()}
        every = jax.device_get(mapped(state, shares))
        jax.tree.map(lambda a: np.testing.assert_array_equal(a, a[:1].repeat(shards, 0)), every)
        state, metrics = jax.tree.map(lambda a: a[0], every)
        history.append((state, metrics))
    return history


def apart(ours, reference, relative=True):
    """Largest difference of any leaf, relative to that leaf's largest entry."""

    def error(a, b):
        scale = np.abs(b).max() if relative else 1.0
        return float(np.abs(a - b).max() / scale) if scale else float(np.abs(a).max())

    return max(jax.tree.leaves(jax.tree.map(error, ours, reference)))


def main():
    out = {"devices": jax.device_count()}
    for name, rule in {
        "lenet": (r"fc1/kernel$", P(None, "model")),
        "resnet": (r"layer2_0/conv\d/kernel$", P(None, None, None, "model")),
    }.items():
        state, step = build(name)
        single = train(state, step, sharding.layout(devices=jax.devices()[:1]))
        jit = train(state, step, sharding.layout("jit"))
        split = train(state, step, sharding.layout("jit", model=2, rules=[rule]))
        pmap = train(state, step, sharding.layout("pmap"))
        by_hand = per_device_reference(state, step)
        if name == "resnet":  # with batch norm
            literal = by_jax_pmap(state, step)
            alone = train(state, build(name, Parts(8))[1], sharding.layout(devices=jax.devices()[:1]))
            out["eight parts against pmap"] = [apart(a, b) for (a, _), (b, _) in zip(alone, pmap, strict=True)]
            out["pmap against jax.pmap"] = [apart(ours, theirs) for ours, theirs in zip(pmap, literal, strict=True)]
        else:
            divided = {
                "jit": train(state, build(name, Parts(2, 8))[1], sharding.layout("jit")),
                "pmap": train(state, build(name, Parts(2))[1], sharding.layout("pmap")),
            }
            out["two parts"] = {mode: apart(history[-1], single[-1]) for mode, history in divided.items()}
            together = {mode: in_one_call(state, step, sharding.layout(mode)) for mode in sharding.MODES}
            out["in one call"] = {"jit": apart(together["jit"], jit[-1]), "pmap": apart(together["pmap"], pmap[-1])}
        for at in (0, 2):
            out[f"{name}-{at + 1}"] = {
                "jit": apart(jit[at], single[at]),
                "split parameters": apart(split[at], single[at]),
                "pmap": apart(pmap[at][0], by_hand[at][0]),  # the logged norm is that of the mean gradient
                "pmap against one": apart(pmap[at], single[at]),
                "moved": apart(single[at][0].params, state.params, relative=False),
            }
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
