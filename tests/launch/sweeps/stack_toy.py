"""Least squares by SGD with momentum, alone or many as one program."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from launch.stages import Stage, free, numbers, settings, stackable, stacked_numbers, with_numbers
from launch.training import fit, keys, places, sharding
from launch.training.fit import NonFiniteLoss
from launch.training.program import as_arrays


def get_config():
    return ConfigDict(
        {
            "experiment": "tests.launch.sweeps.stack_toy",
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


BEST = ("val/distance", "min")


def distance(params) -> float:
    return float(np.abs(np.asarray(params) - 1).sum())


@dataclass(frozen=True)
class Squares(Stage):
    """The parameters (5,) that were best."""

    STACKS = True
    seed: int = stackable(0)
    rate: float = stackable(0.1)
    weight: float = stackable(0.0, off_at_zero=True)
    kind: str = "square"
    steps: int = 9
    more: int = 0
    pause: float = free(0.0)

    def optimizer(self):
        return optax.sgd(self.rate, momentum=0.9)

    def create(self) -> State:
        params = jax.random.normal(keys.stream(self.seed, "init"), (5,))
        return State(jnp.zeros((), jnp.int32), params, self.optimizer().init(params))

    def step(self, numbers, state, batch, *, axis_name=None):
        del axis_name
        own = with_numbers(self, numbers)
        noise = jax.random.normal(keys.stream(own.seed, "noise", state.step), (5,))

        def objective(params):
            error = batch["x"] @ (params + 0.1 * noise) - 1
            value = jnp.mean(error**2 if own.kind == "square" else jnp.abs(error))
            return value + own.weight * jnp.sum(params**2) + 0 * batch["resident"]["zero"]

        loss, gradients = jax.value_and_grad(objective)(state.params)
        updates, opt_state = own.optimizer().update(gradients, state.opt_state)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    def batches(self, start):
        for at in range(start, 10**9):
            time.sleep(self.pause)
            yield {"x": np.random.default_rng((self.seed, at)).normal(size=(4, 5)).astype(np.float32)}

    def training(self, place, numbers, batches, evaluate) -> fit.Training:
        return fit.Training(
            place,
            self.step,
            as_arrays(numbers),
            batches,
            batch_size=4,
            steps=self.steps,
            evaluate=evaluate,
            resident={"zero": np.zeros((), np.float32)},
            cadence=fit.Cadence(log_every=2, eval_every=4, checkpoint_every=3),
            best=BEST,
        )

    def make(self, store):
        place = places.One(sharding.layout(devices=jax.devices()[:1]))
        evaluate = fit.alone(lambda state: {"val/distance": distance(state.params)})
        training = self.training(place, numbers(self), self.batches, evaluate)
        return np.asarray(fit.train(store, self, self.create(), training).state.params)

    @classmethod
    def make_together(cls, stages, store):
        return together(stages, store)


def together(stages: Sequence[Squares], store, devices=None) -> dict[int, Exception]:
    """`Squares.make_together` over some devices."""

    def training(indices) -> fit.Training:
        members = [stages[i] for i in indices]
        place = places.stack(len(members), devices)

        def batches(start):
            for parts in zip(*(member.batches(start) for member in members), strict=True):
                yield {"x": np.stack([part["x"] for part in parts])}

        def evaluate(numbers, state, resident):
            return [{"val/distance": distance(params)} for params in place.pull(state).params]

        return stages[0].training(place, stacked_numbers(members), batches, evaluate)

    create = lambda own: with_numbers(stages[0], own).create()
    own = as_arrays(stacked_numbers(stages))
    states = jax.device_get(jax.vmap(create, axis_size=len(stages))(own))
    outcomes = fit.train_together(store, stages, states, training)
    for stage, outcome in zip(stages, outcomes, strict=True):
        if not isinstance(outcome, NonFiniteLoss):
            store.put(stage, np.asarray(outcome.state.params))
    return {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, NonFiniteLoss)}


@dataclass(frozen=True)
class Distance(Stage):
    """The result: how far the parameters are from ones."""

    squares: Squares
    ending: int = stackable(0)

    def make(self, store):
        if self.ending:
            raise ArithmeticError(f"{self.ending} was not to be")
        return {"distance": distance(store.get(self.squares))}


def plan(config) -> Distance:
    return settings(Distance, config, squares=settings(Squares, config))
