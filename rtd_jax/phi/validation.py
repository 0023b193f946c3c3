"""Validation of φ: whether "a photo of [$]" means what a caption or an image means."""

import numpy as np

import clip_jax
from rtd_jax import losses
from rtd_jax.phi.networks import Network
from rtd_jax.text.compose import BASE

RECALL = "val/recall"


def validate(clip: clip_jax.Clip, network: Network, embeddings: np.ndarray) -> dict[str, float]:
    """Metrics on held-back captions or images, without noise.

    Args:
      clip: whose text encoder is used.
      network: φ.
      embeddings: (n, d), of the captions or images.

    Returns:
      "val/recall", the percentage of embeddings that are the nearest to "a photo of $" with their own pseudo token, and
      "val/cosine", the mean similarity of the two.
    """
    unit = losses.unit_rows(embeddings)
    pseudo = np.asarray(network(embeddings))
    sentences = clip_jax.embed_texts(clip, [BASE] * len(embeddings), pseudo_tokens=pseudo, progress=False)
    similarity, diagonal = losses.unit_rows(sentences) @ unit.T, np.arange(len(unit))
    matched = similarity[diagonal, diagonal]
    nearest = (similarity >= matched[:, None]).sum(1) == 1
    return {RECALL: 100 * float(nearest.mean()), "val/cosine": float(matched.mean())}
