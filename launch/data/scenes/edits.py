"""Modifications: texts that say what changes between two scenes, as they continue "a photo of … that".

The phrasings come in two sets without a common template. Training uses the seen ones; the unseen ones show whether a
method has learnt the task or the templates. Every word of the unseen ones occurs in captions or seen ones, so that
they test the phrasing alone.
"""

from collections.abc import Iterator

import numpy as np

from launch.data.scenes import world
from launch.data.scenes.language import WORDS, pick, with_articles

_ADJECTIVE = {
    "seen": ("is {new}", "is {new} instead of {old}", "becomes {new}", "is {new} and not {old}"),
    "unseen": ("looks {new}", "looks {new} and not {old}", "becomes {new} instead of {old}", "is not {old} but {new}"),
}
_NOUN = {
    "seen": ("is a {new}", "is a {new} instead of a {old}", "becomes a {new}", "has the shape of a {new}"),
    "unseen": ("is not a {old} but a {new}", "has a {new} shape", "becomes a {new} and not a {old}"),
}
_PLACE = {
    "seen": (
        "is on the {new}",
        "is on the {new} instead of the {old}",
        "has the {new} behind it",
        "is now on the {new} but not on the {old}",
    ),
    "unseen": (
        "is now against the {new}",
        "has the {new} in the background",
        "has the {new} and not the {old} behind it",
    ),
}
PHRASINGS = ("seen", "unseen")


def templates(phrasing: str, attribute: str) -> tuple[str, ...]:
    """The templates of one set for one attribute, with {new} and perhaps {old} for the words.

    Raises:
      ValueError: an unknown phrasing or attribute.
    """
    if phrasing not in PHRASINGS:
        raise ValueError(f"unknown phrasing {phrasing!r}; valid names: {', '.join(PHRASINGS)}")
    if attribute not in world.ATTRIBUTES:
        raise ValueError(f"unknown attribute {attribute!r}; valid names: {', '.join(world.ATTRIBUTES)}")
    return {"shape": _NOUN, "background": _PLACE}.get(attribute, _ADJECTIVE)[phrasing]


def phrases() -> tuple[str, ...]:
    """All templates of both sets."""
    return tuple(t for phrasing in PHRASINGS for name in world.ATTRIBUTES for t in templates(phrasing, name))


def modifications(reference: np.ndarray, target: np.ndarray, *, seed: int, phrasing: str) -> list[str]:
    """Describe the change from `reference` to `target`: the edits in random order, joined by "and".

    Args:
      reference: int, (n, 5).
      target: int, (n, 5).
      seed: text i is a function of (seed, i, reference[i], target[i], phrasing).
      phrasing: "seen" or "unseen".

    Returns:
      n texts, each naming the new value of every attribute that differs.

    Raises:
      ValueError: attributes that `world.check` refuses, of different lengths, or a pair without a difference.
    """
    reference, target = world.check(reference), world.check(target)
    if len(reference) != len(target):
        raise ValueError(f"{len(reference)} references for {len(target)} targets")
    same = np.flatnonzero((reference == target).all(1))
    if len(same):
        raise ValueError(f"row {same[0]}: reference and target do not differ, so there is no change to describe")
    table = [templates(phrasing, name) for name in world.ATTRIBUTES]
    draws = world.stream(seed, f"scenes.modifications.{phrasing}").random((len(reference), 4 * len(table)))
    rows = zip(reference.tolist(), target.tolist(), draws.tolist(), strict=True)
    return [_modification(old, new, table, iter(numbers)) for old, new, numbers in rows]


def _modification(old: list[int], new: list[int], table: list[tuple[str, ...]], numbers: Iterator[float]) -> str:
    changed = sorted((next(numbers), column) for column in range(len(old)) if old[column] != new[column])
    edits = []
    for _, column in changed:
        before, after = (pick(WORDS[column][values[column]], numbers) for values in (old, new))
        edits.append(pick(table[column], numbers).format(old=before, new=after))
    return with_articles(" and ".join(edits))
