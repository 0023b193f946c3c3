"""The modality gap: what separates CLIP's embedding of an image from that of its caption.

It is measured on generic image-caption pairs, whose images have nothing to do with the classes.
"""

import numpy as np

import clip_jax
from tldr_jax.datasets.captions import GapPairs


def differences(clip: clip_jax.Clip, pairs: GapPairs, *, batch_size: int) -> np.ndarray:
    """CLIP(image) - CLIP(caption) of every pair, neither normalised: float32 (n, d)."""
    images = clip_jax.embed_images(clip, pairs.images, batch_size=batch_size, progress=False)
    return images - clip_jax.embed_texts(clip, list(pairs.captions), batch_size=batch_size, progress=False)


def rows(differences: np.ndarray, count: int) -> np.ndarray | None:
    """The differences (n, d) averaged in `count` groups of pairs, float64 (count, d); None for count 0.

    Raises:
      ValueError: a negative count, or more rows than pairs.
    """
    if not 0 <= count <= len(differences):
        raise ValueError(f"projector.gap_rows={count}: take 0 to {len(differences)}, the number of pairs")
    if count == 0:
        return None
    groups = np.array_split(np.asarray(differences, np.float64), count)
    return np.stack([group.mean(0) for group in groups])
