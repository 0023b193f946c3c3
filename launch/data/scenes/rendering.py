"""From attributes to pixels: one object on a textured background, 32 x 32 RGB, many images at a time.

An image is a blend of four fields: the background's texture, the object's outline, its inside, and the pattern on it.
Every image draws its random numbers from its own counter, so an image has the same bytes in every subset of a set.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from launch.data.images import decoding_threads
from launch.data.scenes import shapes, textures, world

IMAGE_SIZE = 32
RADII = (6.5, 9.0, 12.0)  # of small, medium and large, in pixels
NOISE = 0.03  # standard deviation of the pixel noise, in [0, 1] units
OUTLINE = 1.1  # width in pixels

# colour -> (first tone, second tone of stripes and dots), RGB of 0 to 255
TONES = {
    "red": ((222, 28, 36), (255, 150, 150)),
    "green": ((10, 140, 62), (130, 225, 150)),
    "blue": ((30, 52, 215), (140, 165, 255)),
    "yellow": ((250, 226, 30), (186, 150, 0)),
    "purple": ((142, 36, 170), (222, 150, 240)),
    "orange": ((252, 132, 12), (255, 205, 140)),
    "white": ((252, 252, 252), (165, 165, 165)),
    "black": ((32, 32, 32), (125, 125, 125)),
}
_LINE = 12 / 255  # the outline's grey: dark, so that a white object shows on snow and a yellow one on sand
# Two tones of every background and of every colour, float32 (values, 2, 3) in [0, 1].
_BACK = np.asarray([textures.TEXTURES[name][1:] for name in world.BACKGROUNDS], np.float32) / 255
_FRONT = np.asarray([TONES[name] for name in world.COLOURS], np.float32) / 255
_Y, _X = np.indices((IMAGE_SIZE, IMAGE_SIZE), np.float32) + np.float32(0.5)  # pixels' centres
_CHUNK = 480  # images rendered together: their arrays stay in the cache

_UNIFORMS = 15  # random numbers per image: place 2, radius, rotation, light 2, tint 3, texture 6
_STREAM = "scenes.render"


def render(attributes: np.ndarray, *, seed: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Render scenes.

    Jitter: place ±1 pixel, rotation ±0.1 rad, radius ±6 %, light on object and background ±8 %, Gaussian noise 0.03.

    Args:
      attributes: int, (n, 5); see `world`.
      seed: of the jitter. Image i is a function of (seed, rows[i], attributes[i]).
      rows: int, (n,), the images' places in the set they belong to; None for 0 to n - 1.

    Returns:
      uint8, (n, 32, 32, 3).

    Raises:
      ValueError: attributes that `world.check` refuses, or rows that do not fit them.
    """
    attributes = world.check(attributes)
    rows = np.arange(len(attributes)) if rows is None else np.asarray(rows)
    if rows.shape != attributes.shape[:1] or rows.dtype.kind not in "iu" or (len(rows) and rows.min() < 0):
        raise ValueError(f"rows must be {len(attributes)} integers from 0 on, got {rows.dtype} {rows.shape}")
    key = world.entropy(seed, _STREAM).generate_state(2, np.uint64)
    images = np.empty((len(attributes), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def work(start: int):
        part = slice(start, start + _CHUNK)
        images[part] = _render_chunk(attributes[part], *_draw(key, rows[part]))

    with ThreadPoolExecutor(decoding_threads()) as pool:  # NumPy's loops release the GIL
        list(pool.map(work, range(0, len(attributes), _CHUNK)))
    return images


def _draw(key: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The random numbers of the images `rows`: uniform (n, k), grain (n, h, w), noise (n, 3, h, w)."""
    uniform = np.empty((len(rows), _UNIFORMS), np.float32)
    normal = np.empty((len(rows), 4, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for i, row in enumerate(rows):
        # Philox counts: image `row` has the counters whose second word is `row`.
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, int(row), 0, 0]))
        generator.random(out=uniform[i], dtype=np.float32)
        generator.standard_normal(out=normal[i], dtype=np.float32)
    return uniform, normal[:, 0], normal[:, 1:]


def _render_chunk(attributes, uniform, grain, noise) -> np.ndarray:
    """Render attributes with the random numbers of `_draw`: uint8, (n, h, w, 3)."""
    place, radius, turn, light, tint, rest = np.split(uniform, (2, 3, 4, 6, 9), axis=1)
    light = 0.92 + 0.16 * light
    texture = _texture(attributes[:, world.BACKGROUND], rest, grain)
    distance, pattern = _object(attributes, 2 * place - 1, 0.94 + 0.12 * radius, 0.2 * turn - 0.1)
    back = _BACK[attributes[:, world.BACKGROUND]] * light[:, :1, None]
    front = _FRONT[attributes[:, world.COLOUR]] * light[:, 1:, None] + (0.06 * tint - 0.03)[:, None]

    covered = np.clip(0.5 + OUTLINE - distance, 0, 1)  # by the object with its outline
    inside = np.clip(0.5 - distance, 0, 1)
    images = np.empty((*distance.shape, 3), np.uint8)
    for channel in range(3):
        plane = (1 - covered) * _blend(back[..., channel], texture)
        plane += (covered - inside) * _LINE
        plane += inside * _blend(front[..., channel], pattern)
        plane += NOISE * noise[:, channel]
        images[..., channel] = np.clip(plane, 0, 1) * 255 + np.float32(0.5)
    return images


def _texture(backgrounds: np.ndarray, draw: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """The share of the background's second tone in each pixel: float32, (n, h, w)."""
    field = np.empty_like(grain)
    for value, name in enumerate(world.BACKGROUNDS):
        (rows,) = np.nonzero(backgrounds == value)
        if len(rows):
            field[rows] = textures.TEXTURES[name][0](_X, _Y, draw[rows, :, None, None], grain[rows])
    return np.clip(field, 0, 1, out=field)


def _object(attributes, place, scale, turn) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to the object's edge in pixels, and the share of the second tone: (n, h, w) each."""
    radius = scale * np.asarray(RADII, np.float32)[attributes[:, world.SIZE], None]
    cos, sin = (f(turn)[:, :, None] for f in (np.cos, np.sin))
    x = _X - IMAGE_SIZE / 2 - place[:, :1, None]
    y = _Y - IMAGE_SIZE / 2 - place[:, 1:, None]
    x, y = cos * x + sin * y, cos * y - sin * x
    radius = radius[:, :, None]
    distance, pattern = np.empty_like(x), np.zeros_like(x)
    for value, name in enumerate(world.SHAPES):
        (rows,) = np.nonzero(attributes[:, world.SHAPE] == value)
        if len(rows):
            distance[rows] = radius[rows] * shapes.DISTANCES[name](x[rows] / radius[rows], y[rows] / radius[rows])
    for name, function in shapes.PATTERNS.items():
        (rows,) = np.nonzero(attributes[:, world.PATTERN] == world.PATTERNS.index(name))
        pattern[rows] = function(x[rows], y[rows])
    return distance, pattern


def _blend(tones: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Mix tones (n, 2) by a field (n, h, w)."""
    first, second = tones[:, 0, None, None], tones[:, 1, None, None]
    return first + (second - first) * field
