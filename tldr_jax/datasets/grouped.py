"""Images with a class and a spurious value each, split into train, val and test."""

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np

from launch.data import Arrays, Split, Stream

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of a data set: its classes together with its spurious values.

    Attributes:
      classes: C class names.
      spurious: S names of the spurious attribute's values.
      pairs: (class, value) that occur, by number; None for all.
    """

    classes: tuple[str, ...]
    spurious: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...] | None = None

    @functools.cached_property
    def allowed(self) -> np.ndarray:
        """Which pairs occur: bool (C, S). Group class * S + value."""
        allowed = np.full((len(self.classes), len(self.spurious)), self.pairs is None)
        for pair in self.pairs or ():
            allowed[pair] = True
        return allowed

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of classes and values, as `tldr_jax.metrics` takes them."""
        return self.classes, self.spurious

    def name(self, group: int) -> str:
        """ "waterbird with land"."""
        return f"{self.classes[group // len(self.spurious)]} with {self.spurious[group % len(self.spurious)]}"


class IndexedImages(Protocol):
    """PIL images of mode RGB that are decoded when they are indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Part:
    """A split.

    Attributes:
      images: a uint8 array (n, h, w, 3), or PIL images of mode RGB that are decoded when indexed.
      classes: int32, (n,), 0..C-1.
      spurious: int32, (n,), 0..S-1.
    """

    images: np.ndarray | IndexedImages
    classes: np.ndarray
    spurious: np.ndarray

    def __post_init__(self):
        for name in ("classes", "spurious"):
            values = getattr(self, name)
            if values.dtype != np.int32 or values.shape != (len(self.images),):
                expected = f"int32 of shape ({len(self.images)},)"
                raise ValueError(f"{name} must be {expected}, got {values.dtype} {values.shape}")

    def __len__(self) -> int:
        return len(self.classes)


@dataclasses.dataclass(frozen=True)
class Grouped:
    """A data set with a spurious attribute.

    Attributes:
      parts: by split, some of `SPLITS`.
      groups: its classes and spurious values.
      note: one line: what was read, from where.
    """

    parts: dict[str, Part]
    groups: Groups
    note: str

    def __post_init__(self):
        for split_, part in self.parts.items():
            for what, values, names in (
                ("class", part.classes, self.groups.classes),
                ("spurious value", part.spurious, self.groups.spurious),
            ):
                wrong = np.flatnonzero((values < 0) | (values >= len(names)))
                if len(wrong):
                    raise ValueError(
                        f"{split_} image {wrong[0]}: {what} {values[wrong[0]]} is outside 0 to {len(names) - 1} "
                        f"({', '.join(names)})"
                    )
            wrong = np.flatnonzero(~self.groups.allowed[part.classes, part.spurious])
            if len(wrong):
                group = self.groups.name(int(self.group_of(split_)[wrong[0]]))
                raise ValueError(f"{split_} image {wrong[0]}: {group} is not a pair of this data set")

    def group_of(self, split: str) -> np.ndarray:
        """The group of each image of a split: int32, (n,)."""
        return self.parts[split].classes * len(self.groups.spurious) + self.parts[split].spurious

    def counts(self, split: str) -> np.ndarray:
        """Images of each group: int64, (C * S,)."""
        return np.bincount(self.group_of(split), minlength=self.groups.allowed.size)


def split(part: Part, *, image_size: int, flip: bool, workers: int, crop: bool = True, view: Any = None) -> Split:
    """A part in the form that training and evaluation batches are made from.

    Args:
      part: the images; for an array the other arguments are ignored.
      image_size: side of streamed images.
      flip: flip streamed training images at random.
      workers: Grain processes of streamed images; 0 for threads.
      crop, view: of streamed images, see `Stream`.
    """
    if isinstance(part.images, np.ndarray):
        return Arrays(part.images, part.classes)
    return Stream(part.images, part.classes, image_size, flip=flip, workers=workers, crop=crop, view=view)
