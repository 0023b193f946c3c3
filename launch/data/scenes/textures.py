"""The ten backgrounds: two tones each, and a field with the share of the second tone in each pixel."""

from typing import Protocol

import numpy as np

TURN = np.float32(2 * np.pi)


class TextureField(Protocol):
    """The share of the second tone: (n, h, w), which the caller clips to [0, 1].

    Args:
      x, y: the pixels' coordinates, (h, w).
      draw: uniform numbers of n images, (n, 6, 1, 1), that set phases and periods.
      grain: standard normal numbers, (n, h, w).
    """

    def __call__(self, x: np.ndarray, y: np.ndarray, draw: np.ndarray, grain: np.ndarray) -> np.ndarray: ...


def _wave(position, period, phase):
    """A sine in [-1, 1]; phase in turns."""
    return np.sin(TURN * (position / period + phase))


def grass(x, y, draw, grain):
    """Upright blades, four pixels long, shifted from column to column."""
    columns = np.arange(grain.shape[2])
    rows = (np.arange(grain.shape[1])[:, None] + 3 * columns) // 4
    return 0.5 + 0.33 * grain[:, rows % grain.shape[1], columns]


def forest(x, y, draw, grain):
    """Trunks in front of leaves."""
    trunks = _wave(x + 0.5 * np.sin(y / 3), 6 + draw[:, 0], draw[:, 1])
    return np.clip(2.5 * trunks - 1, 0, 1) + 0.14 * grain


def sand(x, y, draw, grain):
    """Slanted ripples under fine grain."""
    bend = 2 * _wave(x, 20 + 8 * draw[:, 0], draw[:, 1])
    return 0.5 + 0.3 * _wave(y + 0.35 * x + bend, 9 + 3 * draw[:, 2], draw[:, 3]) + 0.2 * grain


def brick(x, y, draw, grain):
    """Courses five pixels high, bricks ten long, each course shifted by half a brick; the field is the mortar."""
    row = np.floor(y + 5 * draw[:, 0])
    column = np.floor(x + 10 * draw[:, 1]) + 5 * (row // 5 % 2)
    return np.where((row % 5 == 0) | (column % 10 == 0), 1, 0.13 * grain)


def snow(x, y, draw, grain):
    """Flakes on soft drifts."""
    drift = 0.35 + 0.25 * _wave(y + 2 * _wave(x, 24, draw[:, 0]), 18 + 8 * draw[:, 1], draw[:, 2])
    return np.where(grain > 1.5, 1, drift)


def sea(x, y, draw, grain):
    """Level waves with crests."""
    swell = _wave(y + 1.3 * _wave(x, 12 + 4 * draw[:, 0], draw[:, 1]), 5.5 + 1.5 * draw[:, 2], draw[:, 3])
    return np.clip(swell, 0, 1) ** 2 + 0.04 * grain


def lake(x, y, draw, grain):
    """Rings around one point."""
    across, down = x - 32 * draw[:, 0], y - 32 * draw[:, 1]
    return 0.5 + 0.5 * _wave(np.sqrt(across * across + down * down), 7 + 2 * draw[:, 2], draw[:, 3])


def river(x, y, draw, grain):
    """Broad slanted currents."""
    meander = 2.5 * _wave(x - y, 26 + 6 * draw[:, 0], draw[:, 1])
    return np.clip(0.5 + 1.5 * _wave(x + y + meander, 15 + 3 * draw[:, 2], draw[:, 3]), 0, 1)


def rain(x, y, draw, grain):
    """Slanted streaks, six pixels long."""
    lane = np.floor(x + 0.4 * y + 8 * draw[:, 0])
    beat = np.floor(y + 3.7 * lane + 12 * draw[:, 1])
    return np.where((lane % 4 == 0) & (beat % 10 < 6), 1, 0.05 * grain)


def ice(x, y, draw, grain):
    """Cracks in three directions."""
    cracks = None
    for turn, offset in ((0.04, 2), (0.37, 3), (0.7, 4)):
        angle = TURN * (turn + 0.1 * draw[:, 0]) / 2
        line = np.abs(_wave(x * np.cos(angle) + y * np.sin(angle), 34, draw[:, offset]))
        cracks = line if cracks is None else np.minimum(cracks, line)
    return np.clip(1.35 - 6 * cracks, 0, 1) + 0.05 * grain


# name -> (field, first tone, second tone), tones as RGB of 0 to 255
TEXTURES: dict[str, tuple[TextureField, tuple[int, int, int], tuple[int, int, int]]] = {
    "grass": (grass, (100, 165, 60), (165, 210, 95)),
    "forest": (forest, (52, 106, 58), (146, 102, 64)),
    "sand": (sand, (203, 172, 116), (238, 216, 165)),
    "brick": (brick, (172, 92, 76), (212, 200, 190)),
    "snow": (snow, (208, 216, 230), (250, 251, 255)),
    "sea": (sea, (42, 96, 158), (150, 200, 225)),
    "lake": (lake, (50, 132, 138), (88, 172, 170)),
    "river": (river, (84, 140, 205), (150, 205, 200)),
    "rain": (rain, (112, 120, 134), (190, 200, 215)),
    "ice": (ice, (176, 222, 236), (240, 252, 255)),
}
