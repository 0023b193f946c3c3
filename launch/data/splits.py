"""Splits of a data set, in memory or streamed, and the seeded hold-out that cuts them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from launch.data.images import evaluation_view
from launch.stages import SettingError

# Separates the draw of the hold-out from the order of batches, which is drawn from the same seed.
_HOLD_OUT = 0x401D


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A split small enough to live on the device.

    Attributes:
      images: uint8, (n, h, w, c), channels last, 0 to 255.
      labels: int32, (n,).
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 of shape (n, h, w, c), got {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int32 of shape {self.images.shape[:1]}, got {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return tuple(self.images.shape[1:])


class ImageSource(Protocol):
    """Random access to images: PIL images of mode RGB."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Image.Image: ...


@dataclasses.dataclass(frozen=True)
class Stream:
    """A random-access split that is decoded on the fly, on the host.

    Training batches take a random resized crop, if `crop`, and a horizontal flip with probability 1/2, if `flip`;
    evaluation batches take the centre crop after the short side is resized to 256/224 of the image size, or `view`.

    Attributes:
      source: `source[row]` is a PIL image of mode RGB; picklable if `workers` > 0.
      labels: int32, (n,), the label of every row of `source`.
      image_size: side of the square images delivered, in pixels.
      flip: flip training images at random.
      workers: Grain worker processes; 0 decodes in threads of this process.
      as_stored: in evaluation, leave images that already have the delivered size unchanged, without the centre crop.
      crop: training images are cropped at random; otherwise they are cut as in evaluation.
      view: PIL image -> uint8 (image_size, image_size, 3), in place of the centre crop; picklable if `workers` > 0.
    """

    source: ImageSource
    labels: np.ndarray
    image_size: int
    flip: bool = True
    workers: int = 0
    as_stored: bool = False
    crop: bool = True
    view: Callable[[Image.Image], np.ndarray] | None = None

    def __post_init__(self):
        if self.labels.dtype != np.int32 or self.labels.shape != (len(self.source),):
            raise ValueError(
                f"labels must be int32 of shape ({len(self.source)},), got {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return (self.image_size, self.image_size, 3)

    def cut(self, image: Image.Image) -> np.ndarray:
        """The image as evaluation batches have it."""
        if self.view is not None:
            return self.view(image)
        return evaluation_view(image, self.image_size, as_stored=self.as_stored)


Split = Arrays | Stream


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set ready for training.

    Attributes:
      train: training split.
      val: validation split, disjoint from `train`; None when no example is held out.
      test: test split.
      classes: class names; label k is `classes[k]`.
      mean: per channel, in [0, 1] units (pixel / 255).
      std: per channel, in [0, 1] units; normalisation divides perturbation radii by it.
      image_shape: (h, w, c) of every image delivered.
      note: one line for the log: what was read from where, and how it was cut.
    """

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    note: str


class Rows:
    """The rows `rows` of a random-access source, in that order."""

    def __init__(self, source: Any, rows: np.ndarray):
        if isinstance(source, Rows):
            source, rows = source.source, source.rows[rows]
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Any:
        return self.source[int(self.rows[index])]


def select(split: Split, rows: np.ndarray) -> Split:
    """The examples `rows` (int, (m,)) of a split, in that order."""
    labels = split.labels[rows]
    if isinstance(split, Arrays):
        return Arrays(split.images[rows], labels)
    return dataclasses.replace(split, source=Rows(split.source, rows), labels=labels)


def hold_out(train: Split, *, seed: int, val_examples: int, train_examples: int) -> tuple[Split, Split | None]:
    """Cut a training split into two disjoint ones, as a pure function of the seed.

    Args:
      train: all training examples.
      seed: of the draw. With one seed, a smaller `train_examples` gives a subset of a larger one.
      val_examples: number of examples held out; 0 for none.
      train_examples: number of the others that are kept; 0 for all.

    Returns:
      (train, val), each in the order of the original rows; val is None if `val_examples` is 0.

    Raises:
      SettingError: the split has fewer examples.
    """
    n = len(train)
    check_hold_out(n, val_examples=val_examples, train_examples=train_examples)
    if val_examples == 0 and train_examples in (0, n):
        return train, None
    order = _draw(n, seed)
    val = select(train, np.sort(order[:val_examples])) if val_examples else None
    end = val_examples + train_examples if train_examples else n
    return select(train, np.sort(order[val_examples:end])), val


def check_hold_out(n: int, *, val_examples: int, train_examples: int) -> None:
    """Raise `SettingError` if n training examples are too few for `hold_out`."""
    if val_examples < 0 or val_examples >= n:
        raise SettingError(
            "val_examples", f"={val_examples} leaves nothing of the {n} training examples; take 0 to {n - 1}"
        )
    if train_examples < 0 or train_examples > n - val_examples:
        raise SettingError(
            "train_examples",
            f"={train_examples} of {n} training examples, {val_examples} of them held out for "
            f"validation; take at most {n - val_examples}, or 0 for all of them",
        )


def subset(split: Split, *, seed: int, examples: int, name: str) -> Split:
    """Draw a seeded subset of a split, in the order of the original rows.

    Args:
      split: to draw from.
      seed: of the draw.
      examples: how many; 0 for all.
      name: the name of the setting, for errors.

    Raises:
      SettingError: the split has fewer examples.
    """
    check_subset(len(split), examples=examples, name=name)
    if examples in (0, len(split)):
        return split
    return select(split, np.sort(_draw(len(split), seed)[:examples]))


def check_subset(n: int, *, examples: int, name: str) -> None:
    """Raise `SettingError` if n examples are too few for `subset`."""
    if not 0 <= examples <= n:
        raise SettingError(name, f"={examples} of {n} examples; take 1 to {n}, or 0 for all of them")


def _draw(n: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _HOLD_OUT)))).permutation(n)


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (n, h, w, c), in [0, 1] units, to 4 decimals.

    They are exact up to this rounding, computed from the counts of the 256 values.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        centre = (counts * values).sum() / counts.sum()
        mean.append(round(float(centre), 4))
        std.append(round(float(np.sqrt((counts * (values - centre) ** 2).sum() / counts.sum())), 4))
    return tuple(mean), tuple(std)


def square_side(shape: Sequence[int], size: int) -> int:
    """Side of images of shape (h, w, …) once resized to `size`; 0 keeps the stored size.

    Raises:
      SettingError: images that are not square have no stored side.
    """
    if size == 0 and shape[0] != shape[1]:
        raise SettingError("image_size", f"=0 keeps the stored size, but {tuple(shape[:2])} is not square; set a size")
    return size or shape[0]


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 images (n, h, w, c), c 1 or 3, to (n, size, size, c): bilinear with antialiasing.

    Raises:
      SettingError: as `square_side`.
    """
    size = square_side(images.shape[1:], size)
    if images.shape[1:3] == (size, size):
        return images
    out = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
    for i, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        out[i] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(out.shape[1:])
    return out
