"""Word lists: what they hold, where they are kept, and what can be wrong with them.

A set is a JSON file, one of this package (`available`) or one's own:

    {
      "note": "how the lists were made",
      "target": {"landbird": {"words": ["sparrow", …]}, …},        the classes, in order
      "spurious": {"land": {"words": ["forest", …]}, …},           the spurious values, in order
      "pairs": [["landbird", "land"], …],                          optional; all pairs without it
      "unrelated": ["teapot", …]                                   optional; see `with_junk`
    }

A list may also have an `anchor`, what stands for it in the CLIP filter, by default its name; and a `description`, what
a language model is asked for. In place of `words`, `words_of: "waterbirds/landbird"` takes the words of a list of a set
of this package.
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

_KEYS = {"note", "target", "spurious", "pairs", "unrelated"}
_LIST_KEYS = {"anchor", "description", "words", "words_of"}
PARTS = ("target", "spurious")


@dataclasses.dataclass(frozen=True, eq=False)
class WordSet:
    """Words for every class and every spurious value.

    Attributes:
      name: of the set, for messages.
      target: class name -> its words, in the order of the classes 0..C-1.
      spurious: value name -> its words, in the order of the values 0..S-1.
      target_anchors: class name -> the word or phrase that stands for the class in the CLIP filter.
      spurious_anchors: value name -> the same.
      allowed: bool, (C, S): the pairs of class and value that are combined.
      descriptions: "target" and "spurious" -> name -> what a language model is asked for; "" where there is none.
      unrelated: words that belong to no list, for tests with junk; may be empty.
      note: how the lists were made.
    """

    name: str
    target: dict[str, tuple[str, ...]]
    spurious: dict[str, tuple[str, ...]]
    target_anchors: dict[str, str]
    spurious_anchors: dict[str, str]
    allowed: np.ndarray
    descriptions: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    unrelated: tuple[str, ...] = ()
    note: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0..C-1."""
        return tuple(self.target)

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the spurious values 0..S-1."""
        return tuple(self.spurious)


def available() -> tuple[str, ...]:
    """Names of the sets that come with this package."""
    return tuple(sorted(path.stem for path in _folder().glob("*.json")))


def load(source: str | Path, *, outline: bool = False) -> WordSet:
    """A word set by its name (see `available`) or from a JSON file.

    Args:
      source: the name, or a path that ends in .json.
      outline: lists may be without words, as `generate` takes them.

    Raises:
      ValueError: no such name; a file that is not what this module describes, an empty list, a word that is twice in
        a list or in two lists that exclude each other. The file, the list and the word are named.
      FileNotFoundError: no such file.
    """
    path = Path(source)
    if path.suffix != ".json":
        if str(source) not in available():
            names = ", ".join(available())
            raise ValueError(f"no word set {str(source)!r}; there are: {names}, or give a path to a .json file")
        path = _folder() / f"{source}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no word list file {path}")
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")), name=path.stem, outline=outline)
    except ValueError as error:  # JSON's own errors are ValueErrors
        raise ValueError(f"{path}: {error}") from error


def save(word_set: WordSet, path: str | Path) -> None:
    """Write a set as a file that `load` reads."""
    write_atomically(path, json.dumps(to_json(word_set), ensure_ascii=False, indent=1) + "\n")


def to_json(word_set: WordSet) -> dict[str, Any]:
    """The set as JSON values."""
    lists = {part: {} for part in PARTS}
    for part, anchors in zip(PARTS, (word_set.target_anchors, word_set.spurious_anchors), strict=True):
        for name, found in getattr(word_set, part).items():
            description = word_set.descriptions.get(part, {}).get(name, "")
            lists[part][name] = {"anchor": anchors[name], "description": description, "words": list(found)}
    pairs = [[word_set.classes[c], word_set.values[s]] for c, s in np.argwhere(word_set.allowed)]
    return {"note": word_set.note, **lists, "pairs": pairs, "unrelated": list(word_set.unrelated)}


def from_json(values: Any, *, name: str, outline: bool = False) -> WordSet:
    """A checked set from JSON values; see `load` for what is refused."""
    values = _object(values, "the file", _KEYS)
    target, spurious = _lists(values, "target", at_least=2), _lists(values, "spurious", at_least=1)
    word_set = WordSet(
        name=name,
        target=target["words"],
        spurious=spurious["words"],
        target_anchors=target["anchor"],
        spurious_anchors=spurious["anchor"],
        allowed=_allowed(values.get("pairs"), tuple(target["words"]), tuple(spurious["words"])),
        descriptions={"target": target["description"], "spurious": spurious["description"]},
        unrelated=_words(values.get("unrelated", []), "unrelated"),
        note=str(values.get("note", "")),
    )
    if not outline:
        check(word_set)
    return word_set


def check(word_set: WordSet) -> None:
    """Whether every list has words and no word stands for two things.

    Two classes exclude each other, and so do two spurious values that occur with one class. Values that never do may
    share words: a lawn is land behind a bird and outdoors behind a dog.

    Raises:
      ValueError: an empty list, a word twice in a list, in two lists that exclude each other, or in a target and a
        spurious list. Words are compared as `key` has them.
    """
    keys = {
        (part, name): _keys(words, f"{part} {name!r}")
        for part in PARTS
        for name, words in getattr(word_set, part).items()
    }
    rivals = rival_values(word_set)
    for (one, found), (other, others) in combinations(keys.items(), 2):
        if one[0] == other[0] == "spurious":
            i, j = (word_set.values.index(name) for _, name in (one, other))
            if not rivals[i, j]:
                continue
        if common := sorted(found & others):
            raise ValueError(
                f"{common[0]!r} is a word of {one[0]} {one[1]!r} and of {other[0]} {other[1]!r}: leave it out of one"
            )


def rival_values(word_set: WordSet) -> np.ndarray:
    """bool (S, S): whether two spurious values occur with one class, so that a word has to be told apart by them."""
    allowed = word_set.allowed.astype(int)
    return (allowed.T @ allowed) > 0


def key(word: str) -> str:
    """What two spellings of a word have in common: "The Great-horned  Owl" -> "great horned owl"."""
    text = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    text = re.sub(r"[\s_-]+", " ", text).strip(" .,;:!?\"'")
    return re.sub(r"^(a|an|the) (?=.)", "", text)


def select(word_set: WordSet, target: Mapping[str, np.ndarray], spurious: Mapping[str, np.ndarray]) -> WordSet:
    """The words that masks keep.

    Args:
      word_set: of the words.
      target: class name -> bool, one a word.
      spurious: value name -> the same.
    """

    def kept(lists, masks):
        return {
            name: tuple(word for word, keep in zip(found, masks[name], strict=True) if keep)
            for name, found in lists.items()
        }

    return dataclasses.replace(
        word_set, target=kept(word_set.target, target), spurious=kept(word_set.spurious, spurious)
    )


def with_junk(word_set: WordSet, share: float, *, seed: int) -> WordSet:
    """The set with wrong words in every list, to see what the filters make of them.

    Half of the junk of a list (rounded up) are words of the lists that exclude it, half are `unrelated` words; without
    unrelated words, all are words of other lists.

    Args:
      word_set: of the right words.
      share: of each longer list that is junk, in [0, 1).
      seed: of the draw; every list has a draw of its own.

    Raises:
      ValueError: a share out of bounds, or that needs more junk words than there are.
    """
    if not 0 <= share < 1:
        raise ValueError(f"a junk share of {share} is outside [0, 1)")
    rivals = {"target": ~np.eye(len(word_set.target), dtype=bool), "spurious": rival_values(word_set)}
    changed = {}
    for p, part in enumerate(PARTS):
        lists = getattr(word_set, part)
        changed[part] = {}
        for i, (name, own) in enumerate(lists.items()):
            wrong = [word for j, words in enumerate(lists.values()) if j != i and rivals[part][i, j] for word in words]
            generator = np.random.default_rng((seed, p, i))
            changed[part][name] = own + _junk(generator, own, wrong, word_set.unrelated, share, f"{part} {name!r}")
    return dataclasses.replace(word_set, name=f"{word_set.name} with {share:.0%} junk", **changed)


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
                f"{share:.0%} junk in {where} takes {count} {'other' if words is wrong else 'unrelated'} words, and "
                f"there are {len(words)}: ask for less"
            )
    return tuple(words[i] for words, count in counts for i in generator.permutation(len(words))[:count])


def _folder() -> Path:
    return Path(str(resources.files("tldr_jax.words"))) / "word_lists"


def _object(values: Any, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} has to be a JSON object, not {type(values).__name__}")
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{where} has an unknown key {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    return values


def _lists(values: Mapping[str, Any], part: str, *, at_least: int) -> dict[str, dict[str, Any]]:
    """ "words", "anchor" and "description" of a part, each by the list's name."""
    entries = values.get(part)
    if not isinstance(entries, dict) or len(entries) < at_least:
        raise ValueError(f"{part!r} has to be an object of at least {at_least} named lists")
    found = {"words": {}, "anchor": {}, "description": {}}
    for name, entry in entries.items():
        where = f"{part} {name!r}"
        entry = _object(entry, where, _LIST_KEYS)
        if "words" in entry and "words_of" in entry:
            raise ValueError(f"{where} has both 'words' and 'words_of': leave out one")
        listed = _words_of(entry["words_of"], where) if "words_of" in entry else entry.get("words", [])
        found["words"][name] = _words(listed, where)
        for kind, default in (("anchor", name), ("description", "")):
            text = entry.get(kind, default)
            if not isinstance(text, str) or (kind == "anchor" and not text.strip()):
                raise ValueError(f"the {kind} of {where} has to be a text, not {text!r}")
            found[kind][name] = text
    return found


