"""The method: gap, projector, words, heads (Park et al., WACV 2025)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from absl import logging

from launch.data import scenes
from launch.processes.stop import Preempted
from launch.settings import about, require, require_distinct, require_known, require_number
from launch.stages import SettingError, Stage, free, stackable
from launch.store import Store
from launch.training import duration
from tldr_jax import heads, projector, retrain, words
from tldr_jax.datasets import captions, coco
from tldr_jax.heads import Head, draws, together
from tldr_jax.projector import gap as gaps
from tldr_jax.projector import linear, mlp
from tldr_jax.stages.images import ClipImages, Features, FrozenClip
from tldr_jax.words import WordSet, filters, text
from tldr_jax.words.templates import Templates


def _require_rates(owner: Any) -> None:
    require_number(owner, "seed", least=0)
    for name in ("learning_rate", "weight_decay"):
        values = getattr(owner, name)
        ok = all(math.isfinite(value) and value >= 0 for value in (values if isinstance(values, tuple) else (values,)))
        require(ok and values != (), owner, name, "finite and at least 0")


# -- the projector ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap(Stage):
    """The modality gap: CLIP(image) - CLIP(caption) of generic pairs, float32 (pairs, d); see `captions.load`."""

    clip: FrozenClip
    source: str = "coco"
    path: str = ""
    images: str = ""
    split: str = "val"
    pairs: int = 1000
    seed: int = 0
    batch_size: int = free(256)

    def __post_init__(self):
        require_known(self, "source", captions.SOURCES)
        require_known(self, "split", captions.SPLITS)
        require(self.pairs >= 1, self, "pairs", "at least 1; for no constraint set projector.gap_rows=0")
        require_number(self, "pairs", most=scenes.LARGEST)
        require_number(self, "seed", least=0)
        if self.source == "coco" and (self.path or self.images):  # plans without data name none
            coco.check_files(self.path, self.images)

    def preflight(self, store: Store) -> None:
        if self.source == "coco":
            coco.check_files(self.path, self.images)

    def make(self, store: Store) -> np.ndarray:
        options = {name: getattr(self, name) for name in ("path", "images", "split", "pairs", "seed")}
        pairs = captions.load(self.source, **options)
        return gaps.differences(store.get(self.clip), pairs, batch_size=self.batch_size)


@dataclass(frozen=True)
class ImageMoments(Stage):
    """`linear.Moments` of the training images: one pass serves all ridges and gaps."""

    images: ClipImages
    features: Features

    def make(self, store: Store) -> linear.Moments:
        return projector.moments_of([(store.get(self.images), store.get(self.features).rows)])

    def encode(self, value: linear.Moments) -> Any:
        return vars(value)

    def decode(self, tree: Any) -> linear.Moments:
        return linear.Moments(**tree)


@dataclass(frozen=True, kw_only=True)
class ProjectorFit(Stage):
    """From CLIP's embeddings to the classifier's features, blind to the modality gap.

    Attributes:
      gap: None for no constraint.
      gap_rows: the pairs' differences are averaged to so many rows; 0 without a gap.
    """

    gap: Gap | None = None
    gap_rows: int = stackable(1)

    def __post_init__(self):
        require(self.gap is not None or not self.gap_rows, self, "gap_rows", "0 without a gap")
        pairs = self.gap.pairs if self.gap else 0
        require(not pairs or 1 <= self.gap_rows <= pairs, self, "gap_rows", f"0 to gap.pairs={pairs}")

    @property
    def target(self) -> Features:
        """The features that it is fitted to."""
        raise NotImplementedError

    def rows(self, store: Store) -> np.ndarray | None:
        """The gap in its rows, (gap_rows, d)."""
        return None if self.gap is None else gaps.rows(store.get(self.gap), self.gap_rows)


@dataclass(frozen=True, kw_only=True)
class LinearProjector(ProjectorFit):
    """The closed form: ridge regression with the gap's rows taken out, see `tldr_jax.projector.linear`."""

    KEPT: ClassVar[bool] = False  # solved from the moments in less time than it takes to read

    moments: ImageMoments
    ridge: float = stackable(50.0)

    def __post_init__(self):
        super().__post_init__()
        require(math.isfinite(self.ridge) and self.ridge >= 0, self, "ridge", "a finite number, at least 0")

    @property
    def target(self) -> Features:
        return self.moments.features

    def make(self, store: Store) -> projector.Projector:
        relu = self.target.erm.backbone.kind.relu
        return projector.solve(store.get(self.moments), self.rows(store), ridge=self.ridge, relu=relu)


