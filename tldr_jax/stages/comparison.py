"""The methods that text-based retraining is compared with, on the same features, and the numbers of all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from absl import logging

from launch.results import NumbersStage
from launch.stages import Stage, free, require, require_distinct, require_number, walk
from launch.store import Store
from tldr_jax import heads, metrics, projector, retrain
from tldr_jax.classifier.features import LabelledRows
from tldr_jax.heads import Head, baselines
from tldr_jax.stages.heads import ChosenHeads, Heads
from tldr_jax.stages.images import ClipImages, Erm, Features, FrozenClip
from tldr_jax.stages.text import Gap, KeptWords, LinearProjector, NetworkProjector
from tldr_jax.words import text

_KEPT = 2**26  # numbers of heads, or of their predictions, that are held at a time


class Baseline(Stage):
    """Another way to obtain a last layer; the result is a `Head`."""

    OF_IMAGES: ClassVar[bool] = False  # the head is for CLIP's embeddings of images, not for the classifier's features

    def encode(self, value: Head) -> Any:
        return tuple(map(np.asarray, value))

    def decode(self, tree: Any) -> Head:
        return Head(*tree)


@dataclass(frozen=True)
class ErmHead(Baseline):
    """The classifier's own head."""

    erm: Erm

    def make(self, store: Store) -> Head:
        return self.erm.head(store)


@dataclass(frozen=True)
class ZeroShot(Baseline):
    """CLIP alone: the class anchors under all templates.

    Attributes:
      clip: the CLIP.
      prompts: by class and template.
      batch_size: prompts per step.
    """

    OF_IMAGES: ClassVar[bool] = True

    clip: FrozenClip
    prompts: tuple[tuple[str, ...], ...]
    batch_size: int = free(256)

    def make(self, store: Store) -> Head:
        flat = [prompt for row in self.prompts for prompt in row]
        rows = text.embed_prompts(store.get(self.clip), flat, batch_size=self.batch_size, progress=False)
        return baselines.zero_shot(rows.reshape(len(self.prompts), len(self.prompts[0]), -1))


@dataclass(frozen=True)
class Dfr(Baseline):
    """Logistic regression on group-balanced validation images: what images with group labels would give.

    Attributes:
      train: features whose scale is taken.
      val: features that it is fitted on.
      penalties: C, chosen on half of them.
      draws, tuning_draws, seed: see `baselines.dfr`.
    """

    train: Features
    val: Features
    penalties: tuple[float, ...] = baselines.PENALTIES
    draws: int = baselines.DRAWS
    tuning_draws: int = 1
    seed: int = 0

    def __post_init__(self):
        ok = self.penalties and all(math.isfinite(penalty) and penalty > 0 for penalty in self.penalties)
        require(ok, self, "penalties", "at least one C, all positive")
        for name in ("draws", "tuning_draws"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require_number(self, "seed", least=0)
        require_distinct(self, "penalties")

    def make(self, store: Store) -> Head:
        val, groups = store.get(self.val), self.val.images.groups
        labels = val.classes, val.spurious
        options = dict(allowed=groups.allowed, names=groups.names)
        return baselines.dfr(self.features(store), *labels, **options, **self._options(store)).head

    def features(self, store: Store) -> np.ndarray:
        """What the regression is fitted on, (n, f)."""
        return np.asarray(store.get(self.val).rows)

    def _options(self, store: Store) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("penalties", "draws", "tuning_draws", "seed")}
        return options | {"scale_on": store.get(self.train).rows}


@dataclass(frozen=True)
class ClassBalanced(Dfr):
    """The same without group labels: balanced over classes."""

    def make(self, store: Store) -> Head:
        val, classes = store.get(self.val), len(self.val.images.groups.classes)
        rows = np.asarray(val.rows)
        return baselines.class_balanced(rows, val.classes, classes=classes, **self._options(store)).head


@dataclass(frozen=True, kw_only=True)
class ProjectedImages(Dfr):
    """The same on CLIP's embeddings of the validation images, projected: what the projector lets any words reach.

    Attributes:
      projector: from CLIP's embeddings to the classifier's features.
      images: CLIP's embeddings of the validation images.
    """

    projector: LinearProjector | NetworkProjector
    images: ClipImages

    def features(self, store: Store) -> np.ndarray:
        return np.asarray(projector.apply(store.get(self.projector), store.get(self.images)))