def _words_of(reference: Any, where: str) -> Sequence[str]:
    """ "waterbirds/landbird" -> the words of that list of the package's set."""
    source, _, name = str(reference).partition("/")
    if source not in available():
        raise ValueError(f"{where} takes the words of {reference!r}; sets are: {', '.join(available())}")
    entries = json.loads((_folder() / f"{source}.json").read_text(encoding="utf-8"))
    lists = {**entries["target"], **entries["spurious"]}
    if "words" not in lists.get(name, {}):
        raise ValueError(f"{where} takes the words of {reference!r}; lists of {source} are: {', '.join(lists)}")
    return lists[name]["words"]


def _words(words: Any, where: str) -> tuple[str, ...]:
    if not isinstance(words, list):
        raise ValueError(f"the words of {where} have to be a list, not {type(words).__name__}")
    for i, word in enumerate(words):
        if not isinstance(word, str) or not key(word):
            raise ValueError(f"word {i} of {where} has to be a text that is not blank, not {word!r}")
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


def _allowed(pairs: Any, classes: Sequence[str], values: Sequence[str]) -> np.ndarray:
    if pairs is None:
        return np.ones((len(classes), len(values)), bool)
    allowed = np.zeros((len(classes), len(values)), bool)
    if not isinstance(pairs, list):
        raise ValueError(f"'pairs' has to be a list of [class, value], not {type(pairs).__name__}")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in classes or pair[1] not in values:
            raise ValueError(
                f"pair {pair!r} has to be [class, value]; classes are {', '.join(classes)}; values {', '.join(values)}"
            )
        allowed[classes.index(pair[0]), values.index(pair[1])] = True
    alone = [name for names, used in ((classes, allowed.any(1)), (values, allowed.any(0)))
             for name, any_pair in zip(names, used, strict=True) if not any_pair]  # fmt: skip
    if alone:
        raise ValueError(f"{alone[0]!r} is in none of the pairs")
    return allowed
