"""The pictures of an evaluation, as PNG: image grids, and curves over ε or over the share of pixels.

Each function takes arrays and a path and returns nothing; matplotlib draws on its own canvas (Agg), without
pyplot and its global state, and is imported only here, when it is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.reports import drawing

_CELL = 1.25  # inches per picture of a grid
_PANEL = (3.4, 2.8)  # inches per panel of curves
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito
_MARKERS = "os^Dv<>"


@dataclass(frozen=True)
class Row:
    """A row of a grid: one picture per column.

    Attributes:
      title: at its left.
      pictures: (k, h, w) heat maps or (k, h, w, c) images, c 1 or 3, in [0, 1].
      captions: one per picture, above it; () for none.
    """

    title: str
    pictures: np.ndarray
    captions: Sequence[str] = ()


def grid(path: str | Path, rows: Sequence[Row], title: str = "") -> None:
    """Rows of pictures: images as they are, heat maps in one colour scale from 0 to 1, blank where they are NaN.

    Raises:
      ValueError: there are no rows, or they have different numbers of pictures.
    """
    columns = {len(row.pictures) for row in rows}
    if len(columns) != 1:
        raise ValueError(f"a grid needs rows of one length, got {[(row.title, len(row.pictures)) for row in rows]}")
    (count,) = columns
    space = [0.22 if row.captions else 0.06 for row in rows]  # above each row, in inches
    left, top = 1.45, 0.34 if title else 0.04
    width, height = left + count * (_CELL + 0.06), top + len(rows) * _CELL + sum(space) + 0.06
    figure = drawing.figure(width, height)
    if title:
        figure.text(0.5, 1 - 0.06 / height, title, ha="center", va="top", fontsize=10)
    below = height - top
    for row, above in zip(rows, space, strict=True):
        below -= above + _CELL
        figure.text((left - 0.1) / width, (below + _CELL / 2) / height, row.title, ha="right", va="center", fontsize=8)
        for column, picture in enumerate(np.asarray(row.pictures, np.float32)):
            box = ((left + column * (_CELL + 0.06)) / width, below / height, _CELL / width, _CELL / height)
            axes = figure.add_axes(box, xticks=[], yticks=[])
            _show(axes, picture)
            if row.captions:
                axes.set_title(row.captions[column], fontsize=7, pad=2)
    drawing.write(path, figure)


def _show(axes, picture: np.ndarray) -> None:
    if picture.ndim == 2:
        axes.imshow(picture, cmap="inferno", vmin=0, vmax=1, interpolation="nearest")
        return
    grey = picture.shape[-1] == 1
    axes.imshow(picture[..., 0] if grey else picture.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
      label: of the legend; lines of one label have one colour, in all panels.
      x, y: (k,) each.
      spread: (k,), the standard deviation over seeds, drawn as a band; None for none.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    spread: np.ndarray | None = None


def panels(path: str | Path, lines_by_title: Mapping[str, Sequence[Line]], *, x_label: str, y_label: str = "") -> None:
    """Panels side by side, one per title, with one legend below them.

    Raises:
      ValueError: there is no panel, or one without a line.
    """
    if not lines_by_title or not all(lines_by_title.values()):
        counts = {title: len(lines) for title, lines in lines_by_title.items()}
        raise ValueError(f"each panel needs a line, got {counts}")
    labels = list(dict.fromkeys(line.label for lines in lines_by_title.values() for line in lines))
    across = min(4, len(lines_by_title))
    down = -(-len(lines_by_title) // across)
    legend = 0.3 * -(-len(labels) // (2 * across)) + 0.1
    figure = drawing.figure(_PANEL[0] * across, _PANEL[1] * down + legend)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for panel, (title, lines) in zip(axes, lines_by_title.items(), strict=False):
        for line in lines:
            at = labels.index(line.label)
            style = dict(color=COLOURS[at % len(COLOURS)], marker=_MARKERS[at % len(_MARKERS)], markersize=3.5)
            panel.plot(line.x, line.y, label=line.label, linewidth=1.4, **style)
            if line.spread is not None:
                panel.fill_between(
                    line.x, line.y - line.spread, line.y + line.spread, color=style["color"], alpha=0.18, linewidth=0
                )
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(x_label, fontsize=8)
        panel.set_ylabel(y_label, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25, linewidth=0.6)
    for panel in axes[len(lines_by_title) :]:
        panel.set_axis_off()
    figure.tight_layout(rect=(0, legend / figure.get_figheight(), 1, 1))
    drawn = {handle.get_label(): handle for panel in axes for handle in panel.get_lines()}
    figure.legend(
        [drawn[label] for label in labels], labels, loc="lower center", ncols=2 * across, fontsize=8, frameon=False
    )
    drawing.write(path, figure)
