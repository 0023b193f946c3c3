"""Word lists written by a language model.

Each list is asked for in rounds: so many words, none of those that are there already. What the model repeats is
dropped, and so is a word that it gives to two lists which exclude each other. All replies are in the model's log
(`launch.llm`).

As an experiment (`configs/tldr/words.py`) it leaves a word list file in its run directory.
"""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from absl import logging

from launch import llm
from launch.files import write_atomically
from launch.llm import Llm, Question, strict_json
from launch.run import Run
from tldr_jax import words
from tldr_jax.words import WordSet

REVISABLE = ("llm", "log", "count", "batch", "rounds", "workers")  # what was answered is in the log, whatever changes
SYSTEM = "You write word lists for a study of image classifiers. You answer with JSON and nothing else."
PROMPT = """\
List {n} different {description}.
Each has to be something that a photo can show, named by a short English noun phrase without an article.{known}
Answer with a JSON object of this form: {{"words": ["...", "..."]}}"""
KNOWN = "\nLeave out these, which are already there: {words}."
_LONGEST = 60  # characters of a word or phrase
_DRY = 2  # rounds in a row without a new word, after which a list is left as it is


@dataclasses.dataclass(frozen=True)
class GenerationReport:
    """How the lists came about.

    Attributes:
      asked: how many words each list was to have.
      got: part -> name -> how many it has.
      rounds: part -> name -> how often it was asked for.
      repeated: part -> name -> words that the model gave again, or in another spelling.
      contested: words that it gave to lists that exclude each other, and that none of these lists has now: word, as
        `words.key` has it, -> names.
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
        """One line a list, and one for the words that two lists had."""
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


def run(config, run: Run) -> dict[str, float]:
    """Ask for the lists of an outline: words.json, a report of it, and the model's replies in the run directory.

    Returns:
      List name -> its number of words.

    Raises:
      ValueError: more processes than one, or what `words.load` and `generate` refuse.
      EndpointError, ReplyError, ImportError: as `generate`; the same command goes on from what was answered.
    """
    if jax.process_count() > 1:
        raise ValueError("a language model is asked by one process: run this without others")
    outline = words.load(config.outline, outline=True)
    model = Llm(llm.from_config(config.llm), config.log or run.path / "replies.jsonl")
    options = {name: config[name] for name in ("count", "batch", "workers")}
    found, report = generate(model, outline, rounds=config.rounds or None, **options)
    logging.info("%s", report)
    write_atomically(run.path / "report.json", json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n")
    words.save(found, run.path / "words.json")
    return {f"{part} {name}": float(count) for part, own in report.got.items() for name, count in own.items()}


def generate(
    model: Llm, outline: WordSet, *, count: int = 200, batch: int = 50, rounds: int | None = None, workers: int = 8
) -> tuple[WordSet, GenerationReport]:
    """Word lists for the classes and spurious values of an outline.

    Args:
      model: to ask, and its log.
      outline: names, anchors, pairs and descriptions; its words are not looked at. See `words.load(..., outline=True)`.
      count: words of each list.
      batch: words to ask for at a time.
      rounds: how often at most a list is asked for; by default twice as often as a model that never repeats itself
        would have to be.
      workers: lists at a time.

    Returns:
      The set, and how it came about. A list may be shorter than `count`.

    Raises:
      ValueError: a list without a description; a list for which the model found no word of its own.
      EndpointError, ReplyError, ImportError: as `Llm.ask`; what was answered is in the log, and the same call goes on.
    """
    if count < 1 or batch < 1:
        raise ValueError(f"count={count} and batch={batch} must be at least 1")
    rounds = 2 * math.ceil(count / batch) if rounds is None else rounds
    lists = [(part, name) for part in words.PARTS for name in getattr(outline, part)]
    for part, name in lists:
        if not outline.descriptions.get(part, {}).get(name):
            raise ValueError(f"{part} {name!r} of {outline.name} needs a description to ask a model for")

    def one(part: str, name: str):
        return _list(model, outline.descriptions[part][name], count, batch, rounds)

    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(lists, pool.map(one, *zip(*lists, strict=True)), strict=True))
    contested = _contested(outline, {entry: known for entry, (known, _, _) in found.items()})
    made = {part: {} for part in words.PARTS}
    for (part, name), (known, _, _) in found.items():
        made[part][name] = tuple(word for key, word in known.items() if (part, name) not in contested.get(key, ()))
    word_set = dataclasses.replace(outline, note=f"Written by {model.endpoint.model}.", **made)
    words.check(word_set)
    report = GenerationReport(
        asked=count,
        got={part: {name: len(found_) for name, found_ in entries.items()} for part, entries in made.items()},
        rounds={part: {name: found[part, name][2] for name in made[part]} for part in made},
        repeated={part: {name: found[part, name][1] for name in made[part]} for part in made},
        contested={key: [name for _, name in entries] for key, entries in contested.items()},
    )
    return word_set, report


def parse_words(reply: str) -> list[str]:
    """The words of a reply.

    Raises:
      ValueError: it is not JSON alone, not the object asked for, or has something in it that is no word or phrase.
    """
    value = strict_json(reply)
    if not isinstance(value, dict) or value.keys() != {"words"} or not isinstance(value["words"], list):
        raise ValueError('it is not a JSON object of the form {"words": ["...", "..."]}')
    if not value["words"]:
        raise ValueError("it has no words")
    for word in value["words"]:
        if not isinstance(word, str) or not words.key(word):
            raise ValueError(f"{word!r} is no word or phrase")
        if len(word) > _LONGEST or "\n" in word:
            raise ValueError(f"{word[:_LONGEST]!r} is longer than {_LONGEST} characters")
    return [" ".join(word.split()) for word in value["words"]]


def _list(model: Llm, description: str, count: int, batch: int, rounds: int) -> tuple[dict[str, str], list[str], int]:
    """Key -> word of one list, what the model repeated, and the rounds that it took."""
    known, repeated, dry, asked = {}, [], 0, 0
    while len(known) < count and asked < rounds and dry < _DRY:
        prompt = _prompt(description, min(batch, count - len(known)), list(known.values()))
        before = len(known)
        # The round tells the question from the same one before it, when nothing new came.
        for word in model.ask(Question(prompt, SYSTEM, draw=asked), parse=parse_words):
            if words.key(word) in known:
                repeated.append(word)
            elif len(known) < count:
                known[words.key(word)] = word
        dry = dry + 1 if len(known) == before else 0
        asked += 1
    return known, repeated, asked


def _prompt(description: str, n: int, known: Sequence[str]) -> str:
    there = KNOWN.format(words=", ".join(known)) if known else ""
    return PROMPT.format(n=n, description=description, known=there)


def _contested(outline: WordSet, known: dict[tuple[str, str], dict[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Key -> those of the lists with the word that exclude another of them."""
    rivals = words.rival_values(outline)
    holders = defaultdict(list)
    for entry, found in known.items():
        for key in found:
            holders[key].append(entry)

    def clash(one: tuple[str, str], other: tuple[str, str]) -> bool:
        if one[0] == other[0] == "spurious":
            return one != other and rivals[outline.values.index(one[1]), outline.values.index(other[1])]
        return one != other

    clashing = {key: [one for one in entries if any(clash(one, other) for other in entries)]
                for key, entries in holders.items()}  # fmt: skip
    return {key: entries for key, entries in clashing.items() if entries}
