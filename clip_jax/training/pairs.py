"""Images with captions, and the batches that training reads.

Small sets live on the devices, images as 8-bit values and all captions as ids. Threads decode images in files ahead of
the devices. The caption of an image that a step sees is a function of (seed, step).
"""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax import Clip, preprocess
from clip_jax.training.composition import RowsAt
from launch.data import feed, order

_CAPTION = 0xCA97  # a stream of random numbers from one seed
_AHEAD = 2  # batches that are decoded before the devices ask for them

Batch = dict[str, np.ndarray]
# Task -> (texts of each class, class of each image, int (n,)).
ZeroShot = Mapping[str, tuple[Sequence[Sequence[str]], np.ndarray]]


@dataclass(frozen=True, eq=False)
class CaptionedImages:
    """n images, each with one or more captions.

    Attributes:
      images: uint8 (n, h, w, 3), or n files.
      captions: n lists of texts.
      attributes: int32 (n, a), what is in the images, or None.
    """

    images: np.ndarray | Sequence[Path]
    captions: Sequence[Sequence[str]]
    attributes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def texts(self) -> list[str]:
        """All m captions in one list, image by image."""
        return [text for texts in self.captions for text in texts]

    @property
    def owner(self) -> np.ndarray:
        """The image to which each of `texts` belongs: int32 (m,), ascending."""
        return np.repeat(np.arange(len(self), dtype=np.int32), [len(texts) for texts in self.captions])


@dataclass(frozen=True, eq=False)
class PreparedPairs:
    """Images with captions as training reads them.

    Attributes:
      images: uint8 (n, s, s, 3) at the tower's size, or n files.
      ids: int32 (m, t), all captions, cut to the static length that holds the longest.
      first: int32 (n,), the first caption of each image.
      count: int32 (n,), how many captions each image has.
      attributes: int32 (n, a) or None.
    """

    images: np.ndarray | Sequence[Path]
    ids: np.ndarray
    first: np.ndarray
    count: np.ndarray
    attributes: np.ndarray | None = None

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, np.ndarray)

    @property
    def resident(self) -> dict[str, Any]:
        """What is placed on the devices once; {} for images in files."""
        if not isinstance(self.images, np.ndarray):
            return {}
        arrays = {"images": feed.Table.of(self.images), "ids": feed.Table.of(self.ids)}
        return arrays if self.attributes is None else arrays | {"attributes": self.attributes}

    def batch_shapes(self, batch_size: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch of `train_batches`, for a tower of image size `size`."""
        if self.in_memory:
            return {name: jax.ShapeDtypeStruct((batch_size,), np.int32) for name in ("row", "text")}
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8),
            "ids": jax.ShapeDtypeStruct((batch_size, self.ids.shape[1]), np.int32),
        }


def prepare(clip: Clip, pairs: CaptionedImages) -> PreparedPairs:
    """Captions as ids and, if they are in memory, images at the tower's size."""
    images = pairs.images
    if isinstance(images, np.ndarray):
        images = preprocess.crop_all(clip.preprocessing, images)
    count = np.array([len(texts) for texts in pairs.captions], np.int32)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    return PreparedPairs(images, clip.tokenize(pairs.texts), first, count, pairs.attributes)


def materialize(batch: Mapping[str, Any], resident: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """A batch's images, uint8 (b, s, s, 3), and ids, int32 (b, t): pure, inside jit."""
    if not resident:
        return batch["image"], batch["ids"]
    return resident["images"].gather(batch["row"]), resident["ids"].gather(batch["text"])


def train_batches(
    clip: Clip,
    prepared: PreparedPairs,
    rows_at: RowsAt,
    *,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
) -> Iterator[Batch]:
    """Endless batches from step `start` on; each is a pure function of (seed, step).

    Args:
      clip: for its preprocessing.
      prepared: of `prepare`.
      rows_at: the rows of the global batch; see `composition.composer`.
      seed: of the choice among an image's captions.
      start: step of the first batch.
      process_index, process_count: this process's part of every batch; see `launch.training.sharding.Layout.share`.
      workers: threads that decode images in files.

    Yields:
      This process's share: `row` and `text`, int32 (b,), into the resident arrays; for images in files `image`, uint8
      (b, s, s, 3), and `ids`, int32 (b, t).

    Raises:
      FileNotFoundError, ValueError: an image cannot be read; the error names its file.
    """

    def share(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_at(step)
        texts = draw_captions(prepared, rows, seed=seed, step=step)
        first, size = order.share(len(rows), process_index, process_count)
        return rows[first : first + size], texts[first : first + size]

    if prepared.in_memory:
        return ({"row": rows, "text": texts} for rows, texts in map(share, itertools.count(start)))
    return _decoded(clip.preprocessing, prepared, map(share, itertools.count(start)), workers)


def draw_captions(prepared: PreparedPairs, rows: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """One caption of each of these images, as a row of `ids`: int32, like `rows`."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _CAPTION, step))))
    which = (generator.random(len(rows)) * prepared.count[rows]).astype(np.int32)
    return prepared.first[rows] + which


def _decoded(
    spec: preprocess.Preprocessing,
    prepared: PreparedPairs,
    shares: Iterator[tuple[np.ndarray, np.ndarray]],
    workers: int,
) -> Iterator[Batch]:
    pool = ThreadPoolExecutor(workers)
    waiting: deque = deque()
    try:
        for rows, texts in shares:
            images = [pool.submit(preprocess.crop, spec, prepared.images[row]) for row in rows]
            waiting.append((images, prepared.ids[texts]))
            if len(waiting) > _AHEAD:
                images, ids = waiting.popleft()
                yield {"image": np.stack([image.result() for image in images]), "ids": ids}
    finally:
        pool.shutdown(cancel_futures=True)
