"""Linear heads on cached features: one, or the stack that a sweep trains."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array


class Head(NamedTuple):
    """A linear classifier, or a stack of them with the same leading axes in both arrays; a pytree.

    Attributes:
      kernel: (…, f, C).
      bias: (…, C).
    """

    kernel: Array
    bias: Array


def init(key: jax.Array, features: int, classes: int) -> Head:
    """A fresh head, uniform in ±1/sqrt(features), as `torch.nn.Linear` starts."""
    bound = features**-0.5
    kernel, bias = jax.random.split(key)
    return Head(
        jax.random.uniform(kernel, (features, classes), minval=-bound, maxval=bound),
        jax.random.uniform(bias, (classes,), minval=-bound, maxval=bound),
    )


def logits(head: Head, features: jax.Array) -> jax.Array:
    """features (n, f) -> (n, C), of one head."""
    return jnp.matmul(features, head.kernel, precision="highest") + head.bias


def predictions(heads: Head, features: Array, *, chunk: int = 4096) -> np.ndarray:
    """The classes that heads predict: int32 (…, n), the leading axes those of the stack.

    A head whose logits are not finite, because it diverged, predicts -1, which is no class.

    Args:
      heads: one head or a stack.
      features: (n, f).
      chunk: images in one product with all heads.

    Raises:
      ValueError: the heads are for another width of features, or chunk < 1.
    """
    kernel, bias = np.asarray(heads.kernel), np.asarray(heads.bias)
    if np.ndim(features) != 2 or features.shape[1] != kernel.shape[-2]:
        raise ValueError(f"heads for {kernel.shape[-2]} features cannot take features of shape {np.shape(features)}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    stack, n = kernel.shape[:-2], len(features)
    chunk = max(1, min(chunk, n))
    flat = jax.device_put(Head(kernel.reshape(-1, *kernel.shape[-2:]), bias.reshape(-1, bias.shape[-1])))
    predicted = np.empty((len(flat.kernel), n), np.int32)
    for start in range(0, n, chunk):
        start = min(start, n - chunk)  # the last chunk reaches back, so that one program serves all
        predicted[:, start : start + chunk] = _predict(flat, np.asarray(features[start : start + chunk]))
    return predicted.reshape(*stack, n)


@jax.jit
def _predict(heads: Head, features: jax.Array) -> jax.Array:
    scores = jnp.einsum("nf,mfc->mnc", features, heads.kernel, precision="highest") + heads.bias[:, None]
    return jnp.where(jnp.all(jnp.isfinite(scores), -1), jnp.argmax(scores, -1), -1)
