"""Texts for zero-shot classification, and the vocabulary of Scenes."""

import re
from collections.abc import Sequence

from launch.data.scenes import edits, language, world

MAX_WORDS = 30  # no caption, prompt or modification (with "a photo of $ that" before it) is longer

TEMPLATES = {
    "shape": "a {}",
    "colour": "a {} object",
    "size": "a {} object",
    "pattern": "a {} object",
    "background": "the {}",
    "family": "a {} shape",
    "ground": "the {}",
}
VALUES = {**world.ATTRIBUTES, "family": world.FAMILIES, "ground": world.GROUNDS}

# The words that name a value: those that carry the meaning of a caption.
KEYWORDS = frozenset(word for words in world.SYNONYMS.values() for word in words)


def prompts(attribute: str, value: str, *, openings: Sequence[str] = ("a photo of",)) -> list[str]:
    """Texts that name one value, for zero-shot classification: one per opening and synonym.

    Args:
      attribute: shape, colour, size, pattern, background, or family ("curved", "angular"), ground ("land", "water").
      value: one of its values.
      openings: what the texts begin with.

    Raises:
      ValueError: an unknown attribute or value.
    """
    if attribute not in VALUES:
        raise ValueError(f"unknown attribute {attribute!r}; valid names: {', '.join(VALUES)}")
    if value not in VALUES[attribute]:
        raise ValueError(f"unknown {attribute} {value!r}; valid names: {', '.join(VALUES[attribute])}")
    return [
        language.with_articles(f"{opening} {TEMPLATES[attribute].format(word)}".strip())
        for opening in openings
        for word in world.SYNONYMS[value]
    ]


def vocabulary() -> tuple[str, ...]:
    """All words of captions, prompts and modifications, in alphabetical order."""
    phrases = (
        *language.OPENINGS, *language.NOUNS, *language.CLAUSES, *language.PLACES,
        *TEMPLATES.values(), *edits.phrases(), "a an and shape",
    )  # fmt: skip
    words = {word for phrase in phrases for word in re.sub(r"\{\w*\}", "", phrase).split()}
    return tuple(sorted(words | KEYWORDS))
