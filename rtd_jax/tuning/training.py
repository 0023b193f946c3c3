"""What all trainings of this package share: a step from a loss, noise, dropout keys, parameters on this process."""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from launch.training import keys
from launch.training.program import LOSS, Batch, Metrics, State


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


def make_step(loss: TextLoss, optimizer: optax.GradientTransformation) -> Update:
    """The update that follows an optimiser down the gradient of a loss."""

    def step(state: State, batch: Batch, *, axis_name: str | None = None) -> tuple[State, Metrics]:
        objective = partial(loss, batch=batch, step=state.step, axis_name=axis_name)
        (value, logs), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        if axis_name is not None:
            gradients, value, logs = jax.lax.pmean((gradients, value, logs), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        logs = {LOSS: value, **logs, "gradient_norm": optax.global_norm(gradients)}
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), logs

    return step


def noise(key: jax.Array, slots: jax.Array, width: int) -> jax.Array:
    """u · n of every example, (b, width), with u ~ U(0, 1) and n ~ N(0, I); drawn by its place in the global batch."""

    def draw(key):
        level, direction = jax.random.split(key)
        return jax.random.uniform(level) * jax.random.normal(direction, (width,))

    return jax.vmap(draw)(keys.per_example(key, slots))


def dropout_key(seed, step: jax.Array, axis_name: str | None) -> jax.Array:
    """The key of a step, another one on every device of a mapped axis."""
    key = keys.stream(seed, "dropout", step)
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the rows of a and b, (n, d) each: (n,)."""
    return optax.cosine_similarity(a, b, epsilon=1e-8)


def local(params: Any) -> Any:
    """Parameters that this process alone can compute with; with several processes, all of them call it."""
    if jax.process_count() == 1:
        return params

    def whole(leaf):
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, params)
