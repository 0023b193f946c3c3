"""Figures by Matplotlib as PNG: on their own canvas (Agg), without pyplot and its global state."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from launch.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150


def figure(width: float, height: float) -> "Figure":
    """An empty Matplotlib figure; sizes in inches."""
    # Matplotlib takes long to import, and most processes draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(empty)
    return empty


def write(path: str | Path, figure: "Figure") -> None:
    """Write a figure as PNG, atomically; its folder is created."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
