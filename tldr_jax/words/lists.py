"""Word lists: their form, their files, and their validation.

A set is a JSON file, one of this package (`available`) or your own:

    {
      "note": "how the lists were made",
      "target": {"landbird": {"words": ["sparrow", …]}, …},        the classes, in order
      "spurious": {"land": {"words": ["forest", …]}, …},           the spurious values, in order
      "pairs": [["landbird", "land"], …],                          optional; by default all pairs
      "unrelated": ["teapot", …]                                   optional; see `with_junk`
    }

A list may also have an `anchor`, the phrase that stands for it in the CLIP filter, by default its name; and a
`description`, the question for a language model. `words_of: "waterbirds/landbird"` in place of `words` takes the words
of a list of another set of this package.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from launch.files import write_atomically
from launch.reading import InputError, jsons, paths, records
from launch.reading.records import Record
from launch.stages import free

_KEYS = ("note", "target", "spurious", "pairs", "unrelated")
_LIST_KEYS = ("anchor", "description", "words", "words_of")
PARTS = ("target", "spurious")


@dataclasses.dataclass(frozen=True)
class WordList:
    """The words of one class or one spurious value.

    Attributes:
      name: of the class or value.
      words: its words or phrases.
      anchor: the word or phrase that stands for it in the CLIP filter; "" is replaced by the name.
      description: what a language model is asked for; may be "".
    """

    name: str
    words: tuple[str, ...]
    anchor: str = ""
    description: str = ""

    def __post_init__(self):
        if not self.anchor:
            object.__setattr__(self, "anchor", self.name)


@dataclasses.dataclass(frozen=True)
class WordSet:
    """Words for every class and every spurious value.

    Attributes:
      target: a list per class 0..C-1, in order.
      spurious: a list per spurious value 0..S-1, in order.
      pairs: names (class, value) that are combined, in the order of the lists; () is replaced by all.
      unrelated: words that belong to no list, for tests with junk; may be empty.
      name: of the set, for messages.
      note: how the lists were made.
    """

    target: tuple[WordList, ...]
    spurious: tuple[WordList, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    unrelated: tuple[str, ...] = ()
    name: str = free("")
    note: str = free("")

    def __post_init__(self):
        every = [(c, v) for c in self.classes for v in self.values]
        chosen = set(self.pairs) or set(every)
        object.__setattr__(self, "pairs", tuple(pair for pair in every if pair in chosen))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0..C-1."""
        return tuple(own.name for own in self.target)

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the spurious values 0..S-1."""
        return tuple(own.name for own in self.spurious)

    @property
    def allowed(self) -> np.ndarray:
        """Which classes and values are combined: bool (C, S)."""
        return np.array([[(c, v) in self.pairs for v in self.values] for c in self.classes])

    def lists(self, part: str) -> tuple[WordList, ...]:
        """The lists of a part, "target" or "spurious"."""
        return {"target": self.target, "spurious": self.spurious}[part]

    def listed(self, part: str) -> dict[str, tuple[str, ...]]:
        """Name -> words of the lists of a part."""
        return {own.name: own.words for own in self.lists(part)}

    def replaced(self, part: str, words: Mapping[str, Sequence[str]]) -> "WordSet":
        """The set with other words in the lists of a part, by name."""
        lists = tuple(dataclasses.replace(own, words=tuple(words[own.name])) for own in self.lists(part))
        return dataclasses.replace(self, **{part: lists})


def available() -> tuple[str, ...]:
    """Names of the sets in this package."""
    return tuple(sorted(path.stem for path in _folder().glob("*.json")))


def load(source: str | Path, *, outline: bool = False) -> WordSet:
    """A word set by its name (see `available`) or from a JSON file.

    Args:
      source: the name, or a path that ends in .json.
      outline: accept lists without words, as `generate` takes them.

    Raises:
      ValueError: an unknown name.
      MissingInput: no such file.
      InputError: a file that differs from the form above, an empty list, a word twice in one list, or what else `check`
        refuses. The error names the file, the list and the word.
    """
    if Path(source).suffix == ".json":
        path = paths.path(source, "words.source")
    elif str(source) in available():
        path = _folder() / f"{source}.json"
    else:
        names = ", ".join(available())
        raise ValueError(f"unknown word set {str(source)!r}; valid: {names}, or a path to a .json file")
    return from_json(jsons.read(path, top=dict), name=path.stem, outline=outline, file=path)


def save(word_set: WordSet, path: str | Path) -> None:
    """Write a set as a file that `load` reads."""
    write_atomically(path, json.dumps(to_json(word_set), ensure_ascii=False, indent=1) + "\n")


def to_json(word_set: WordSet) -> dict[str, Any]:
    """The set as JSON values."""
    lists = {
        part: {
            own.name: {"anchor": own.anchor, "description": own.description, "words": list(own.words)}
            for own in word_set.lists(part)
        }
        for part in PARTS
    }
    pairs = [[word_set.classes[c], word_set.values[s]] for c, s in np.argwhere(word_set.allowed)]
    return {"note": word_set.note, **lists, "pairs": pairs, "unrelated": list(word_set.unrelated)}


def from_json(values: Mapping[str, Any], *, name: str, outline: bool = False, file: str | Path = "") -> WordSet:
    """A checked set from JSON values; see `load` for the errors.

    Args:
      values: in the form above.
      name: of the set.
      outline: accept lists without words.
      file: the name in errors; by default `name`.
    """
    record = Record(file or name, "", values)
    records.only(record, _KEYS)
    target, spurious = _lists(record, "target", at_least=2), _lists(record, "spurious", at_least=1)
    word_set = WordSet(
        target=target,
        spurious=spurious,
        pairs=_pairs(record, [own.name for own in target], [own.name for own in spurious]),
        unrelated=_words(record, "unrelated"),
        name=name,
        note=records.optional(record, "note", str, ""),
    )
    if not outline:
        try:
            check(word_set)
        except ValueError as error:
            raise InputError(str(error), file=record.file) from error
    return word_set


def check(word_set: WordSet) -> None:
    """Refuse lists without words and words that cannot be meant.

    Lists of classes may share words, and so may those of spurious values: the published ones do, and which list such a
    word belongs to is for the CLIP filter to say.

    Raises:
      ValueError: an empty list, a word twice in a list, in a target and a spurious list, or in a list and among the
        unrelated words. Words are compared by `key`.
    """
    keys = {
        (part, own.name): _keys(own.words, f"{part} {own.name!r}") for part in PARTS for own in word_set.lists(part)
    }
    for (one, first), (other, second) in combinations(keys.items(), 2):
        if one[0] != other[0] and (common := sorted(first & second)):
            raise ValueError(
                f"{common[0]!r} is a word of {one[0]} {one[1]!r} and of {other[0]} {other[1]!r}: leave it out of one"
            )
    unrelated = _keys(word_set.unrelated, "unrelated") if word_set.unrelated else set()
    for (part, name), own in keys.items():
        if common := sorted(own & unrelated):
            raise ValueError(f"{common[0]!r} is a word of {part} {name!r} and unrelated: leave it out of one")


def rival_classes(word_set: WordSet) -> np.ndarray:
    """Whether two classes occur with one spurious value, so that their words must be told apart: bool (C, C)."""
    allowed = word_set.allowed.astype(int)
    return (allowed @ allowed.T) > 0


def rival_values(word_set: WordSet) -> np.ndarray:
    """Whether two spurious values occur with one class, so that their words must be told apart: bool (S, S)."""
    allowed = word_set.allowed.astype(int)
    return (allowed.T @ allowed) > 0


def key(word: str) -> str:
    """The common form of all spellings of a word: "The Great-horned  Owl" -> "great horned owl"."""
    text = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    text = re.sub(r"[\s_-]+", " ", text).strip(" .,;:!?\"'")
    return re.sub(r"^(a|an|the) (?=.)", "", text)


def select(word_set: WordSet, target: Mapping[str, np.ndarray], spurious: Mapping[str, np.ndarray]) -> WordSet:
    """The words that masks keep.

    Args:
      word_set: all words.
      target: class name -> bool, one per word.
      spurious: value name -> the same.
    """
    for part, masks in zip(PARTS, (target, spurious), strict=True):
        kept = {
            name: [word for word, keep in zip(words, masks[name], strict=True) if keep]
            for name, words in word_set.listed(part).items()
        }
        word_set = word_set.replaced(part, kept)
    return word_set


def with_junk(word_set: WordSet, share: float, *, seed: int) -> WordSet:
    """The set with wrong words in every list, to test the filters.

    Half of the junk of a list (rounded up) are words of lists that exclude it, half are `unrelated` words; without
    unrelated words, all are words of other lists.

    Args:
      word_set: the intended words.
      share: of each longer list that is junk, in [0, 1).
      seed: of the draw; every list has its own draw.

    Raises:
      ValueError: a share out of bounds, or more junk words than the lists offer.
    """
    if not 0 <= share < 1:
        raise ValueError(f"a junk share of {share} is outside [0, 1)")
    rivals = {"target": ~np.eye(len(word_set.target), dtype=bool), "spurious": rival_values(word_set)}
    spoilt = dataclasses.replace(word_set, name=f"{word_set.name} with {share:.0%} junk")
    for p, part in enumerate(PARTS):
        lists = word_set.lists(part)
        longer = {}
        for i, word_list in enumerate(lists):
            others = [word for j, other in enumerate(lists) if j != i and rivals[part][i, j] for word in other.words]
            own = set(map(key, word_list.words))  # which lists may share
            wrong = list({key(word): word for word in others if key(word) not in own}.values())
            generator = np.random.default_rng((seed, p, i))
            where = f"{part} {word_list.name!r}"
            longer[word_list.name] = word_list.words + _junk(
                generator, word_list.words, wrong, word_set.unrelated, share, where
            )
        spoilt = spoilt.replaced(part, longer)
    return spoilt


def with_contested(word_set: WordSet, share: float, *, seed: int) -> WordSet:
    """The set with words of rival lists in every list too, as published lists have them: what the filters sort out.

    Words of lists that exclude the list; they stay in their own, so that both have them. No unrelated words: for those
    see `with_junk`, whose draws these are.

    Args:
      word_set, share, seed: as in `with_junk`.

    Raises:
      ValueError: as `with_junk`.
    """
    spoilt = with_junk(dataclasses.replace(word_set, unrelated=()), share, seed=seed)
    name = f"{word_set.name} with {share:.0%} contested"
    return dataclasses.replace(spoilt, name=name, unrelated=word_set.unrelated)


def _junk(
    generator: np.random.Generator,
    own: Sequence[str],
    wrong: Sequence[str],
    unrelated: Sequence[str],
    share: float,
    where: str,
) -> tuple[str, ...]:
    n = round(share * len(own) / (1 - share))
    from_lists = n - n // 2 if unrelated else n
    counts = ((wrong, from_lists), (unrelated, n - from_lists))
    for words, count in counts:
        if count > len(words):
            raise ValueError(
                f"{share:.0%} junk in {where} takes {count} {'other' if words is wrong else 'unrelated'} words, but "
                f"there are {len(words)}: set a smaller share"
            )
    return tuple(str(words[i]) for words, count in counts for i in generator.permutation(len(words))[:count])


def _folder() -> Path:
    return Path(str(resources.files("tldr_jax.words"))) / "word_lists"


def _lists(record: Record, part: str, *, at_least: int) -> tuple[WordList, ...]:
    """The lists of a part of the file."""
    lists = record.child(part)
    if len(lists.values) < at_least:
        raise record.error(f"must be an object of at least {at_least} named lists", part)
    return tuple(_list(name, lists.child(name)) for name in lists.values)


def _list(name: str, record: Record) -> WordList:
    records.only(record, _LIST_KEYS)
    if "words" in record.values and "words_of" in record.values:
        raise record.error("has both 'words' and 'words_of': leave out one")
    words = _words(*(_words_of(record) if "words_of" in record.values else (record, "words")))
    anchor = records.text(record, "anchor") if "anchor" in record.values else name
    return WordList(name, words, anchor, records.optional(record, "description", str, ""))


def _words_of(record: Record) -> tuple[Record, str]:
    """ "waterbirds/landbird" -> that list of the package's set."""
    source, _, name = records.field(record, "words_of", str).partition("/")
    if source not in available():
        raise record.error(f"is no list of a set of the package; sets are: {', '.join(available())}", "words_of")
    file = _folder() / f"{source}.json"
    entries = jsons.read(file, top=dict)
    lists = {**entries["target"], **entries["spurious"]}
    if "words" not in lists.get(name, {}):
        raise record.error(f"lists of {source} are: {', '.join(lists)}", "words_of")
    return Record(file, name, lists[name]), "words"


