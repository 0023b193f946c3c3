"""A loss that helps a small CLIP past the plateau on which it does not yet see the harder attributes.

A linear head on the image embedding predicts what is in the image. Its weight decreases to zero well before the end,
and the head is part of the training state only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax.training.step import AttributeLoss
from launch.training.program import Batch
from launch.training.sharding import RESIDENT

HEAD = "attribute_head"  # beside "image" and "text" among the trained parameters

_STD = 0.1


def add_head(params: Any, key: jax.Array, counts: Sequence[int]) -> Any:
    """The parameters with a linear head for attributes that have `counts` values."""
    width = params["image"]["projection"]["kernel"].shape[1]
    kernel = _STD * jax.random.normal(key, (width, sum(counts)))
    return {**params, HEAD: {"kernel": kernel, "bias": jnp.zeros(sum(counts))}}


def without_head(params: Any) -> Any:
    return {name: part for name, part in params.items() if name != HEAD}


def cross_entropy(params: Any, embeddings: jax.Array, labels: jax.Array, counts: Sequence[int]) -> jax.Array:
    """Cross-entropies of the attributes, in nats, summed over attributes and averaged over images.

    Args:
      params: with the head.
      embeddings: of the images, not normalised, (b, d).
      labels: int (b, a).
      counts: values of each attribute.
    """
    logits = embeddings @ params[HEAD]["kernel"] + params[HEAD]["bias"]
    parts = jnp.split(logits, np.cumsum(counts)[:-1], axis=1)
    total = jnp.zeros((), logits.dtype)
    for i, part in enumerate(parts):
        total += optax.softmax_cross_entropy_with_integer_labels(part, labels[:, i]).mean()
    return total


def weight_at(step: jax.Array | int, *, weight: Any, until: int) -> jax.Array:
    """The weight of the loss: constant for the first half of `until` steps, then linearly to 0."""
    return weight * jnp.clip(2 - 2 * step / max(until, 1), 0, 1)


def supervised(weight: Any, until: int, counts: Sequence[int]) -> AttributeLoss:
    """The weighted cross-entropy as a part of the step; labels are the resident array "attributes", int (n, a).

    Args:
      weight: at the beginning, a number or a traced scalar.
      until: see `weight_at`.
      counts: values of each attribute.
    """

    def loss(params: Any, images: jax.Array, batch: Batch, step: jax.Array) -> jax.Array:
        labels = jnp.take(batch[RESIDENT]["attributes"], batch["row"], axis=0, mode="clip")
        return weight_at(step, weight=weight, until=until) * cross_entropy(params, images, labels, counts)

    return loss
