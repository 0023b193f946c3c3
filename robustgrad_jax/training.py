"""One step of training a classifier: cross-entropy plus a regulariser, as pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from launch.data import augment, feed
from launch.training import keys, sharding
from launch.training.accumulation import WHOLE, Parts, differentiate
from launch.training.optim import descend
from launch.training.program import Batch, Metrics, NormState
from robustgrad_jax.gradients import Draws
from robustgrad_jax.regularizers import Penalty


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: Any,
    initial: Any = None,
) -> NormState:
    """The initial state.

    Args:
      model: linen module, (variables, x) -> (logits, out).
      optimizer: of the parameters.
      image_shape: (h, w, c).
      seed: of random variables; may be traced.
      initial: variables to begin with, {"params": …, "batch_stats": …}; None for random ones.
    """
    variables = initial
    if variables is None:
        variables = jax.jit(model.init)(keys.stream(seed, "init"), jnp.zeros((1, *image_shape)))
    params = variables["params"]
    return NormState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


@dataclass(frozen=True)
class Normalized:
    """From a batch to (x normalised, y), without augmentation; a `Prepare`.

    Attributes:
      mean, std: per channel, in [0, 1] units.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, batch: Batch, /) -> tuple[Array, Array]:
        batch = feed.materialize(dict(batch), batch.get(sharding.RESIDENT, {}))
        return augment.normalize(batch["image"], self.mean, self.std), batch["label"]

    def augmented(self, batch: Batch, key: Array, *, padding: int, flip: bool) -> tuple[Array, Array]:
        """The same after a random crop and flip; see `launch.data.augment.crop_flip`."""
        batch = feed.materialize(dict(batch), batch.get(sharding.RESIDENT, {}))
        image = augment.crop_flip(key, batch["image"], batch["slot"], padding=padding, flip=flip)
        return augment.normalize(image, self.mean, self.std), batch["label"]


def update(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    penalty: Penalty,
    state: NormState,
    x: Array,
    y: Array,
    draws: Draws,
    *,
    std: Sequence[float],
    axis_name: str | None = None,
    parts: Parts = WHOLE,
) -> tuple[NormState, Metrics]:
    """One update by cross-entropy plus penalty.

    Args:
      model: linen module, (variables, x) -> (logits, out).
      optimizer: whose state is in `state`.
      penalty: see `robustgrad_jax.regularizers`.
      state: before the update.
      x: (n, h, w, c), normalised. y: int (n,).
      draws: of the penalty.
      std: per channel, what the images were divided by.
      axis_name: the mesh axis to average over, as in `launch.training.program.Step`.
      parts: that the batch is computed in; batch norm is of each part, the running statistics move once a step.

    Returns:
      The next state; loss, cross_entropy, accuracy, the penalty's terms and the gradient's norm.
    """

    def logits_fn(params: Any, x: Array, /) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        (logits, _), updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits, updates.get("batch_stats", {})

    def objective(params: Any, rows: tuple[Array, Array, Array | None], /) -> tuple[Array, Any]:
        x, y, slots = rows
        value, logits, batch_stats, terms = penalty(logits_fn, params, x, y, replace(draws, slots=slots), std=std)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        accuracy = (logits.argmax(-1) == y).mean(dtype=logits.dtype)
        logs = {"cross_entropy": cross_entropy, "accuracy": accuracy, **terms}
        return cross_entropy + value, (batch_stats, logs)

    differentiated = differentiate(objective, (x, y, draws.slots), parts.along(axis_name))
    params, opt_state, (batch_stats, terms), logs = descend(
        differentiated, state.params, optimizer, state.opt_state, axis_name
    )
    return NormState(state.step + 1, params, batch_stats, opt_state), logs | terms
