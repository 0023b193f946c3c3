"""One of several processes that train one network, run by test_hosts.py: prints, as JSON, what came of it.

python -m tests.launch.training.devices.hosts_worker ADDRESS PROCESSES PROCESS MODEL
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from launch.data import Arrays, feed
from launch.training import sharding
from launch.training.means import masked_means

IMAGES, SIZE, BATCH, WIDTH, STEPS = 13, 4, 8, 8, 3
RULES = (("up$", P(None, "model")), ("down$", P("model")))


def examples() -> Arrays:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 1), np.uint8)
    return Arrays(images, rng.integers(0, 3, IMAGES).astype(np.int32))


def parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 4
    return {"up": draw(SIZE * SIZE, WIDTH), "down": draw(WIDTH, 3)}


def losses(params, batch):
    full = feed.materialize({k: v for k, v in batch.items() if k != "resident"}, batch["resident"])
    hidden = jnp.tanh(full["image"].reshape(len(full["image"]), -1) / 255.0 @ params["up"])
    # by place: rows in another order, or twice, are another loss
    weight = 1 + full["slot"] / 10
    log_probs = jax.nn.log_softmax(hidden @ params["down"])
    return -jnp.take_along_axis(log_probs, full["label"][:, None], 1)[:, 0] * weight


def step(numbers, state, batch, *, axis_name=None):
    del numbers, axis_name
    loss, gradients = jax.value_and_grad(lambda params: losses(params, batch).mean())(state)
    return jax.tree.map(lambda p, g: p - 0.5 * g, state, gradients), {"loss": loss}


def run(layout: sharding.Layout) -> dict:
    """Parameters and losses after some steps, means over all examples, and how many rows this process fed."""
    split = examples()
    resident = layout.replicate(feed.resident(split))
    state, compiled, found = layout.place(parameters()), layout.jit(step, parameters()), []
    batches = feed.train_batches(split, seed=3, batch_size=BATCH, **layout.share)
    for _, batch in zip(range(STEPS), batches, strict=False):
        fed = batch["row"].tolist()
        state, metrics = compiled({}, state, layout.put(batch) | {"resident": resident})
        found.append(float(metrics["loss"]))
    measure = lambda params, batch, repeat: {"loss": losses(params, batch) + 0 * repeat}
    over = feed.eval_batches(split, batch_size=BATCH, **layout.share)
    means = masked_means(layout, measure, state, over, resident=resident)
    params = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), sharding.local(state))
    return {"params": params, "losses": found, "means": means, "fed": fed}


def main(address: str, processes: str, process: str, model: str) -> None:
    sharding.initialize(address, int(processes), int(process))
    layout = sharding.layout(model=int(model), rules=RULES)
    json.dump(run(layout) | {"spans": len({d.process_index for d in layout.mesh.devices[0]})}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
