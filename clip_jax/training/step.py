"""One training step: the contrastive loss, its gradient, and an update of the trainable parameters. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from clip_jax import losses, model, preprocess
from clip_jax.config import ClipConfig
from clip_jax.training import pairs
from launch.training import optim, sharding
from launch.training.accumulation import WHOLE, Parts, contrast
from launch.training.program import Batch, Metrics, State

MAX_LOGIT_SCALE = float(np.log(100))  # the temperature stays above 0.01 (Radford et al. 2021, section 2.5)


class AttributeLoss(Protocol):
    """A loss that is added to the contrastive one.

    Args:
      params: all that are trained.
      images: embeddings, not normalised, (b, d).
      batch: of the step.
      step: the number of updates made before.

    Returns:
      A scalar, the mean over the batch.
    """

    def __call__(self, params: Any, images: jax.Array, batch: Batch, step: jax.Array) -> jax.Array: ...


def initial_state(params: Any, optimizer: optax.GradientTransformation, trainable: Sequence[str]) -> State:
    """The state before the first step.

    Args:
      params: of the whole CLIP.
      optimizer: of the trainable parameters.
      trainable: regular expressions over parameter paths such as "image/patch/kernel"; other parameters are frozen.

    Raises:
      ValueError: an expression matches no parameter.
    """
    trained, _ = split(params, trainable)
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def create_state(params: Any, optimizer: optax.GradientTransformation, trainable: Sequence[str]) -> State:
    """As `initial_state`, on the host, computed on the CPU: towers may be larger than one accelerator's memory."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.tree.map(np.asarray, initial_state(params, optimizer, trainable))


def split(params: Any, patterns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters that an expression matches, and the others; by path."""
    mask: Mapping[str, Any] = traverse_util.flatten_dict(optim.match(params, patterns), sep="/")
    flat: Mapping[str, Any] = traverse_util.flatten_dict(params, sep="/")
    matched = {path: leaf for path, leaf in flat.items() if mask[path]}
    return matched, {path: leaf for path, leaf in flat.items() if not mask[path]}


def update(
    state: State,
    batch: Batch,
    *,
    config: ClipConfig,
    preprocessing: preprocess.Preprocessing,
    optimizer: optax.GradientTransformation,
    trainable: Sequence[str] = (".*",),
    attribute_loss: AttributeLoss | None = None,
    axis_name: str | None = None,
    parts: Parts = WHOLE,
) -> tuple[State, Metrics]:
    """One update by the contrastive loss.

    Args:
      state: before it.
      batch: see `pairs.train_batches`.
      config: of the towers.
      preprocessing: for its mean and standard deviation.
      optimizer: of the trainable parameters.
      trainable: see `initial_state`.
      attribute_loss: added to the contrastive loss.
      axis_name: see `launch.training.program.Step`.
      parts: that the towers are computed in; every other pair of the whole batch remains a negative.
    """
    images, ids = pairs.materialize(batch, batch.get(sharding.RESIDENT, {}))
    trained, frozen = split(state.params, trainable)

    def encode(trained: dict[str, Any], rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        params: Any = traverse_util.unflatten_dict(trained | frozen, sep="/")
        pixels = preprocess.normalize(preprocessing, rows[0])
        return model.encode_image(config, params, pixels), model.encode_text(config, params, rows[1])

    def loss_of(trained: dict[str, Any], embeddings: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Metrics]:
        params: Any = traverse_util.unflatten_dict(trained | frozen, sep="/")
        image, text = embeddings
        loss, logs = losses.contrastive(image, text, params["logit_scale"], axis_name=axis_name)
        logs["contrastive"] = loss
        if attribute_loss is None:
            return loss, logs
        logs["attributes"] = attribute_loss(params, image, batch, state.step)
        return loss + logs["attributes"], logs

    differentiated = contrast(encode, loss_of, (images, ids), parts.along(axis_name))
    updated, opt_state, terms, logs = optim.descend(differentiated, trained, optimizer, state.opt_state, axis_name)
    params: Any = traverse_util.unflatten_dict(updated | frozen, sep="/")
    params["logit_scale"] = jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)
    return State(state.step + 1, params, opt_state), logs | terms | {"logit_scale": jnp.exp(params["logit_scale"])}
