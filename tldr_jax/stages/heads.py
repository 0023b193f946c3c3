"""The heads that are trained on text (Park et al., WACV 2025), and how validation images choose among them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import numpy as np

from launch.processes.stop import Preempted
from launch.stages import Stage, about, numbers, require, require_distinct, require_known, stackable
from launch.store import Store
from launch.training import duration, sharding
from launch.training.program import Pass, Program, as_arrays
from launch.training.sharding import Device, Layout, of_one_process
from tldr_jax import retrain
from tldr_jax.heads import Head, draws, together
from tldr_jax.stages.images import Features
from tldr_jax.stages.text import KeptWords, LinearProjector, NetworkProjector, require_rates
from tldr_jax.words import text

_SETTINGS = ("learning_rate", "weight_decay", "seed")


@dataclass(frozen=True)
class Heads(Stage):
    """Heads trained on text for all combinations of settings, and the two that validation images choose.

    The result has `by_wga` and `by_class_balanced`, the chosen heads. Of all k members at e points it has `ridge`,
    `gap_rows`, `learning_rate`, `weight_decay`, `seed` (k,), `steps` (e,), `loss`, `val/wga`, `val/class_balanced`
    (k, e). Where the filters leave a list without words it has `problem` alone, the reason.

    Attributes:
      words: what they are trained on.
      projectors: heads are trained on each.
      val: features of the validation images.
      duration: over the group-balanced pairs of words.
      batch_size: text examples a step.
      evaluations: heads along the way that are validated; 1 for the last alone, as published.
      schedule: of the learning rate, see `retrain`.
      shared_templates: one draw of a template for both words of a pair.
      learning_rate, weight_decay, seed: of AdamW and of the draws; all combinations are trained.
    """

    STACKS: ClassVar[bool] = True
    CHOICES: ClassVar[tuple[str, str]] = ("by_wga", "by_class_balanced")

    words: KeptWords
    projectors: tuple[LinearProjector | NetworkProjector, ...]
    val: Features
    duration: str = "1 epoch"
    batch_size: int = 128
    evaluations: int = 1
    schedule: str = "constant"
    shared_templates: bool = True
    learning_rate: tuple[float, ...] = stackable((1e-4,))
    weight_decay: tuple[float, ...] = stackable((1e-4,))
    seed: tuple[int, ...] = stackable((0,))

    def __post_init__(self):
        duration.check(self, "duration", least=1)
        with about("duration"):  # pairs of words in an epoch: no more than so many
            duration.to_steps(self.duration, examples=10**6, batch_size=max(self.batch_size, 1))
        require_distinct(self, *_SETTINGS)
        require_known(self, "schedule", retrain.SCHEDULES)
        for name in ("batch_size", "evaluations"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require_rates(self)

    def make(self, store: Store) -> dict[str, Any]:
        problem = store.get(self.words).problem
        if problem:
            return {"problem": problem}
        task = self._task(store)
        return self._chosen(store, task, *together.sweep([task]))

    @classmethod
    def make_together(cls, stages: Sequence[Self], store: Store) -> dict[int, Exception]:
        failures: dict[int, Exception] = {}
        programs: dict[bytes, list[tuple[int, together.HeadTask]]] = {}
        for index, stage in enumerate(stages):
            try:
                if problem := store.get(stage.words).problem:
                    store.put(stage, {"problem": problem})
                    continue
                task = stage._task(store)
                programs.setdefault(task.shared(), []).append((index, task))
            except Preempted:
                raise
            except Exception as error:  # the others can still be made
                failures[index] = error
        for members in programs.values():
            store.stop.check()
            for (index, task), trained in zip(members, together.sweep([task for _, task in members]), strict=True):
                store.put(stages[index], stages[index]._chosen(store, task, trained))
        return failures

    def decode(self, tree: Any) -> dict[str, Any]:
        return tree | {name: Head(*tree[name]) for name in self.CHOICES if name in tree}

    def passes(self, layout: Layout) -> list[Pass]:
        """One call is the whole training, by every process on its own devices; see `FrozenStage`."""
        own = sharding.layout(devices=of_one_process(list(layout.mesh.devices.flat)))
        program = self.program(own)
        placed = lambda a: jax.ShapeDtypeStruct(np.shape(a), jax.dtypes.result_type(a), sharding=own.replicated)
        numbers, start, tables = jax.tree.map(placed, (program.numbers, jax.numpy.int32(0), program.resident))
        train = lambda numbers, step, tables: program.step(numbers, {"step": step}, {sharding.RESIDENT: tables})[0]
        return [Pass("training", jax.jit(train), (numbers, start, tables), 1)]

    @classmethod
    def outline_together(cls, stages: Sequence[Self], devices: Sequence[Device]) -> list[Pass]:
        """What `make_together` compiles if the heads of these stages are all combinations of their settings."""
        values = {name: tuple(dict.fromkeys(v for own in stages for v in getattr(own, name))) for name in _SETTINGS}
        mappings = {own.key: own for stage in stages for own in stage.projectors}
        joined = dataclasses.replace(stages[0], projectors=tuple(mappings.values()), **values)
        (training,) = joined.passes(sharding.layout(devices=devices))
        return [dataclasses.replace(training, name=f"{len(stages)} {cls.__name__}: {training.name}")]

    def program(self, layout: Layout) -> Program:
        """What is compiled if the filters keep all words; see `retrain.program`."""
        texts = self.words.embedded.outline()
        width, count = texts.target.shape[-1], len(self.projectors)
        stacked = lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)
        projectors = jax.tree.map(stacked, self.projectors[0].outline(width))
        devices = list(layout.mesh.devices.flat)
        return retrain.program(texts, projectors, as_arrays(numbers(self)), devices, **self._training(texts))

    def _training(self, texts: text.TextSet) -> dict[str, Any]:
        steps = duration.to_steps(self.duration, examples=draws.plan(texts).epoch, batch_size=self.batch_size)
        own = {name: getattr(self, name) for name in ("batch_size", "schedule", "shared_templates")}
        return own | {"steps": steps, "evaluations": min(self.evaluations, steps)}

    def _task(self, store: Store) -> together.HeadTask:
        texts = self.words.texts(store)
        members = retrain.grid(
            learning_rates=self.learning_rate,
            weight_decays=self.weight_decay,
            seeds=self.seed,
            projectors=range(len(self.projectors)),
        )
        mappings = [store.get(own) for own in self.projectors]
        return together.HeadTask(texts, mappings, members, **self._training(texts))

    def _chosen(self, store: Store, task: together.HeadTask, trained: retrain.Trained) -> dict[str, Any]:
        val, groups, members = store.get(self.val), self.val.images.groups, task.members
        scores = retrain.select(
            trained.heads, val.rows, val.classes, val.spurious, allowed=groups.allowed, names=groups.names
        )
        projectors = [self.projectors[i] for i in members.projector]
        return {
            **{name: getattr(scores, name).head for name in self.CHOICES},
            "ridge": np.array([getattr(own, "ridge", np.nan) for own in projectors]),
            "gap_rows": np.array([own.gap_rows for own in projectors]),
            "learning_rate": members.learning_rate,
            "weight_decay": members.weight_decay,
            "seed": members.seed,
            "steps": trained.steps,
            "loss": trained.loss,
            "val/wga": scores.wga,
            "val/class_balanced": scores.class_balanced,
        }


@dataclass(frozen=True)
class ChosenHeads(Stage):
    """Of heads trained on words that passed other filters, the two that validation images choose.

    The result has `by_wga` and `by_class_balanced`, each the best by its score over all candidates, of equals the
    first, and under `filters/…` the places of the candidates that they are from. Where no candidate has words it has
    `problem` alone, the reasons.

    Attributes:
      candidates: in the order of preference.
    """

    KEPT: ClassVar[bool] = False

    candidates: tuple[Heads, ...]

    def make(self, store: Store) -> dict[str, Any]:
        made = [store.get(candidate) for candidate in self.candidates]
        if all(own.get("problem") for own in made):
            return {"problem": "; ".join(dict.fromkeys(own["problem"] for own in made))}
        chosen: dict[str, Any] = {}
        for name, score in zip(Heads.CHOICES, ("val/wga", "val/class_balanced"), strict=True):
            scores = [-1.0 if own.get("problem") else float(np.max(own[score])) for own in made]
            best = int(np.argmax(scores))
            chosen |= {name: made[best][name], f"filters/{name}": best}
        return chosen
