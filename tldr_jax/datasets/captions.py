"""Image-caption pairs for the modality gap, by the name of their source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.data import scenes
from tldr_jax.datasets.grouped import IndexedImages

SPLITS = ("train", "val", "test", "restval")  # of coco_tfds
SOURCES = ("coco", "coco_tfds", "scenes")
_DRAW = 0x6A9  # keeps the draw of pairs apart from others of the same seed


@dataclass(frozen=True)
class GapPairs:
    """Generic images with a caption each, for the modality gap.

    Attributes:
      images: uint8 (n, h, w, 3), or PIL images that are decoded when they are indexed.
      captions: n texts.
    """

    images: np.ndarray | IndexedImages
    captions: Sequence[str]


def load(source: str, *, pairs: int, seed: int, path: str = "", images: str = "", split: str = "val"):
    """A random choice of image-caption pairs.

    Args:
      source: "coco" (an annotations file and a folder), "coco_tfds" (prepared by TFDS) or "scenes".
      pairs: how many.
      seed: of the draw.
      path: coco: the annotations' JSON file; coco_tfds: TFDS' folder.
      images: coco: the folder of images.
      split: coco_tfds: train, val, test or restval.

    Returns:
      `GapPairs`.

    Raises:
      FileNotFoundError, ValueError: see `tldr_jax.datasets.coco`; an unknown source.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source of pairs {source!r}; valid names: {', '.join(map(repr, SOURCES))}")
    if source == "scenes":
        drawn = scenes.pairs(seed, pairs, held_out=False, captions_per_image=1)
        return GapPairs(drawn.images, [texts[0] for texts in drawn.captions])
    from tldr_jax.datasets import coco

    if source == "coco_tfds":
        return coco.from_tfds(path, split, n=pairs, seed=seed)
    return coco.from_json(path, images, n=pairs, seed=seed)


def draw(total: int, count: int, seed: int, source: str | Path) -> np.ndarray:
    """Which of the `total` pairs in `source` are taken, in order: int (count,).

    Raises:
      ValueError: a count above the total.
    """
    if count > total:
        remedy = f"take at most {total}" if total else "it needs images with captions"
        raise ValueError(f"gap.pairs={count}: {source} has {total} pairs; {remedy}")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _DRAW))))
    return np.sort(generator.permutation(total)[:count])
