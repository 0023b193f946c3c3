"""Word lists written by a language model.

Each list is requested in rounds, without the words that it already has. Words that the model repeats are dropped, and
so is a word that it gives to a class and to a spurious value. One that it gives to two classes, or to two values, stays
in both: the CLIP filter decides, as published. All replies are in the model's log (`launch.llm`).
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launch.llm import Llm, Question, strict_json
from tldr_jax import words
from tldr_jax.words import WordSet

SYSTEM = "You write word lists for a study of image classifiers. You answer with JSON and nothing else."
PROMPT = """\
List {n} different {description}.
Each has to be something that a photo can show, named by a short English noun phrase without an article.{known}
Answer with a JSON object of this form: {{"words": ["...", "..."]}}"""
KNOWN = "\nLeave out these, which are already there: {words}."
_LONGEST = 60  # characters of a word or phrase
_DRY = 2  # rounds in a row without a new word, after which a list is complete


@dataclasses.dataclass(frozen=True)
class GenerationReport:
    """How the lists came about.

    Attributes:
      asked: number of words that each list should have.
      got: part -> name -> how many it has.
      rounds: part -> name -> how often it was requested.
      repeated: part -> name -> words that the model gave again, or in another spelling.
      contested: words that it gave to several lists and that were dropped from them: `words.key` -> names.
    """

    asked: int
    got: dict[str, dict[str, int]]
    rounds: dict[str, dict[str, int]]
    repeated: dict[str, dict[str, list[str]]]
    contested: dict[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """One line per list, and one for the words that two lists had."""
        lines = [
            f"{part} {name}: {count} of {self.asked} words in {self.rounds[part][name]} rounds, "
            f"{len(self.repeated[part][name])} given again"
            for part, counts in self.got.items()
            for name, count in counts.items()
        ]
        if self.contested:
            named = ", ".join(f"{word} ({', '.join(names)})" for word, names in self.contested.items())
            lines.append(f"in two lists, and dropped from both: {named}")
        return "\n".join(lines)


def generate(
    model: Llm,
    outline: WordSet,
    *,
    count: int = 200,
    batch: int = 50,
    rounds: int | None = None,
    drop_contested: bool = False,
    workers: int = 8,
) -> tuple[WordSet, GenerationReport]:
    """Word lists for the classes and spurious values of an outline.

    Args:
      model: to ask, and its log.
      outline: names, anchors, pairs and descriptions; its words are not read. See `words.load(..., outline=True)`.
      count: words of each list.
      batch: words to ask for at a time.
      rounds: requests per list at most; by default twice as many as a model that never repeats itself needs.
      drop_contested: drop words of two classes, or of two values that occur with one class, from both lists.
      workers: lists at a time.

    Returns:
      The set, and how it came about. A list may be shorter than `count`.

    Raises:
      ValueError: a list without a description, or for which the model gave no words.
      EndpointError, ReplyError, ImportError: as `Llm.ask`; answers so far are in the log, and the same call continues.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"count={count} and batch={batch} must be at least 1")
    rounds = 2 * math.ceil(count / batch) if rounds is None else rounds
    lists = {(part, own.name): own.description for part in words.PARTS for own in outline.lists(part)}
    for (part, name), description in lists.items():
        if not description:
            raise ValueError(f"{part} {name!r} of {outline.name} needs a description to give to the model")
    with ThreadPoolExecutor(workers) as pool:
        ask = lambda description: _list(model, description, count, batch, rounds)
        answers = dict(zip(lists, pool.map(ask, lists.values()), strict=True))
    contested = _contested(outline, {entry: answer.words for entry, answer in answers.items()}, drop_contested)
    word_set = dataclasses.replace(outline, note=f"Written by {model.endpoint.model}.")
    for part in words.PARTS:
        own = {
            name: [
                word for key, word in answers[part, name].words.items() if (part, name) not in contested.get(key, ())
            ]
            for name in outline.listed(part)
        }
        word_set = word_set.replaced(part, own)
    words.check(word_set)
    by_part = lambda of: {part: {name: of(part, name) for name in outline.listed(part)} for part in words.PARTS}
    report = GenerationReport(
        asked=count,
        got=by_part(lambda part, name: len(word_set.listed(part)[name])),
        rounds=by_part(lambda part, name: answers[part, name].rounds),
        repeated=by_part(lambda part, name: answers[part, name].repeated),
        contested={key: [name for _, name in entries] for key, entries in contested.items()},
    )
    return word_set, report


def parse_words(reply: str) -> list[str]:
    """The words of a reply.

    Raises:
      ValueError: it is not JSON alone, not the requested object, or contains something that is not a word or phrase.
    """
    value = strict_json(reply)
    if not isinstance(value, dict) or value.keys() != {"words"} or not isinstance(value["words"], list):
        raise ValueError('it is not a JSON object of the form {"words": ["...", "..."]}')
    if not value["words"]:
        raise ValueError("it has no words")
    for word in value["words"]:
        if not isinstance(word, str) or not words.key(word):
            raise ValueError(f"{word!r} is not a word or phrase")
        if len(word) > _LONGEST or "\n" in word:
            raise ValueError(f"{word[:_LONGEST]!r} is longer than {_LONGEST} characters")
    return [" ".join(word.split()) for word in value["words"]]


@dataclasses.dataclass
class _Answers:
    """One list as the model gave it: key -> word, what it repeated, and the rounds that it took."""

    words: dict[str, str] = dataclasses.field(default_factory=dict)
    repeated: list[str] = dataclasses.field(default_factory=list)
    rounds: int = 0


def _list(model: Llm, description: str, count: int, batch: int, rounds: int) -> _Answers:
    answers, dry = _Answers(), 0
    while len(answers.words) < count and answers.rounds < rounds and dry < _DRY:
        before = len(answers.words)
        prompt = _prompt(description, min(batch, count - before), list(answers.words.values()))
        # The number of the round distinguishes the question from an earlier one of the same text that gave nothing new.
        for word in model.ask(Question(prompt, SYSTEM, draw=answers.rounds), parse=parse_words):
            if words.key(word) in answers.words:
                answers.repeated.append(word)
            elif len(answers.words) < count:
                answers.words[words.key(word)] = word
        dry = dry + 1 if len(answers.words) == before else 0
        answers.rounds += 1
    return answers


def _prompt(description: str, n: int, known: Sequence[str]) -> str:
    leave_out = KNOWN.format(words=", ".join(known)) if known else ""
    return PROMPT.format(n=n, description=description, known=leave_out)


def _contested(
    outline: WordSet, known: dict[tuple[str, str], dict[str, str]], within: bool
) -> dict[str, list[tuple[str, str]]]:
    """Key -> the lists with the word that exclude another list with it: of the other part, and `within` one too."""
    rivals = words.rival_values(outline)
    holders = defaultdict(list)
    for entry, keys in known.items():
        for key in keys:
            holders[key].append(entry)

    def clash(one: tuple[str, str], other: tuple[str, str]) -> bool:
        if one[0] == other[0] and not within:
            return False
        if one[0] == other[0] == "spurious":
            return one != other and rivals[outline.values.index(one[1]), outline.values.index(other[1])]
        return one != other

    clashing = {key: [one for one in entries if any(clash(one, other) for other in entries)]
                for key, entries in holders.items()}  # fmt: skip
    return {key: entries for key, entries in clashing.items() if entries}
