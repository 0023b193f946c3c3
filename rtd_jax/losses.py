"""The contrastive loss of RTD, and those that φ networks are trained with. Pure; embeddings need not be normalised."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from clip_jax import losses as clip_losses
from clip_jax.losses import normalize


def unit_rows(x: np.ndarray | jax.Array) -> np.ndarray:
    """The rows of x (n, d) on the unit sphere, on the host."""
    return np.asarray(normalize(jnp.asarray(x)))


def target_anchored(
    queries: jax.Array, targets: jax.Array, temperature: float | jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """InfoNCE over the joint batch of queries and targets (Byun et al. 2025, equation 3; arXiv 2406.09188).

    Each of the 2m vectors is an anchor: query i and target i are each other's positive, all the other 2m - 2 vectors,
    queries and targets alike, are negatives:

        mean over anchors a of  -log( exp(cos(a, a⁺)/τ) / sum over b ≠ a of exp(cos(a, b)/τ) )

    Args:
      queries: float (m, d), or (g, m, d): g groups with separate negatives.
      targets: float, of the same shape; target i belongs to query i.
      temperature: τ, above 0.
      axis_name: a mapped axis that the batch is spread over: the other devices' vectors are gathered as negatives, and
        the devices' gradients, averaged over the axis, are those of the loss over the whole batch.

    Returns:
      The mean over all anchors, in nats; with an axis, over this device's anchors: average it over the axis.

    Raises:
      ValueError: shapes that differ, or have another rank; a temperature that is known and not positive.
    """
    if not isinstance(temperature, Tracer) and not 0 < float(temperature) < np.inf:
        raise ValueError(f"temperature={temperature} must be above 0 and finite")
    if queries.shape != targets.shape or queries.ndim not in (2, 3):
        raise ValueError(
            f"queries and targets must have one shape, (m, d) or (g, m, d), got {queries.shape} and {targets.shape}"
        )
    if queries.ndim == 3:
        if axis_name is not None:
            raise ValueError("groups keep their negatives to themselves: give (m, d) with an axis_name")
        return jax.vmap(lambda q, t: target_anchored(q, t, temperature))(queries, targets).mean()
    queries, targets = normalize(queries), normalize(targets)
    anchors = everything = jnp.stack([queries, targets])  # (2, m, d)
    first = 0
    if axis_name is not None:
        everything = jax.lax.all_gather(anchors, axis_name, axis=1, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(queries)
    m, every = len(queries), everything.shape[1]
    logits = jnp.einsum("amd,bnd->ambn", anchors, everything, precision=jax.lax.Precision.HIGHEST) / temperature
    same_row = (first + jnp.arange(m))[:, None] == jnp.arange(every)
    itself = jnp.eye(2, dtype=bool)[:, None, :, None] & same_row[None, :, None]
    logits = jnp.where(itself, -jnp.inf, logits)
    positive = (queries * targets).sum(-1) / temperature
    return (jax.nn.logsumexp(logits, axis=(2, 3)) - positive).mean()


def accuracy(queries: jax.Array, targets: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Share of queries whose target is the most similar of all targets; arguments as of `target_anchored`."""
    queries, targets = normalize(queries), normalize(targets)
    target = jnp.arange(queries.shape[-2])
    if axis_name is not None:
        targets = jax.lax.all_gather(targets, axis_name, tiled=True)
        target += jax.lax.axis_index(axis_name) * queries.shape[-2]
    similarity = jnp.matmul(queries, targets.swapaxes(-1, -2), precision=jax.lax.Precision.HIGHEST)
    return (similarity.argmax(-1) == target).mean()


def lincir(replaced: jax.Array, original: jax.Array) -> jax.Array:
    """LinCIR's self-masking projection loss (Gu et al. 2024, arXiv 2312.01998): mean squared error of the components.

    Args:
      replaced: (b, d), embeddings of the captions with their keywords replaced by pseudo tokens, not normalised.
      original: (b, d), embeddings of the unchanged captions, not normalised.
    """
    return jnp.square(replaced - original).mean()


def pic2word(images: jax.Array, texts: jax.Array, logit_scale: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Pic2Word's cycle loss (Saito et al. 2023, arXiv 2302.03084): CLIP's loss of images and of "a photo of [$]".

    Args:
      images: (b, d).
      texts: (b, d), of the prompt with image i's pseudo token.
      logit_scale: (), logarithm of the inverse temperature, that of the frozen CLIP.
      axis_name: of the mapped axis over which the batch is spread; see `clip_jax.losses.contrastive`.
    """
    return clip_losses.contrastive(images, texts, logit_scale, axis_name=axis_name)[0]


def cosine_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 - cos of (..., d) with (..., d), averaged."""
    return 1 - (normalize(a) * normalize(b)).sum(-1).mean()


def searle_inversion(
    images: jax.Array,
    texts: jax.Array,
    phrases: jax.Array,
    concepts: jax.Array,
    *,
    content_weight: float = 1.0,
    concept_weight: float = 0.5,
) -> jax.Array:
    """SEARLE's loss of optimised tokens (Baldrati et al. 2023, arXiv 2303.15247, section 3.1).

    The token has to say what the image shows, and to work like a word in a sentence.

    Args:
      images: (b, d).
      texts: (b, d), of a prompt with image i's token.
      phrases: (b, d), of a phrase about one of image i's concepts, with the token in the concept's place.
      concepts: (b, d), of the same phrase with the concept itself.
      content_weight: of the distance between images and texts.
      concept_weight: of the distance between phrases and concepts.
    """
    return content_weight * cosine_distance(images, texts) + concept_weight * cosine_distance(phrases, concepts)


def searle_distillation(
    predicted: jax.Array,
    optimized: jax.Array,
    phrases: jax.Array,
    concepts: jax.Array,
    *,
    temperature: float = 0.25,
    distillation_weight: float = 1.0,
    concept_weight: float = 0.75,
) -> jax.Array:
    """SEARLE's loss of φ (section 3.2): tokens like the optimised ones, contrasted over the joint batch, as words.

    Args:
      predicted: (b, w), φ's tokens.
      optimized: (b, w), the same images' optimised tokens, constants.
      phrases: (b, d); see `searle_inversion`, with φ's tokens.
      concepts: (b, d).
      temperature: of the contrast.
      distillation_weight: of the contrast.
      concept_weight: of the distance between phrases and concepts.
    """
    contrast = target_anchored(predicted, optimized, temperature)
    return distillation_weight * contrast + concept_weight * cosine_distance(phrases, concepts)