@dataclass(frozen=True)
class Afr(Baseline):
    """Automatic feature reweighting of the training images that ERM did not see, or of all; chosen by validation WGA.

    Attributes:
      train: features that are reweighted.
      val: features that choose.
      gammas, ridges: the grid; see `baselines.afr`.
      learning_rate, steps, evaluations, clip_norm: of gradient descent.
    """

    train: Features
    val: Features
    gammas: tuple[float, ...]
    ridges: tuple[float, ...]
    learning_rate: float = 1e-2
    steps: int = 500
    evaluations: int = 500
    clip_norm: float = 1.0

    def __post_init__(self):
        for name in ("gammas", "ridges"):
            values = getattr(self, name)
            ok = values and all(math.isfinite(value) and value >= 0 for value in values)
            require(ok, self, name, "at least one number, all at least 0")
        require_distinct(self, "gammas", "ridges")
        require_number(self, "learning_rate", above=0)
        require_number(self, "clip_norm", least=0)
        require(self.steps >= 1, self, "steps", "at least 1")
        divides = self.evaluations >= 1 and self.steps % self.evaluations == 0
        require(divides, self, "evaluations", f"must divide afr.steps={self.steps}")

    def make(self, store: Store) -> Head:
        train, val, groups = store.get(self.train), store.get(self.val), self.val.images.groups
        seen, unseen = self.train.erm.rows(len(train.rows))
        rows = unseen if len(unseen) else seen
        grid = baselines.afr_grid(self.gammas, self.ridges)
        size = self.evaluations * max(len(val.rows), math.prod(self.train.erm.head(store).kernel.shape))
        choices = []
        for settings in np.array_split(grid, min(len(grid), -(-len(grid) * size // _KEPT))):
            trained = baselines.afr(
                train.rows[rows],
                train.classes[rows],
                self.train.erm.head(store),
                settings,
                learning_rate=self.learning_rate,
                steps=self.steps,
                evaluations=self.evaluations,
                clip_norm=self.clip_norm,
            )
            scores = retrain.select(
                trained, val.rows, val.classes, val.spurious, allowed=groups.allowed, names=groups.names
            )
            choices.append(scores.by_wga)
        return max(choices, key=lambda choice: choice.score).head  # of equals the first


@dataclass(frozen=True)
class Diagnostics(Stage):
    """`projector.diagnostics` of a projector on the validation images, and how many words each list has left."""

    projector: LinearProjector | NetworkProjector
    images: ClipImages
    val: Features
    words: KeptWords

    def make(self, store: Store) -> dict[str, float]:
        val = store.get(self.val)
        quality = projector.diagnostics(
            store.get(self.projector),
            self.projector.rows(store),
            image_embeddings=store.get(self.images),
            features=val.rows,
            labels=val.classes,
            head=self.val.erm.head(store),
        )
        counts = {name: n for part in store.get(self.words).report["after"].values() for name, n in part.items()}
        quality = {f"projector/{name}": value for name, value in quality.items()}
        return quality | {f"words/{name}": float(count) for name, count in counts.items()}


@dataclass(frozen=True)
class Comparison(NumbersStage):
    """The root of a run: what every head is worth on the test images.

    The result is flat: "METHOD/metric" with `metrics.summary`'s metrics. The heads of a method give "METHOD/…", chosen
    by validation WGA, and "METHOD_class_balanced/…". All are NaN where the filters left the method no words.

    Attributes:
      train, test: features; of the former the labels alone are read.
      test_images: CLIP's embeddings, for baselines that are CLIP alone.
      baselines, methods: by name; a method is `ChosenHeads` where validation images choose among filters, too.
      diagnostics: of the method's projector and words.
    """

    train: Features
    test: Features
    test_images: ClipImages
    baselines: tuple[tuple[str, Baseline], ...]
    methods: tuple[tuple[str, Heads | ChosenHeads], ...]
    diagnostics: Diagnostics

    def make(self, store: Store) -> dict[str, float]:
        for stage in walk(self):  # before the classifier is trained, by a sweep too
            if isinstance(stage, Gap) and not store.has(stage):
                stage.preflight(store)
        result: dict[str, float] = {}
        for name, stage in self.baselines:
            logging.info("baseline %s", name)
            rows = store.get(self.test_images) if stage.OF_IMAGES else store.get(self.test).rows
            result |= _named(name, self._summary(store, heads.predictions(store.get(stage), rows)))
        for name, stage in self.methods:
            logging.info("method %s", name)
            chosen = store.get(stage)
            if chosen.get("problem"):
                logging.warning("%s has no result: %s", name, chosen["problem"])
            for choice, suffix in zip(Heads.CHOICES, ("", "_class_balanced"), strict=True):
                result |= _named(f"{name}{suffix}", self._worth(store, chosen.get(choice)))
        return result | store.get(self.diagnostics)

    def _worth(self, store: Store, head: Head | None) -> Mapping[str, float]:
        test: LabelledRows = store.get(self.test)
        if head is None:
            return dict.fromkeys(self._summary(store, test.classes), math.nan)
        return self._summary(store, heads.predictions(head, test.rows))

    def _summary(self, store: Store, predictions: np.ndarray) -> Mapping[str, float]:
        train, test, groups = store.get(self.train), store.get(self.test), self.test.images.groups
        return metrics.summary(
            predictions,
            test.classes,
            test.spurious,
            allowed=groups.allowed,
            train_counts=metrics.group_counts(train.classes, train.spurious, groups.allowed),
            names=groups.names,
        )


def _named(method: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{method}/{name}": value for name, value in values.items()}
