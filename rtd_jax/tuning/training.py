"""What the trainings of φ share: the state, a step from a loss, noise, and the run of a stage."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils

from clip_jax.config import ClipConfig
from launch.run import Run
from launch.training import checkpoint, keys, loop, sharding
from launch.training.state import State
from rtd_jax.tuning import feed


def create_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_step(loss: Callable, optimizer: optax.GradientTransformation) -> Callable:
    """`step(state, batch, *, axis_name=None) -> (state, metrics)` from `loss(params, batch, step, axis_name)`."""

    def step(state: State, batch, *, axis_name: str | None = None):
        objective = partial(loss, batch=batch, step=state.step, axis_name=axis_name)
        (value, logs), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        if axis_name is not None:
            gradients, value, logs = jax.lax.pmean((gradients, value, logs), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        logs = {loop.LOSS: value, **logs, "gradient_norm": optax.global_norm(gradients)}
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), logs

    return step


def noise(key: jax.Array, slots: jax.Array, width: int) -> jax.Array:
    """u · n of every example, (b, width): u ~ U(0, 1) of its own, n ~ N(0, I); by its place in the global batch."""

    def draw(key):
        level, direction = jax.random.split(key)
        return jax.random.uniform(level) * jax.random.normal(direction, (width,))

    return jax.vmap(draw)(keys.per_example(key, slots))


def dropout_key(seed: int, step: jax.Array, axis_name: str | None) -> jax.Array:
    """A key of the step, of its own on every device where each has its own share."""
    key = keys.stream(seed, "dropout", step)
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def unit(x):
    """x (..., d) on the unit sphere, of NumPy or JAX as it is."""
    return x / (jnp if isinstance(x, jax.Array) else np).linalg.norm(x, axis=-1, keepdims=True)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the rows of a and b, (n, d) each: (n,)."""
    return optax.cosine_similarity(a, b, epsilon=1e-8)


def fit(
    run: Run,
    stage,
    *,
    config: ClipConfig,
    layout: sharding.Layout,
    state: Any,
    step: Callable,
    table: feed.Table,
    evaluate: Callable[[Any], Mapping[str, float]],
    best: tuple[str, str],
    steps: int,
    to_steps: Callable[[str], int],
    seed: int,
    resident: Any = None,
) -> tuple[Any, dict[str, float]]:
    """Train one stage in its own run directory; the best state, on the devices, and its step and metrics.

    Args:
      run: of the stage.
      stage: its config: batch_size, loop.
      config: of the CLIP, for the lengths of texts.
      layout, state, step, resident: as `launch.training.loop.fit` takes them.
      table: of the examples.
      evaluate: at every `loop.eval_every`.
      best: the metric that picks the state, and "max" or "min".
      steps, to_steps: of `launch.training.optim.of_run`.
      seed: of the order.
    """
    layout.check_batch(stage.batch_size)
    rows_at = feed.grouped_rows(len(table), seed=seed, batch_size=stage.batch_size, lengths=table.lengths)
    with run.checkpoints(best=best) as checkpoints:
        state = loop.fit(
            run,
            state=state,
            step=step,
            batches=lambda start: feed.batches(
                config,
                table,
                rows_at,
                start=start,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            steps=steps,
            layout=layout,
            checkpoints=checkpoints,
            evaluate=evaluate,
            resident=resident,
            log_every=stage.loop.log_every,
            eval_every=to_steps(stage.loop.eval_every),
            checkpoint_every=to_steps(stage.loop.checkpoint_every),
        )
        found, at, metrics = checkpoints.restore_best(checkpoint.abstract(state))
    logging.info("best at step %d of %d: %s", at, steps, metrics)
    return found, {"best_step": float(at), **metrics}


def local(params: Any) -> Any:
    """Parameters as this process can compute with them by itself."""
    if jax.process_count() == 1:
        return params

    def whole(leaf):
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, params)