def _words(record: Record, name: str) -> tuple[str, ...]:
    words = records.items(record, name, str) if name in record.values else []
    for i, word in enumerate(words):
        if not key(word):
            raise record.error(f"word {i} is blank", name)
    return tuple(" ".join(word.split()) for word in words)


def _keys(words: Sequence[str], where: str) -> set[str]:
    if not words:
        raise ValueError(f"{where} has no words")
    seen: dict[str, str] = {}
    for word in words:
        if key(word) in seen:
            raise ValueError(f"{where} has {word!r} twice (the other is {seen[key(word)]!r})")
        seen[key(word)] = word
    return set(seen)


def _pairs(record: Record, classes: Sequence[str], values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if "pairs" not in record.values:
        return ()
    pairs = records.items(record, "pairs", list)
    for i, pair in enumerate(pairs):
        if len(pair) != 2 or pair[0] not in classes or pair[1] not in values:
            reason = f"must be [class, value]; classes are {', '.join(classes)}; values {', '.join(values)}"
            raise InputError(reason, file=record.file, place=jsons.entry(i, "pairs"), value=pair)
    for side, names in enumerate((classes, values)):
        used = {pair[side] for pair in pairs}
        if alone := [name for name in names if name not in used]:
            raise record.error(f"{alone[0]!r} is in none of the pairs")
    return tuple((pair[0], pair[1]) for pair in pairs)
