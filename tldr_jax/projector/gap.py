"""The modality gap: what separates CLIP's embedding of an image from that of its caption.

It is measured on generic image-caption pairs, whose images have nothing to do with the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

import clip_jax
from clip_jax import preprocess
from launch.data import scenes

SOURCES = ("coco", "coco_tfds", "none", "scenes")
_DRAW = 0x6A9


@dataclass(frozen=True)
class Pairs:
    """Images (PIL, decoded anew when asked for, or a uint8 array (n, h, w, 3)) and a caption of each."""

    images: Sequence[Image.Image] | np.ndarray
    captions: Sequence[str]


def pairs(config) -> Pairs:
    """The pairs of `gap` of a config.

    Raises:
      FileNotFoundError, ValueError: see `tldr_jax.datasets.coco`; an unknown source, or fewer pairs than asked for.
    """
    if config.source not in SOURCES:
        raise ValueError(f"no gap.source={config.source!r}; there are {', '.join(SOURCES)}")
    if config.source == "none" or config.pairs < 1:
        raise ValueError(
            f"gap.source={config.source!r} with gap.pairs={config.pairs}: set projector.gap_rows=0 for no constraint"
        )
    if config.source == "scenes":
        found = scenes.pairs(config.seed, config.pairs, held_out=False, captions_per_image=1)
        return Pairs(found.images, [texts[0] for texts in found.captions])
    from tldr_jax.datasets import coco

    if config.source == "coco_tfds":
        return coco.from_tfds(config.path, config.split, n=config.pairs, seed=config.seed)
    return coco.from_json(config.path, config.images, n=config.pairs, seed=config.seed)


def differences(clip: clip_jax.Clip, found: Pairs, *, batch_size: int) -> np.ndarray:
    """CLIP(image) - CLIP(caption) of every pair, neither normalised: float32 (n, d)."""
    options = dict(batch_size=batch_size, progress=False)
    images = np.empty((len(found.captions), clip.config.projection), np.float32)
    for start in range(0, len(images), batch_size):  # one batch of decoded images in memory at a time
        rows = range(start, min(start + batch_size, len(images)))
        stack = preprocess.crop_all(clip.preprocessing, [found.images[i] for i in rows])
        images[start : rows.stop] = clip_jax.embed_images(clip, stack, **options)
    return images - clip_jax.embed_texts(clip, list(found.captions), **options)


def rows(differences: np.ndarray, count: int) -> np.ndarray | None:
    """The differences (n, d) averaged in `count` groups of pairs, float64 (count, d); None for none.

    Raises:
      ValueError: a negative count, or more rows than pairs.
    """
    if not 0 <= count <= len(differences):
        raise ValueError(f"projector.gap_rows={count}: 0 to {len(differences)}, the number of pairs")
    if count == 0:
        return None
    groups = np.array_split(np.asarray(differences, np.float64), count)
    return np.stack([group.mean(0) for group in groups])


def draw(total: int, count: int, seed: int) -> np.ndarray:
    """Which of `total` pairs are taken, in order: int (count,).

    Raises:
      ValueError: more than there are.
    """
    if count > total:
        raise ValueError(f"gap.pairs={count} of {total}: take fewer")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _DRAW))))
    return np.sort(generator.permutation(total)[:count])
