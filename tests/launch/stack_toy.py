"""Least squares by SGD with momentum, alone and, by `stack_toy_program`, many as one program."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from launch.training import keys, loop, sharding

STACKED = "tests.launch.stack_toy_program"


def get_config():
    return ConfigDict(
        {
            "experiment": "tests.launch.stack_toy",
            "seed": 0,
            "steps": 9,
            "rate": 0.1,
            "weight": 0.0,
            "kind": "square",
            "pause": 0.0,
            "ending": 0,
        }
    )


@struct.dataclass
class State:
    step: jax.Array
    params: jax.Array
    opt_state: optax.OptState


def optimizer(config):
    return optax.sgd(config.rate, momentum=0.9)


def create(config) -> State:
    params = jax.random.normal(keys.stream(config.seed, "init"), (5,))
    return State(jnp.zeros((), jnp.int32), params, optimizer(config).init(params))


def make_step(config):
    def step(state, batch, *, axis_name=None):
        del axis_name
        noise = jax.random.normal(keys.stream(config.seed, "noise", state.step), (5,))

        def objective(params):
            error = batch["x"] @ (params + 0.1 * noise) - 1
            value = jnp.mean(error**2 if config.kind == "square" else jnp.abs(error))
            return value + config.weight * jnp.sum(params**2)

        loss, gradients = jax.value_and_grad(objective)(state.params)
        updates, opt_state = optimizer(config).update(gradients, state.opt_state)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    return step


def batches(config, start):
    for at in range(start, 10**9):
        time.sleep(config.pause)
        yield {"x": np.random.default_rng((config.seed, at)).normal(size=(4, 5)).astype(np.float32)}


def distance(params) -> float:
    return float(np.abs(np.asarray(params) - 1).sum())


OPTIONS = dict(log_every=2, eval_every=4, checkpoint_every=3)
BEST = ("val/distance", "min")


def run(config, run):
    with run.checkpoints(best=BEST) as checkpoints:
        state = loop.fit(
            run,
            state=create(config),
            step=make_step(config),
            batches=lambda start: batches(config, start),
            steps=config.steps,
            layout=sharding.layout(devices=jax.devices()[:1]),
            checkpoints=checkpoints,
            evaluate=lambda state: {"val/distance": distance(state.params)},
            **OPTIONS,
        )
    return {"distance": distance(state.params)}
