"""CLIP's contrastive loss, with global negatives however the batch is spread over devices."""

import jax
import jax.numpy as jnp


def contrastive(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, axis_name: str | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Symmetric cross-entropy of matching images and texts (Radford et al. 2021, figure 3).

    Every other text of the global batch is a negative of an image, and vice versa. Under `jit` over a mesh the batch is
    the global one. Under `pmap` or `shard_map` each device passes its share and `axis_name`: the embeddings of the
    other devices are gathered, and the gradients of the devices, averaged over the axis, are exactly the gradient of
    the loss over the global batch.

    Args:
      image: float, (b, d), not normalised; image i belongs to text i.
      text: float, (b, d), not normalised.
      logit_scale: (), logarithm of the inverse temperature.
      axis_name: of the mapped axis over which the batch is spread.

    Returns:
      The loss, in nats, and metrics: `image_to_text_accuracy`, the fraction of images whose text is the most similar
      of the batch, and `text_to_image_accuracy`. All are means over the global batch, the same on every device.
    """
    image, text = normalize(image), normalize(text)
    scale = jnp.exp(logit_scale)
    every_image, every_text, first = image, text, 0
    if axis_name is not None:
        every_image, every_text = jax.lax.all_gather((image, text), axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(image)
    to_text = _logits(image, every_text, scale)
    to_image = to_text.T if axis_name is None else _logits(text, every_image, scale)
    match = first + jnp.arange(len(image))
    matching = scale * (image * text).sum(-1)
    loss = ((jax.nn.logsumexp(to_text, axis=1) + jax.nn.logsumexp(to_image, axis=1)) / 2 - matching).mean()
    metrics = {
        "image_to_text_accuracy": (to_text.argmax(1) == match).mean(),
        "text_to_image_accuracy": (to_image.argmax(1) == match).mean(),
    }
    return (loss, metrics) if axis_name is None else jax.lax.pmean((loss, metrics), axis_name)


def normalize(x: jax.Array) -> jax.Array:
    """x (..., d) on the unit sphere, in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _logits(queries: jax.Array, keys: jax.Array, scale: jax.Array) -> jax.Array:
    # Full precision on every accelerator: a scale of 100 turns an error of 1e-3 in a cosine into 0.1.
    return scale * jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
