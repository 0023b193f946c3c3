"""Captions of scenes.

    caption     = [opening] (object with its place)
    object      = "a" adjectives noun ["that is" adjective "and" adjective …]
    noun        = a shape's word | "curved shape" | "angular shape" | "thing" | "object" | "figure"
    place       = one of six ways to mention the background

Texts are lower case without punctuation; words are separated by spaces.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from launch.data.scenes import world
from launch.data.scenes.world import BACKGROUND, COLOUR, PATTERN, SHAPE, SIZE

KEPT = {"shape": 0.95, "colour": 0.9, "size": 0.85, "pattern": 0.85, "background": 0.9}
SINGLE_CONCEPT = 0.12  # share of captions that name only one attribute,
SINGLE_WEIGHTS = (0.4, 0.1, 0.05, 0.05, 0.4)  # and which one: shape and background are harder to learn
FAMILY_NOUN = 0.1  # "curved shape" instead of the shape's word
GROUND_NOUN = 0.08  # "land" instead of the background's word
CLAUSE = 0.4  # some adjectives go into a clause after the noun

OPENINGS = ("", "a photo of", "a picture of", "an image of", "this is", "here is", "there is")
NOUNS = ("thing", "object", "figure")
CLAUSES = ("that is", "which is", "that looks")
PLACES = (
    "{object} on the {background}",
    "{object} against the {background}",
    "{object} in front of the {background}",
    "{object} with the {background} behind it",
    "{object} with the {background} in the background",
    "the {background} with {object} on it",
)
_DRAWS = 24  # uniform numbers per caption: 9 choose what to name, the longest caption takes 13 more
# By column and value.
WORDS = tuple(tuple(world.SYNONYMS[value] for value in values) for values in world.ATTRIBUTES.values())


def captions(attributes: np.ndarray, *, seed: int, full: bool = False, keep: np.ndarray | None = None) -> list[str]:
    """Write one caption per scene.

    Attributes are dropped at random (`KEPT`) and words are drawn among the synonyms; some captions name a single
    attribute, some say "curved shape" or "land" instead of the value.

    Args:
      attributes: int, (n, 5).
      seed: caption i is a function of (seed, i, attributes[i]).
      full: name all five attributes, each by a word of its own value.
      keep: bool, (n, 5), the attributes to name, each by a word of its own value, instead of the random choice.

    Returns:
      n texts.

    Raises:
      ValueError: attributes that `world.check` refuses, both `full` and `keep`, or a `keep` of another shape.
    """
    attributes = world.check(attributes)
    if full and keep is not None:
        raise ValueError("full=True names every attribute; leave out keep")
    if full:
        keep = np.ones(attributes.shape, bool)
    if keep is not None and np.shape(keep) != attributes.shape:
        raise ValueError(f"keep must have the shape of attributes, {attributes.shape}, got {np.shape(keep)}")
    draws = world.stream(seed, "scenes.captions").random((len(attributes), _DRAWS))
    if keep is None:
        keep, generic = _choose(draws[:, :9])
    else:
        keep, generic = np.asarray(keep, bool), np.zeros((len(attributes), 2), bool)
    rows = zip(attributes.tolist(), keep.tolist(), generic.tolist(), draws[:, 9:].tolist(), strict=True)
    return [_caption(values, kept, coarse, iter(numbers)) for values, kept, coarse, numbers in rows]


def with_articles(text: str) -> str:
    """Replace "a" by "an" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _choose(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose which attributes to name, bool (n, 5), and whether to name only family and ground, bool (n, 2)."""
    keep = draws[:, :5] < list(KEPT.values())
    only = np.searchsorted(np.cumsum(SINGLE_WEIGHTS)[:-1], draws[:, 5], side="right")
    single = draws[:, 6] < SINGLE_CONCEPT
    keep[single] = np.eye(5, dtype=bool)[only[single]]
    keep[~keep.any(1), SHAPE] = True
    return keep, draws[:, 7:9] < (FAMILY_NOUN, GROUND_NOUN)


def _caption(values: list[int], keep: list[bool], generic: list[bool], numbers: Iterator[float]) -> str:
    opening = pick(OPENINGS, numbers)
    place = pick(PLACES, numbers)
    background = _background(values, generic[1], numbers)
    if keep[BACKGROUND] and not any(keep[:BACKGROUND]):
        return f"{opening} the {background}".strip()
    thing = _object(values, keep, generic[0], numbers)
    text = place.format(object=thing, background=background) if keep[BACKGROUND] else thing
    return with_articles(f"{opening} {text}".strip())


def _background(values: list[int], generic: bool, numbers: Iterator[float]) -> str:
    word = pick(WORDS[BACKGROUND][values[BACKGROUND]], numbers)
    if generic:
        return world.GROUNDS[values[BACKGROUND] >= len(world.LAND)]
    return word


def _object(values: list[int], keep: list[bool], generic: bool, numbers: Iterator[float]) -> str:
    if not keep[SHAPE]:
        noun = pick(NOUNS, numbers)
    elif generic:
        noun = world.FAMILIES[values[SHAPE] >= len(world.CURVED)] + " shape"
    else:
        noun = pick(WORDS[SHAPE][values[SHAPE]], numbers)
    kept = [(next(numbers), column) for column in (COLOUR, SIZE, PATTERN) if keep[column]]
    adjectives = [pick(WORDS[column][values[column]], numbers) for _, column in sorted(kept)]
    clause = ""
    if adjectives and next(numbers) < CLAUSE:
        after = 1 + int(next(numbers) * len(adjectives))
        clause = f" {pick(CLAUSES, numbers)} {' and '.join(adjectives[:after])}"
        adjectives = adjectives[after:]
    return " ".join(["a", *adjectives, noun]) + clause


def pick(options: Sequence[str], numbers: Iterator[float]) -> str:
    """Choose an option by the next uniform number in [0, 1)."""
    return options[int(next(numbers) * len(options))]