@dataclass(frozen=True)
class NetworkFit:
    """How the network of an ablation is trained; see `tldr_jax.projector.mlp.fit`."""

    hidden: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    steps: int = 3000
    seed: int = 0

    def __post_init__(self):
        for name in ("hidden", "batch_size", "steps"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        _require_rates(self)


@dataclass(frozen=True, kw_only=True)
class NetworkProjector(ProjectorFit):
    """A network in place of the closed form: an ablation."""

    images: ClipImages
    features: Features
    fit: NetworkFit = NetworkFit()

    @property
    def target(self) -> Features:
        return self.features

    def make(self, store: Store) -> mlp.MlpProjector:
        x, y = np.asarray(store.get(self.images)), np.asarray(store.get(self.features).rows)
        relu = self.features.erm.backbone.kind.relu
        return mlp.fit(x, y, self.rows(store), relu=relu, **dataclasses.asdict(self.fit))

    def encode(self, value: mlp.MlpProjector) -> Any:
        return dict(vars(value))

    def decode(self, tree: Any) -> mlp.MlpProjector:
        return mlp.MlpProjector(**tree)


# -- the words --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordEmbeddings:
    """Embeddings of all words: under every template, and under the one of the filters with the anchors."""

    texts: text.TextSet
    anchored: filters.AnchoredWords


@dataclass(frozen=True)
class EmbeddedWords(Stage):
    """`WordEmbeddings` of a word list, which counts by its content.

    Attributes:
      clip: the CLIP.
      words: the right words.
      templates: what they are put into.
      junk, junk_seed: a share of every list that is wrong words, see `words.with_junk`.
      batch_size: prompts a step.
    """

    clip: FrozenClip
    words: WordSet
    templates: Templates
    junk: float = 0.0
    junk_seed: int = 0
    batch_size: int = free(256)

    def __post_init__(self):
        require(0 <= self.junk < 1, self, "junk", "a share of the words, from 0 to below 1")
        require_number(self, "junk_seed", least=0)
        try:
            self.word_set()
        except ValueError as error:
            raise SettingError("junk", f"={self.junk}: {error}") from error

    def word_set(self) -> WordSet:
        """The words with the junk."""
        return words.with_junk(self.words, self.junk, seed=self.junk_seed) if self.junk else self.words

    def make(self, store: Store) -> WordEmbeddings:
        options: dict[str, Any] = dict(batch_size=self.batch_size, progress=False)
        arguments = store.get(self.clip), self.word_set(), self.templates
        return WordEmbeddings(text.embed(*arguments, **options), filters.embed(*arguments, **options))

    def encode(self, value: WordEmbeddings) -> Any:
        return {"texts": dict(vars(value.texts)), "anchored": dict(vars(value.anchored))}

    def decode(self, tree: Any) -> WordEmbeddings:
        return WordEmbeddings(text.TextSet(**tree["texts"]), filters.AnchoredWords(**tree["anchored"]))


@dataclass(frozen=True)
class Filtered:
    """What filters leave of the words.

    Attributes:
      words: "target" and "spurious" -> name -> words; {} where a list would be empty.
      report: `filters.FilterReport` as JSON values.
      problem: why there are no words; "" where there are.
    """

    words: Mapping[str, Mapping[str, Sequence[str]]]
    report: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class KeptWords(Stage):
    """The words that the filters keep: `Filtered`.

    Attributes:
      embedded: all words.
      clip_filter: drop words that CLIP takes for another list's.
      projector: of the classifier filter, with the head of its classifier; None switches the filter off.
    """

    embedded: EmbeddedWords
    clip_filter: bool = True
    projector: LinearProjector | NetworkProjector | None = None

    def make(self, store: Store) -> Filtered:
        logits = self._logits(store, self.projector) if self.projector is not None else None
        anchored, by_clip = store.get(self.embedded).anchored, self.clip_filter
        everything = self.embedded.word_set()
        try:
            kept, report = filters.apply(
                everything, anchored, logits=logits, clip_target=by_clip, clip_spurious=by_clip
            )
        except filters.EmptyWordListError as error:
            logging.warning("%s", error)
            return Filtered({}, error.report.to_json(), str(error))
        logging.info("%s", report)
        return Filtered({part: kept.listed(part) for part in words.PARTS}, report.to_json())

    def encode(self, value: Filtered) -> Any:
        return dict(vars(value))

    def decode(self, tree: Any) -> Filtered:
        return Filtered(**tree)

    def texts(self, store: Store) -> text.TextSet:
        """The embeddings of the words that are kept."""
        everything = self.embedded.word_set()
        kept = everything
        for part, lists in store.get(self).words.items():
            kept = kept.replaced(part, lists)
        return text.narrow(store.get(self.embedded).texts, everything, kept)

    def _logits(self, store: Store, own: ProjectorFit) -> filters.LogitsOfTexts:
        mapping, head = store.get(own), own.target.erm.head(store)
        return lambda embeddings: heads.logits(head, projector.apply(mapping, embeddings))


# -- the heads --------------------------------------------------------------------------------------------------------


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
      evaluations: heads along the way that are validated.
      learning_rate, weight_decay, seed: of AdamW and of the draws; all combinations are trained.
    """

    STACKS: ClassVar[bool] = True
    CHOICES: ClassVar[tuple[str, str]] = ("by_wga", "by_class_balanced")

    words: KeptWords
    projectors: tuple[LinearProjector | NetworkProjector, ...]
    val: Features
    duration: str = "1 epoch"
    batch_size: int = 128
    evaluations: int = 10
    learning_rate: tuple[float, ...] = stackable((1e-4,))
    weight_decay: tuple[float, ...] = stackable((1e-4,))
    seed: tuple[int, ...] = stackable((0,))

    def __post_init__(self):
        duration.check(self, "duration", least=1)
        with about("duration"):  # pairs of words in an epoch: no more than so many
            duration.to_steps(self.duration, examples=10**6, batch_size=max(self.batch_size, 1))
        require_distinct(self, "learning_rate", "weight_decay", "seed")
        for name in ("batch_size", "evaluations"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        _require_rates(self)

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
                programs.setdefault(task.program(), []).append((index, task))
            except Preempted:
                raise
            except Exception as error:  # the others can still be made
                failures[index] = error
        for members in programs.values():
            store.stop.check()
            for (index, task), trained in zip(members, together.sweep([task for _, task in members]), strict=True):
                store.put(stages[index], stages[index]._chosen(store, task, trained))
        return failures

    def encode(self, value: dict[str, Any]) -> Any:
        return value

    def decode(self, tree: Any) -> dict[str, Any]:
        return tree | {name: Head(*tree[name]) for name in self.CHOICES if name in tree}

    def _task(self, store: Store) -> together.HeadTask:
        texts = self.words.texts(store)
        steps = duration.to_steps(self.duration, examples=draws.plan(texts).epoch, batch_size=self.batch_size)
        members = retrain.grid(
            learning_rates=self.learning_rate,
            weight_decays=self.weight_decay,
            seeds=self.seed,
            projectors=range(len(self.projectors)),
        )
        mappings = [store.get(own) for own in self.projectors]
        return together.HeadTask(texts, mappings, members, self.batch_size, steps, min(self.evaluations, steps))

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
