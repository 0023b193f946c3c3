"""Word lists from a language model, as an experiment (`configs/tldr/words.py`) that leaves words.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import logging

from launch import llm
from launch.files import write_atomically
from launch.llm import Endpoint, Llm
from launch.reading import paths
from launch.reading.values import types_of
from launch.reports.metrics import Metric, declare
from launch.stages import Stage, about, free, require_number, setting, settings
from launch.store import Store
from tldr_jax import words
from tldr_jax.words import WordSet
from tldr_jax.words.generate import generate

REPLIES = "replies.jsonl"  # in the store, so that answered questions are not asked again when a setting changes

describe = declare({"{list}": Metric("words of {list}", table="Words", digits=0)})


@dataclass(frozen=True)
class WrittenWords(Stage):
    """Word lists that a language model writes, and a report of how they came about, as JSON values.

    Attributes:
      outline: names, anchors, pairs and descriptions of the lists.
      endpoint: what is asked, and how.
      count: words of each list.
      batch: words to ask for at a time.
      rounds: requests per list at most; 0 for twice as many as it takes without repetitions.
      drop_contested: drop words that it gives to two lists which exclude each other.
      workers: lists at a time.
      log: of replies; "" for one in the store.
    """

    outline: WordSet
    endpoint: Endpoint
    count: int = 200
    batch: int = 50
    rounds: int = 0
    drop_contested: bool = False
    workers: int = free(8)
    log: str = free("")

    def __post_init__(self):
        require_number(self, "count", "batch", "workers", least=1)
        require_number(self, "rounds", least=0)
        if self.log:
            paths.path(self.log, "log")

    def make(self, store: Store) -> dict[str, Any]:
        if jax.process_count() > 1:
            raise ValueError("a language model is asked by one process: run this as a single process")
        model = Llm(self.endpoint, self.log or store.path / REPLIES)
        options = {name: getattr(self, name) for name in ("count", "batch", "drop_contested", "workers")}
        word_set, report = generate(model, self.outline, rounds=self.rounds or None, **options)
        logging.info("%s", report)
        return {"words": words.to_json(word_set), "report": report.to_json()}


@dataclass(frozen=True)
class WordCounts(Stage):
    """The root: "target NAME" or "spurious NAME" -> number of words."""

    written: WrittenWords

    def make(self, store: Store) -> dict[str, float]:
        counts = store.get(self.written)["report"]["got"]
        return {f"{part} {name}": float(count) for part, by_name in counts.items() for name, count in by_name.items()}


def plan(config) -> WordCounts:
    """The stages of a config.

    Raises:
      ValueError, FileNotFoundError: see `words.load`; a setting that cannot be used.
    """
    with about("outline"):
        outline = words.load(setting(config, "outline", str), outline=True)
    for part in words.PARTS:
        outline = outline.replaced(part, {name: () for name in outline.listed(part)})
    for name, declared in types_of(Endpoint).items():
        if name in config["llm"] and name != "extra":
            setting(config, f"llm.{name}", declared)
    setting(config, "llm.max_tokens", int, least=0)
    with about("llm"):
        endpoint = llm.from_config(config["llm"])
    return WordCounts(settings(WrittenWords, config, outline=outline, endpoint=endpoint))


def leave(folder: Path, root: WordCounts, store: Store) -> None:
    """Write words.json, which `words.load` reads, and report.json into the run directory."""
    written = store.get(root.written)
    word_set = words.from_json(written["words"], name=root.written.outline.name)
    words.save(word_set, folder / "words.json")
    write_atomically(folder / "report.json", json.dumps(written["report"], ensure_ascii=False, indent=2) + "\n")
