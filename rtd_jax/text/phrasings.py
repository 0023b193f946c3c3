"""Ways to ask for a change, each the end of "a photo of $ that …"; {new} comes in, {old} goes out.

Written for this project. By what is exchanged: an adjective, or a noun. A word alone stands where a phrase would read
better, so the noun phrasings avoid articles.
"""

ADJECTIVES = (
    "is {new}",
    "is {new} instead of {old}",
    "is {new} rather than {old}",
    "is {new} and no longer {old}",
    "looks {new}, not {old}",
    "has turned from {old} to {new}",
    "changes from {old} to {new}",
    "shows something {new} in place of something {old}",
    "trades {old} for {new}",
    "is not {old} but {new}",
    "has the same thing in {new}",
    "appears {new} this time",
    "would be the same if it were {old} and not {new}",
    "has become {new}",
)
NOUNS = (
    "has {new} instead of {old}",
    "shows {new} rather than {old}",
    "features {new} where {old} was",
    "contains {new}, not {old}",
    "swaps {old} for {new}",
    "has {old} replaced with {new}",
    "puts {new} in the place of {old}",
    "depicts {new} this time, without {old}",
    "is of {new} instead of {old}",
    "turns {old} into {new}",
    "includes {new} but no {old}",
    "is about {new} and not about {old}",
    "exchanges {old} for {new}",
    "has {new}",
    "shows {new}",
    "includes {new} now",
    "gives {old} up for {new}",
    "keeps everything but {old}, which becomes {new}",
)


def of_kind(kind: str) -> tuple[str, ...]:
    """The phrasings for words of a kind, such as "noun.animal" or "adjective"."""
    return ADJECTIVES if kind.startswith("adjective") else NOUNS
