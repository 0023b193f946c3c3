"""The words that replace images: lists, templates, filters, their embeddings."""

from tldr_jax.words.lists import (
    PARTS,
    WordList,
    WordSet,
    available,
    check,
    from_json,
    key,
    load,
    rival_classes,
    rival_values,
    save,
    select,
    to_json,
    with_contested,
    with_junk,
)

__all__ = [
    "PARTS",
    "WordList",
    "WordSet",
    "available",
    "check",
    "from_json",
    "key",
    "load",
    "rival_classes",
    "rival_values",
    "save",
    "select",
    "to_json",
    "with_contested",
    "with_junk",
]
