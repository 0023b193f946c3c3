"""The twelve shapes as signed distances, and the two patterns on them.

Near its edge, a signed distance gives a pixel's coverage from the value at its centre. The constructions are the usual
ones: a union is the minimum of two distances, an intersection the maximum.
"""

from typing import Protocol

import numpy as np

PERIOD = 4.6  # of stripes and dots, in pixels


class Distance(Protocol):
    """Signed distance to a shape's edge, negative inside; coordinates x (right) and y (down) in units of its radius."""

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray: ...


class Pattern(Protocol):
    """The share of the second tone, in [0, 1]; coordinates x and y in pixels."""

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray: ...


def _length(x, y):
    return np.sqrt(x * x + y * y)


def circle(x, y):
    return _length(x, y) - 0.95


def ring(x, y):
    return np.abs(_length(x, y) - 0.78) - 0.24


def crescent(x, y):
    """A disc less a disc to its right, the horns' tips cut off."""
    moon = np.maximum(_length(x - 0.22, y) - 1.02, 0.82 - _length(x - 0.74, y))
    return np.maximum(moon, x - 0.62)


def heart(x, y):
    """A square standing on its corner, with a disc on each of the two upper sides."""
    x, y = np.abs(x), y + 0.08
    half = 0.84
    corner = (x + np.abs(y) - half) * np.float32(0.5**0.5)
    disc = _length(x - half / 2, y + half / 2) - half * np.float32(0.5**0.5)
    return np.minimum(corner, disc)


def oval(x, y):
    """An ellipse: the level function divided by its slope, which is the distance near the edge."""
    level = _length(x / 1.08, y / 0.55)
    slope = _length(x / 1.08**2, y / 0.55**2)
    return level * (level - 1) / np.maximum(slope, 1e-3)


def flower(x, y):
    """Five round petals, the lower two and the side two mirrored."""
    x, distance = np.abs(x), None
    for angle in (-90, -18, 54):
        radians = np.deg2rad(np.float32(angle))
        petal = _length(x - 0.64 * np.cos(radians), y - 0.64 * np.sin(radians)) - 0.37
        distance = petal if distance is None else np.minimum(distance, petal)
    return np.minimum(distance, _length(x, y) - 0.4)


def square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def triangle(x, y):
    """Isosceles, apex up at (0, -1), base from (-1, 0.78) to (1, 0.78)."""
    side = (1.78 * np.abs(x) - (y + 1)) * np.float32(1 / np.hypot(1.78, 1))
    return np.maximum(side, y - 0.78)


def star(x, y):
    """A pentagram with rounded tips: the points beyond at most one of the five sides of its inner pentagon."""
    # The two largest distances to the sides so far; directions are outwards from the sides, the first one up.
    first = second = np.full_like(x, -np.inf)
    for angle in (-90, -18, 54, 126, 198):
        radians = np.deg2rad(np.float32(angle))
        side = x * np.cos(radians) + y * np.sin(radians) - 0.35
        second = np.maximum(second, np.minimum(first, side))
        first = np.maximum(first, side)
    return np.maximum(second, _length(x, y) - 1.04)


def diamond(x, y):
    """Taller than wide."""
    return (np.abs(x) / 0.68 + np.abs(y) / 1.05 - 1) * np.float32(1 / np.hypot(1 / 0.68, 1 / 1.05))


def cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - 0.3, np.maximum(x, y) - 1)


def arrow(x, y):
    """Points to the right."""
    y = np.abs(y)
    shaft = np.maximum(np.maximum(-1 - x, x - 0.2), y - 0.26)
    head = np.maximum((0.86 * (x - 1.05) + 1.05 * y) * np.float32(1 / np.hypot(0.86, 1.05)), -x)
    return np.minimum(shaft, head)


DISTANCES: dict[str, Distance] = {
    f.__name__: f for f in (circle, ring, crescent, heart, oval, flower, square, triangle, star, diamond, cross, arrow)
}


def striped(x, y):
    """Horizontal stripes."""
    return np.clip(0.5 + 1.6 * np.sin((2 * np.pi / PERIOD) * y), 0, 1)


def dotted(x, y):
    """Dots on a square grid."""
    return np.clip(1.6 * (np.cos((2 * np.pi / PERIOD) * x) + np.cos((2 * np.pi / PERIOD) * y)) - 0.6, 0, 1)


PATTERNS: dict[str, Pattern] = {"striped": striped, "dotted": dotted}
