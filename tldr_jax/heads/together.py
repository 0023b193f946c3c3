"""Heads of several settings as one compiled sweep."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from tldr_jax import projector, retrain
from tldr_jax.heads import Head
from tldr_jax.words.text import TextSet


@dataclasses.dataclass(frozen=True)
class HeadTask:
    """Heads to be trained on one set of words.

    Attributes:
      texts: the words, embedded.
      mappings: projectors.
      members: the heads; `members.projector` counts in `mappings`.
      batch_size, steps, evaluations, schedule, shared_templates: see `retrain.sweep`.
    """

    texts: TextSet
    mappings: Sequence[Any]
    members: retrain.Members
    batch_size: int
    steps: int
    evaluations: int
    schedule: str = "constant"
    shared_templates: bool = True

    @property
    def training(self) -> dict[str, Any]:
        """How the heads are trained, as `retrain.sweep` takes it."""
        names = ("batch_size", "steps", "evaluations", "schedule", "shared_templates")
        return {name: getattr(self, name) for name in names}

    def shared(self) -> bytes:
        """Equal for tasks that one program can train: same words, length and kind of projector."""
        shapes = [(np.shape(leaf), str(leaf.dtype)) for leaf in jax.tree.leaves(self.mappings[0])]
        kind = repr((self.training, shapes, jax.tree.structure(self.mappings[0])))
        return digest(self.texts) + kind.encode()


def sweep(tasks: Sequence[HeadTask]) -> list[retrain.Trained]:
    """Train the heads of tasks of one program, by one sweep in which equal projectors are one."""
    known: dict[bytes, int] = {}
    mappings, members = [], []
    for task in tasks:
        places = []
        for mapping in task.mappings:
            place = known.setdefault(digest(mapping), len(mappings))
            if place == len(mappings):
                mappings.append(mapping)
            places.append(place)
        members.append(task.members._replace(projector=np.array(places)[task.members.projector]))
    counts = [len(part.seed) for part in members]
    logging.info("text stage: %d heads, %d projectors, as one program", sum(counts), len(mappings))
    first = tasks[0]
    trained = retrain.sweep(
        first.texts,
        projector.stack(mappings),
        retrain.Members(*(np.concatenate(parts) for parts in zip(*members, strict=True))),
        **first.training,
    )
    ends = np.cumsum(counts)
    cut = lambda a, end, count: a[end - count : end]
    return [
        retrain.Trained(Head(*(cut(a, e, c) for a in trained.heads)), cut(trained.loss, e, c), trained.steps)
        for e, c in zip(ends, counts, strict=True)
    ]


def digest(tree: Any) -> bytes:
    """A hash of a tree of arrays, equal for equal trees."""
    total = hashlib.blake2b(repr(jax.tree.structure(tree)).encode())
    for leaf in map(np.ascontiguousarray, jax.tree.leaves(tree)):
        total.update(f"{leaf.dtype}{leaf.shape}".encode())
        total.update(leaf.tobytes())
    return total.digest()
