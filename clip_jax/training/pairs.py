"""Image-caption pairs: sets of them, and the batches that training is fed.

Small sets live on the devices, images as 8-bit values and all captions as ids. Images in files are decoded by threads
ahead of the devices. Which caption of an image a step sees follows from (seed, step).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import Clip, preprocess
from launch.data import order

_CAPTION = 0xCA97  # a stream of random numbers drawn from one seed
_AHEAD = 2  # batches that are decoded before the devices ask for them

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pairs:
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
        """All captions in one list, m of them, image by image."""
        return [text for texts in self.captions for text in texts]

    @property
    def owner(self) -> np.ndarray:
        """The image that each of `texts` belongs to: int32 (m,), ascending."""
        return np.repeat(np.arange(len(self), dtype=np.int32), [len(texts) for texts in self.captions])


@dataclass(frozen=True, eq=False)
class Sets:
    """What a run is trained on and measured on.

    Attributes:
      train, val, test: the pairs.
      note: a line that says what they are.
      zero_shot: attribute -> (texts of each class, class of each test image, int (n,)).
    """

    train: Pairs
    val: Pairs
    test: Pairs
    note: str
    zero_shot: Mapping[str, tuple[Sequence[Sequence[str]], np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Pairs as training reads them.

    Attributes:
      images: uint8 (n, s, s, 3) at the tower's size, or n files.
      ids: int32 (m, t), all captions, cut once to the static length that holds the longest.
      first: int32 (n,), the first caption of each image.
      count: int32 (n,), how many it has.
    """

    images: np.ndarray | Sequence[Path]
    ids: np.ndarray
    first: np.ndarray
    count: np.ndarray

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, np.ndarray)


def prepare(clip: Clip, pairs: Pairs) -> Prepared:
    """Captions as ids and, where they are in memory, images at the size of the tower."""
    images = pairs.images
    if isinstance(images, np.ndarray):
        images = preprocess.crop_all(clip.preprocessing, images)
    count = np.array([len(texts) for texts in pairs.captions], np.int32)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    return Prepared(images, clip.tokenize(pairs.texts), first, count)


def resident(prepared: Prepared) -> dict[str, np.ndarray]:
    """What is to be placed on the devices once: {} for images in files."""
    return {"images": prepared.images, "ids": prepared.ids} if prepared.in_memory else {}


def materialise(batch: Mapping[str, jax.Array], resident: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """A batch's images, uint8 (b, s, s, 3), and ids, int32 (b, t): pure, inside jit."""
    if not resident:
        return batch["image"], batch["ids"]
    take = lambda name, rows: jnp.take(resident[name], rows, axis=0, mode="clip")
    return take("images", batch["row"]), take("ids", batch["text"])


def train_batches(
    clip: Clip,
    prepared: Prepared,
    rows_at: Callable[[int], np.ndarray],
    *,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
) -> Iterator[Batch]:
    """Batches without end, from step `start` on; each is a pure function of (seed, step).

    Args:
      clip: for its preprocessing.
      prepared: of `prepare`.
      rows_at: step -> the rows of the global batch; see `composition.composer`.
      seed: of the choice among an image's captions.
      start: step of the first batch.
      process_index: this process.
      process_count: how many there are.
      workers: threads that decode images in files.

    Yields:
      This process's share: `row` and `text`, int32 (b,), into the resident arrays; for images in files `image`, uint8
      (b, s, s, 3), and `ids`, int32 (b, t).

    Raises:
      FileNotFoundError, ValueError: an image that cannot be read, by its file.
    """

    def share(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_at(step)
        texts = draw_captions(prepared, rows, seed=seed, step=step)
        first, size = order.share(len(rows), process_index, process_count)
        return rows[first : first + size], texts[first : first + size]

    if prepared.in_memory:
        return ({"row": rows, "text": texts} for rows, texts in map(share, itertools.count(start)))
    return _decoded(clip.preprocessing, prepared, map(share, itertools.count(start)), workers)


def draw_captions(prepared: Prepared, rows: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """One caption of each of these images, as a row of `ids`: int32, like `rows`."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _CAPTION, step))))
    which = (generator.random(len(rows)) * prepared.count[rows]).astype(np.int32)
    return prepared.first[rows] + which


def _decoded(
    spec: preprocess.Preprocessing, prepared: Prepared, shares: Iterator[tuple[np.ndarray, np.ndarray]], workers: int
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
