"""Pictures: what was found for queries, as a grid of images, and recall as bars. PNG, drawn without pyplot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from launch import drawing
from rtd_jax.tables import TITLES, metric_title

_CELL = 1.25  # inches a picture
_PIXELS = 224  # of a thumbnail
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito


@dataclass(frozen=True)
class Found:
    """A query and what it found.

    Attributes:
      title: the modification, at the left.
      query: uint8 (h, w, 3), the reference image.
      images: uint8 arrays (h, w, 3), best first.
      captions: above them, as many.
      right: which of them is right, for a frame; None where it is not known.
    """

    title: str
    query: np.ndarray
    images: Sequence[np.ndarray]
    captions: Sequence[str] = ()
    right: int | None = None


def grid(path: str | Path, rows: Sequence[Found]) -> None:
    """A query a row: its image, a gap, what was found; the right one framed.

    Raises:
      ValueError: there are no rows, or one without images.
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
                    wrap=True)  # fmt: skip
        captions = ["query", *row.captions, *[""] * (len(row.images) - len(row.captions))]
        for column, (picture, caption) in enumerate(zip([row.query, *row.images], captions, strict=True)):
            x = left + column * (_CELL + 0.06) + 0.2 * (column > 0)
            axes = figure.add_axes((x / width, below / height, _CELL / width, _CELL / height), xticks=[], yticks=[])
            axes.imshow(picture)
            axes.set_title(caption, fontsize=6, pad=2)
            if row.right is not None and column == row.right + 1:
                for spine in axes.spines.values():
                    spine.set(color=_COLOURS[2], linewidth=3)
    drawing.write(path, figure)


def thumbnail(image: str | Path | np.ndarray) -> np.ndarray:
    """An image file or uint8 (h, w, 3) -> uint8 (s, s, 3), small, in the middle of a white square."""
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
    else:
        with Image.open(image) as file:
            picture = file.convert("RGB")
    picture.thumbnail((_PIXELS, _PIXELS))
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def bars(path: str | Path, tasks: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> None:
    """Recall (or mAP) of every row, a panel a task: bars are means over seeds, lines their standard deviation.

    Args:
      path: of the PNG.
      tasks: task -> row -> metrics in percent, one mapping a seed.
    """
    figure = drawing.figure(7.0, 0.5 + sum(0.42 * len(rows) + 0.7 for rows in tasks.values()))
    heights = [len(rows) for rows in tasks.values()]
    panels = figure.subplots(len(tasks), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (task, rows) in zip(panels, tasks.items(), strict=True):
        metrics = [metric for metric in next(iter(rows.values()))[0] if "edits" not in metric][:3]
        names = list(rows)
        for i, metric in enumerate(metrics):
            values = [[seed[metric] for seed in rows[name] if metric in seed] for name in names]
            means = [np.mean(v) if v else np.nan for v in values]
            spread = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]
            at = np.arange(len(names)) + (i - (len(metrics) - 1) / 2) * 0.27
            error = dict(xerr=spread, error_kw=dict(elinewidth=1))
            axes.barh(at, means, 0.25, label=metric_title(metric), color=_COLOURS[i], **error)
        axes.set_yticks(range(len(names)), [TITLES.get(name, name) for name in names], fontsize=7)
        axes.invert_yaxis()
        axes.set(title=task, xlabel="%", xlim=(0, 100))
        axes.legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    drawing.write(path, figure)
