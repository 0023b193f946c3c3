"""Pictures by matplotlib as PNG: on a canvas of their own (Agg), without pyplot and its global state."""

import io
from pathlib import Path

from launch.files import write_atomically

_DPI = 150


def figure(width: float, height: float):
    """An empty matplotlib figure of so many inches."""
    # matplotlib takes long to import, and most processes draw nothing
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(made)
    return made


def write(path: str | Path, figure) -> None:
    """Write a figure as PNG, atomically; its folder is made."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
