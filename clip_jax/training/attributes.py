"""A loss that helps a small CLIP over the plateau on which it has not yet seen what is hard to see.

A linear head on the image embedding predicts what is in the image. Its weight goes down to nothing well before the end,
and the head is part of the training state only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

HEAD = "attribute_head"  # beside "image" and "text" among the trained parameters

_STD = 0.1


def add_head(params: Any, key: jax.Array, counts: Sequence[int]) -> Any:
    """The parameters with a linear head for attributes that have `counts` values."""
    width = params["image"]["projection"]["kernel"].shape[1]
    kernel = _STD * jax.random.normal(key, (width, sum(counts)))
    return {**params, HEAD: {"kernel": np.asarray(kernel), "bias": np.zeros(sum(counts), np.float32)}}


def without_head(params: Any) -> Any:
    return {name: part for name, part in params.items() if name != HEAD}


def cross_entropy(params: Any, embeddings: jax.Array, labels: jax.Array, counts: Sequence[int]) -> jax.Array:
    """Cross-entropies of the attributes, in nats, summed over them and averaged over images.

    Args:
      params: with the head.
      embeddings: of the images, not normalised, (b, d).
      labels: int (b, a).
      counts: values of each attribute.
    """
    logits = embeddings @ params[HEAD]["kernel"] + params[HEAD]["bias"]
    parts = jnp.split(logits, np.cumsum(counts)[:-1], axis=1)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(part, labels[:, i]).mean() for i, part in enumerate(parts)
    ]
    return sum(losses)


def schedule(weight: float, until: int) -> Callable[[jax.Array], jax.Array]:
    """`step -> weight`: constant for the first half of `until` steps, then linearly to 0."""
    return lambda step: weight * jnp.clip(2 - 2 * step / max(until, 1), 0, 1)
