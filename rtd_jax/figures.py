"""Pictures of queries and the images that they find, as a grid. PNG, drawn without pyplot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from launch.reading import images
from launch.reports import drawing

_CELL = 1.25  # inches per picture
_PIXELS = 224  # of a thumbnail
_FRAME = "#009e73"  # of the right image: Okabe and Ito's green


@dataclass(frozen=True)
class RetrievedRow:
    """A query and the images that it found.

    Attributes:
      title: the modification, at the left.
      query: uint8 (h, w, 3), the reference image.
      images: uint8 arrays (h, w, 3), best first.
      captions: of the images, above them.
      right: index of the right image, for a frame; None where it is unknown or not among them.
    """

    title: str
    query: np.ndarray
    images: Sequence[np.ndarray]
    captions: Sequence[str] = ()
    right: int | None = None


def grid(path: str | Path, rows: Sequence[RetrievedRow]) -> None:
    """One row per query: its image, a gap, the images that it found; the right one framed.

    Raises:
      ValueError: no rows, or a row without images.
    """
    if not rows or not all(len(row.images) for row in rows):
        raise ValueError("a grid needs at least one query, and images that were found for it")
    columns = 1 + max(len(row.images) for row in rows)
    left, above = 1.9, 0.24
    width, height = left + columns * (_CELL + 0.06) + 0.2, len(rows) * (_CELL + above) + 0.1
    figure = drawing.figure(width, height)
    for i, row in enumerate(rows):
        below = height - (i + 1) * (_CELL + above)
        figure.text((left - 0.1) / width, (below + _CELL / 2) / height, row.title, ha="right", va="center", fontsize=8,
                    wrap=True, parse_math=False)  # fmt: skip
        captions = ["query", *row.captions, *[""] * (len(row.images) - len(row.captions))]
        for column, (picture, caption) in enumerate(zip([row.query, *row.images], captions, strict=True)):
            x = left + column * (_CELL + 0.06) + 0.2 * (column > 0)
            axes = figure.add_axes((x / width, below / height, _CELL / width, _CELL / height), xticks=[], yticks=[])
            axes.imshow(picture)
            axes.set_title(caption, fontsize=6, pad=2, parse_math=False)  # file names may contain "$"
            if row.right is not None and column == row.right + 1:
                for spine in axes.spines.values():
                    spine.set(color=_FRAME, linewidth=3)
    drawing.write(path, figure)


def thumbnail(image: str | Path | np.ndarray) -> np.ndarray:
    """An image file or uint8 (h, w, 3) -> uint8 (s, s, 3), small, in the middle of a white square."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else images.decode(image, alpha="white")
    picture.thumbnail((_PIXELS, _PIXELS))
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)
