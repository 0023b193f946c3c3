"""A run small enough to be started many times: least squares by SGD with momentum, through the real loop.

On any number of processes: each yields its contiguous share of the same global batches.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from launch.stages import Stage, free, numbers, settings, stackable, with_numbers
from launch.training import fit, keys, places, sharding
from launch.training.means import masked_means
from launch.training.program import as_arrays


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


@dataclass(frozen=True)
class LeastSquares(Stage):
    """The parameters (5,) that were best."""

    seed: int = stackable()
    rate: float = stackable()
    steps: int
    batch_size: int
    mode: str
    nan_at: int
    nan_gradient_at: int
    pause: float = free(0.0)

    def optimizer(self):
        return optax.sgd(self.rate, momentum=0.9)

    def step(self, numbers, state, batch, *, axis_name=None):
        own = with_numbers(self, numbers)
        noise = jax.random.normal(keys.stream(own.seed, "noise", state.step), (5,))

        def objective(params):
            loss = jnp.mean((batch["x"] @ (params + 0.1 * noise) - batch["y"]) ** 2)
            return jnp.where(state.step == self.nan_at - 1, jnp.nan, loss)

        loss, gradients = jax.value_and_grad(objective)(state.params)
        gradients = jnp.where(state.step == self.nan_gradient_at - 1, jnp.nan, gradients)
        if axis_name:
            loss, gradients = jax.lax.pmean((loss, gradients), axis_name)
        updates, opt_state = own.optimizer().update(gradients, state.opt_state)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {
            "loss": loss,
            "gradient_norm": optax.global_norm(gradients),
        }

    def share(self, batch):
        """This process's contiguous part of a global batch."""
        size = self.batch_size // jax.process_count()
        first = size * jax.process_index()
        return {k: v[first : first + size] for k, v in batch.items()}

    def batches(self, start):
        for at in range(start, 10**9):
            rng = np.random.default_rng((self.seed, at))
            time.sleep(self.pause)
            x = rng.normal(size=(self.batch_size, 5)).astype(np.float32)
            yield self.share({"x": x, "y": x.sum(1)})

    def make(self, store):
        layout = sharding.layout(self.mode)
        layout.check_batch(self.batch_size)
        held_out = np.random.default_rng(self.seed).normal(size=(self.batch_size, 5)).astype(np.float32)
        mask = np.arange(self.batch_size) < self.batch_size - 1

        def error(params, batch, repeat):
            return {"val/error": jnp.abs(batch["x"] @ (params - 1)) + 0 * repeat}

        def evaluate(state):
            means = masked_means(layout, error, state.params, [self.share({"x": held_out, "mask": mask})])
            return {"val/distance": float(jnp.abs(state.params - 1).sum()), "val/error": means["val/error"]}

        params = jax.random.normal(keys.stream(self.seed, "init"), (5,))
        training = fit.Training(
            places.One(layout),
            self.step,
            as_arrays(numbers(self)),
            self.batches,
            self.batch_size,
            self.steps,
            evaluate=fit.alone(evaluate),
            cadence=fit.Cadence(log_every=2, eval_every=4, checkpoint_every=3),
            best=("val/distance", "min"),
        )
        initial = State(jnp.zeros((), jnp.int32), params, self.optimizer().init(params))
        return np.asarray(fit.train(store, self, initial, training).state.params)


@dataclass(frozen=True)
class FromOnes(Stage):
    """The result: how far the parameters are from ones."""

    training: LeastSquares

    def make(self, store):
        return {"distance": float(np.abs(store.get(self.training) - 1).sum())}


def plan(config) -> FromOnes:
    return FromOnes(settings(LeastSquares, config, rate=config.nested.rate))


def leave(folder, root, store):
    np.save(folder / "params.npy", store.get(root.training))
