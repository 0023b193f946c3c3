"""A run small enough to be started many times: least squares by SGD with momentum, through the real loop.

On any number of processes: each yields its contiguous share of the same global batches.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from launch.training import keys, loop, sharding


def get_config():
    return ConfigDict(
        {
            "experiment": "tests.launch.toy",
            "seed": 0,
            "steps": 12,
            "batch_size": 8,
            "mode": "jit",
            "nan_at": -1,
            "nan_gradient_at": -1,
            "pause": 0.0,
            "nested": {"rate": 0.1, "names": ("a", "b")},
        }
    )


@struct.dataclass
class State:
    step: jax.Array
    params: jax.Array
    opt_state: optax.OptState


def run(config, run):
    optimizer = optax.sgd(config.nested.rate, momentum=0.9)
    params = jax.random.normal(keys.stream(config.seed, "init"), (5,))
    state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def step(state, batch, *, axis_name=None):
        noise = jax.random.normal(keys.stream(config.seed, "noise", state.step), (5,))

        def objective(params):
            loss = jnp.mean((batch["x"] @ (params + 0.1 * noise) - batch["y"]) ** 2)
            return jnp.where(state.step == config.nan_at - 1, jnp.nan, loss)

        loss, gradients = jax.value_and_grad(objective)(state.params)
        gradients = jnp.where(state.step == config.nan_gradient_at - 1, jnp.nan, gradients)
        if axis_name:
            loss, gradients = jax.lax.pmean((loss, gradients), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {
            "loss": loss,
            "gradient_norm": optax.global_norm(gradients),
        }

    def share(batch):  # this process's contiguous part of a global batch
        size = config.batch_size // jax.process_count()
        first = size * jax.process_index()
        return {k: v[first : first + size] for k, v in batch.items()}

    def batches(start):
        for at in range(start, 10**9):
            rng = np.random.default_rng((config.seed, at))
            time.sleep(config.pause)
            x = rng.normal(size=(config.batch_size, 5)).astype(np.float32)
            yield share({"x": x, "y": x.sum(1)})

    layout = sharding.layout(config.mode)
    layout.check_batch(config.batch_size)
    held_out = np.random.default_rng(config.seed).normal(size=(config.batch_size, 5)).astype(np.float32)
    mask = np.arange(config.batch_size) < config.batch_size - 1

    def error(params, batch, repeat):
        return {"val/error": jnp.abs(batch["x"] @ (params - 1)) + 0 * repeat}

    def evaluate(state):
        found = loop.masked_means(layout, error, state.params, [share({"x": held_out, "mask": mask})])
        return {"val/distance": float(jnp.abs(state.params - 1).sum()), "val/error": found["val/error"]}

    with run.checkpoints(best=("val/distance", "min")) as checkpoints:
        state = loop.fit(
            run,
            state=state,
            step=step,
            batches=batches,
            steps=config.steps,
            layout=layout,
            checkpoints=checkpoints,
            evaluate=evaluate,
            log_every=2,
            eval_every=4,
            checkpoint_every=3,
        )
    if run.writes:
        np.save(run.path / "params.npy", np.asarray(state.params))
    return {"distance": float(jnp.abs(state.params - 1).sum())}
