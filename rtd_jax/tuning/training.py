"""What all trainings of this package share: a step from a loss, noise, dropout keys, parameters on this process."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.training import keys, sharding
from launch.training.accumulation import WHOLE, Parts, differentiate
from launch.training.optim import descend
from launch.training.program import Batch, Metrics, State


class TextLoss(Protocol):
    """`(loss, metrics)` of parameters, this device's mean; `axis_name` is the mesh axis that a batch is spread over."""

    def __call__(
        self, params: Any, batch: Batch, step: jax.Array, axis_name: str | None
    ) -> tuple[jax.Array, Metrics]: ...


class Update(Protocol):
    """One update of a state, pure: a `launch.training.program.Step` whose numbers are fixed."""

    def __call__(self, state: State, batch: Batch, *, axis_name: str | None = None) -> tuple[State, Metrics]: ...


def create_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def host_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """`create_state` on the host: a tower may exceed one accelerator's memory."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.tree.map(np.asarray, create_state(params, optimizer))


def make_step(loss: TextLoss, optimizer: optax.GradientTransformation, parts: Parts = WHOLE) -> Update:
    """The update that follows an optimiser down the gradient of a loss, the mean over the parts of a batch."""

    def step(state: State, batch: Batch, *, axis_name: str | None = None) -> tuple[State, Metrics]:
        resident = {name: batch[name] for name in (sharding.RESIDENT,) if name in batch}
        rows: dict[str, Any] = {name: value for name, value in batch.items() if name not in resident}
        objective = lambda params, rows: loss(params, rows | resident, state.step, axis_name)
        own = parts.along(axis_name)
        if own.count > 1:
            numbers = jnp.arange(own.count)[:, None]
            rows["part"] = own.join(jnp.broadcast_to(numbers, (own.count, len(rows["slot"]) // own.count)))
        params, opt_state, terms, logs = descend(
            differentiate(objective, rows, own), state.params, optimizer, state.opt_state, axis_name
        )
        return State(state.step + 1, params, opt_state), logs | terms

    return step


def noise(key: jax.Array, slots: jax.Array, width: int) -> jax.Array:
    """u · n of every example, (b, width), with u ~ U(0, 1) and n ~ N(0, I); drawn by its place in the global batch."""

    def draw(key):
        level, direction = jax.random.split(key)
        return jax.random.uniform(level) * jax.random.normal(direction, (width,))

    return jax.vmap(draw)(keys.per_example(key, slots))


def dropout_key(seed, step: jax.Array, axis_name: str | None, batch: Batch) -> jax.Array:
    """The key of a step, another one on every device of a mapped axis and for every part of a divided batch."""
    key = keys.stream(seed, "dropout", step)
    if "part" in batch:
        key = jax.random.fold_in(key, batch["part"][0])
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the rows of a and b, (n, d) each: (n,)."""
    return optax.cosine_similarity(a, b, epsilon=1e-8)
