"""The world of Scenes: attributes, their values, the words for them, and the compositions that are held out.

A composition is a row of five integers, the positions of its values in `SHAPES`, `COLOURS`, `SIZES`, `PATTERNS` and
`BACKGROUNDS`; a set of n scenes is an int32 array (n, 5), columns in the order of `ATTRIBUTES`.
"""

import zlib

import numpy as np

CURVED = ("circle", "ring", "crescent", "heart", "oval", "flower")
ANGULAR = ("square", "triangle", "star", "diamond", "cross", "arrow")
LAND = ("grass", "forest", "sand", "brick", "snow")
WATER = ("sea", "lake", "river", "rain", "ice")

SHAPES = CURVED + ANGULAR
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "medium", "large")
PATTERNS = ("plain", "striped", "dotted")
BACKGROUNDS = LAND + WATER

ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "pattern": PATTERNS, "background": BACKGROUNDS}
SHAPE, COLOUR, SIZE, PATTERN, BACKGROUND = range(5)  # the columns
COUNTS = tuple(len(values) for values in ATTRIBUTES.values())

FAMILIES = ("curved", "angular")
GROUNDS = ("land", "water")

# The first word is the value itself. No word stands for two values.
SYNONYMS = {
    "circle": ("circle", "disc"),
    "ring": ("ring", "hoop"),
    "crescent": ("crescent", "moon"),
    "heart": ("heart", "valentine"),
    "oval": ("oval", "ellipse"),
    "flower": ("flower", "blossom"),
    "square": ("square", "box"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "pentagram"),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
    "arrow": ("arrow", "pointer"),
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "orange": ("orange", "tangerine"),
    "white": ("white", "ivory"),
    "black": ("black", "ebony"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "midsize"),
    "large": ("large", "big", "huge"),
    "plain": ("plain", "solid"),
    "striped": ("striped", "banded"),
    "dotted": ("dotted", "spotted"),
    "grass": ("grass", "lawn", "meadow"),
    "forest": ("forest", "woods"),
    "sand": ("sand", "desert"),
    "brick": ("brick", "wall"),
    "snow": ("snow", "snowfield"),
    "sea": ("sea", "ocean"),
    "lake": ("lake", "pond"),
    "river": ("river", "stream"),
    "rain": ("rain", "drizzle"),
    "ice": ("ice", "glacier"),
    "curved": ("curved",),
    "angular": ("angular",),
    "land": ("land",),
    "water": ("water",),
}


def family(attributes: np.ndarray) -> np.ndarray:
    """0 where the shape is curved, 1 where it is angular; the shape of `attributes` without its last axis."""
    return (attributes[..., SHAPE] >= len(CURVED)).astype(np.int32)


def ground(attributes: np.ndarray) -> np.ndarray:
    """0 where the background is land, 1 where it is water."""
    return (attributes[..., BACKGROUND] >= len(LAND)).astype(np.int32)


def held_out(attributes: np.ndarray) -> np.ndarray:
    """Whether a composition is kept out of all training, by a rule that does not depend on any seed.

    The rule looks at shape, colour and background: for each shape and colour, one of the five lands and one of the five
    waters is held out. That is 20 % of the triples, and every pair of values occurs in the others.

    Args:
      attributes: int, (..., 5).

    Returns:
      bool, (...).
    """
    shape, colour, background = (attributes[..., column] for column in (SHAPE, COLOUR, BACKGROUND))
    turn = shape + (1 + shape // 5) * colour + 2 * (colour // 5) + 2 * (background // 5)
    return (turn - background) % 5 == 0


def compositions() -> np.ndarray:
    """All compositions: int32, (8640, 5)."""
    return np.indices(COUNTS, np.int32).reshape(len(COUNTS), -1).T.copy()


def sample(generator: np.random.Generator, n: int, *, held: bool | None = False, distinct: bool = False) -> np.ndarray:
    """Draw n compositions uniformly.

    Args:
      generator: of the draw.
      n: how many.
      held: draw among those that are not held out (False), those that are (True), or all (None).
      distinct: draw none of them twice.

    Returns:
      int32, (n, 5).

    Raises:
      ValueError: more distinct ones than exist.
    """
    among = compositions()
    if held is not None:
        among = among[held_out(among) == held]
    if not distinct:
        return among[generator.integers(len(among), size=n)]
    if n > len(among):
        raise ValueError(f"{n} distinct compositions of {len(among)}: take fewer, or distinct=False")
    return among[generator.permutation(len(among))[:n]]


def check(attributes: np.ndarray) -> np.ndarray:
    """Validate attributes and return them as int32, (n, 5).

    Raises:
      ValueError: another shape, values that are not integers, or a value out of an attribute's range.
    """
    attributes = np.asarray(attributes)
    if attributes.ndim != 2 or attributes.shape[1] != len(COUNTS) or attributes.dtype.kind not in "iu":
        raise ValueError(
            f"attributes must be integers of shape (n, {len(COUNTS)}), got {attributes.dtype} {attributes.shape}"
        )
    wrong = np.argwhere((attributes < 0) | (attributes >= COUNTS))
    if len(wrong):
        row, column = wrong[0]
        name = list(ATTRIBUTES)[column]
        raise ValueError(
            f"row {row}: {name} {attributes[row, column]} is outside 0 to {COUNTS[column] - 1} "
            f"({', '.join(ATTRIBUTES[name])})"
        )
    return attributes.astype(np.int32)


def entropy(seed: int, name: str) -> np.random.SeedSequence:
    """The entropy of a stream of random numbers; streams of one seed and different names are independent."""
    return np.random.SeedSequence((seed, zlib.crc32(name.encode())))


def derive(seed: int, name: str) -> int:
    """A seed of 63 bits from (seed, name)."""
    return int(entropy(seed, name).generate_state(1, np.uint64)[0] >> 1)


def stream(seed: int, name: str) -> np.random.Generator:
    """A generator that depends only on (seed, name)."""
    return np.random.Generator(np.random.Philox(entropy(seed, name)))
