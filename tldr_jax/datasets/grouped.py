"""Images with a class and a spurious value each, split into train, val and test."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from launch.data import Arrays, Split, Stream


@dataclasses.dataclass(frozen=True)
class Part:
    """A split.

    Attributes:
      images: a uint8 array (n, h, w, 3), or a sequence whose i-th item is decoded anew, a PIL image of mode RGB.
      classes: int32, (n,), 0..C-1.
      spurious: int32, (n,), 0..S-1.
    """

    images: np.ndarray | Sequence[Image.Image]
    classes: np.ndarray
    spurious: np.ndarray

    def __post_init__(self):
        for name in ("classes", "spurious"):
            values = getattr(self, name)
            if values.dtype != np.int32 or values.shape != (len(self.images),):
                wanted = f"int32 of shape ({len(self.images)},)"
                raise ValueError(f"{name} must be {wanted}, got {values.dtype} {values.shape}")

    def __len__(self) -> int:
        return len(self.classes)


@dataclasses.dataclass(frozen=True)
class Grouped:
    """A data set with a spurious attribute.

    Attributes:
      parts: by split, "train", "val", "test".
      classes: C class names.
      spurious: S names of the spurious attribute's values.
      allowed: bool, (C, S): the pairs that occur. Group class * S + spurious.
      note: one line that says what was read from where.
    """

    parts: dict[str, Part]
    classes: tuple[str, ...]
    spurious: tuple[str, ...]
    allowed: np.ndarray
    note: str

    def __post_init__(self):
        for name, part in self.parts.items():
            for what, values, names in (
                ("class", part.classes, self.classes),
                ("spurious value", part.spurious, self.spurious),
            ):
                wrong = np.flatnonzero((values < 0) | (values >= len(names)))
                if len(wrong):
                    raise ValueError(
                        f"{name} image {wrong[0]}: {what} {values[wrong[0]]} is outside 0 to {len(names) - 1} "
                        f"({', '.join(names)})"
                    )
            wrong = np.flatnonzero(~self.allowed[part.classes, part.spurious])
            if len(wrong):
                pair = self.classes[part.classes[wrong[0]]], self.spurious[part.spurious[wrong[0]]]
                raise ValueError(f"{name} image {wrong[0]}: {pair[0]} with {pair[1]} is no pair of this data set")

    def groups(self, split: str) -> np.ndarray:
        """Of a split's images: int32, (n,)."""
        return self.parts[split].classes * len(self.spurious) + self.parts[split].spurious

    def group_name(self, group: int) -> str:
        return f"{self.classes[group // len(self.spurious)]} with {self.spurious[group % len(self.spurious)]}"

    def counts(self, split: str) -> np.ndarray:
        """Images of each group: int64, (C * S,)."""
        return np.bincount(self.groups(split), minlength=self.allowed.size)


def split(part: Part, config) -> Split:
    """A part as training and evaluation batches are made from it.

    Args:
      part: the images.
      config: `data` of a config: image_size, flip and workers of streamed images.
    """
    if isinstance(part.images, np.ndarray):
        return Arrays(part.images, part.classes)
    return Stream(part.images, part.classes, config.image_size, flip=config.flip, workers=config.workers)
