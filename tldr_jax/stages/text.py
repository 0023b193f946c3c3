"""The method up to the words: gap, projector, words (Park et al., WACV 2025)."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging

from clip_jax.training.clips import text_pass
from launch.data import scenes
from launch.results import FieldsStage
from launch.stages import SettingError, Stage, free, require, require_known, require_number, stackable
from launch.store import Store
from launch.training.program import Pass
from launch.training.sharding import Layout
from tldr_jax import heads, projector, words
from tldr_jax.datasets import captions, coco
from tldr_jax.projector import gap as gaps
from tldr_jax.projector import linear, mlp
from tldr_jax.stages.images import ClipImages, Features, FrozenClip
from tldr_jax.words import WordSet, filters, text
from tldr_jax.words.templates import Templates


def require_rates(owner: Any) -> None:
    """Raise `SettingError` unless the seed, the learning rate and the weight decay, or several, are in range."""
    require_number(owner, "seed", least=0)
    for name in ("learning_rate", "weight_decay"):
        values = getattr(owner, name)
        ok = all(math.isfinite(value) and value >= 0 for value in (values if isinstance(values, tuple) else (values,)))
        require(ok and values != (), owner, name, "finite and at least 0")


# -- the projector ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap(Stage):
    """The modality gap: CLIP(image) - CLIP(caption) of generic pairs, float32 (pairs, d); see `captions.load`."""

    VERSION: ClassVar[int] = 2

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
class ImageMoments(FieldsStage):
    """`linear.Moments` of the training images: one pass serves all ridges and gaps."""

    RESULT: ClassVar[Any] = linear.Moments

    images: ClipImages
    features: Features

    def make(self, store: Store) -> linear.Moments:
        return projector.moments_of([(store.get(self.images), store.get(self.features).rows)])


@dataclass(frozen=True, kw_only=True)
class ProjectorFit(Stage):
    """From CLIP's embeddings to the classifier's features, blind to the modality gap.

    Attributes:
      gap: None for no constraint.
      gap_rows: the pairs' differences are averaged to this many rows; 0 without a gap.
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

    def outline(self, width: int) -> projector.FeatureMap:
        """The projector of embeddings of so many numbers, with shapes in place of arrays."""
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

    def preflight(self, store: Store) -> None:
        images = self.moments.images
        if self.ridge:
            return
        count, width = len(store.get(images.images)), images.clip.outline().config.projection
        problem = f"{count} training images do not determine a map of CLIP's {width} embedding dimensions: "
        require(count >= width, self, "ridge", f"{problem}set projector.ridge, and every retrain.grid.ridge, above 0")

    @property
    def target(self) -> Features:
        return self.moments.features

    def outline(self, width: int) -> projector.Projector:
        kind = self.target.erm.backbone.kind
        shape: Any = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float64)
        return projector.Projector(shape(width, kind.features), shape(kind.features), kind.relu)

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
        require_rates(self)


@dataclass(frozen=True, kw_only=True)
class NetworkProjector(ProjectorFit, FieldsStage):
    """A network in place of the closed form: an ablation."""

    RESULT: ClassVar[Any] = mlp.MlpProjector

    images: ClipImages
    features: Features
    fit: NetworkFit = NetworkFit()

    @property
    def target(self) -> Features:
        return self.features

    def outline(self, width: int) -> mlp.MlpProjector:
        kind = self.target.erm.backbone.kind
        return mlp.outline(width, kind.features, self.gap_rows, hidden=self.fit.hidden, relu=kind.relu)

    def make(self, store: Store) -> mlp.MlpProjector:
        x, y = np.asarray(store.get(self.images)), np.asarray(store.get(self.features).rows)
        relu = self.features.erm.backbone.kind.relu
        return mlp.fit(x, y, self.rows(store), relu=relu, **dataclasses.asdict(self.fit))


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
      contested: a share of every list that is words of its rivals too, see `words.with_contested`.
      junk, junk_seed: a share of every list that is wrong words, see `words.with_junk`; the seed is of both.
      batch_size: prompts per step.
    """

    clip: FrozenClip
    words: WordSet
    templates: Templates
    contested: float = 0.0
    junk: float = 0.0
    junk_seed: int = 0
    batch_size: int = free(256)

    def __post_init__(self):
        for name in ("contested", "junk"):
            require(0 <= getattr(self, name) < 1, self, name, "a share of the words, from 0 to below 1")
        require_number(self, "junk_seed", least=0)
        word_set = self.words
        for name, spoil in (("contested", words.with_contested), ("junk", words.with_junk)):
            try:
                word_set = self._with(word_set, name, spoil)
            except ValueError as error:
                raise SettingError(name, f"={getattr(self, name)}: {error}") from error

    def word_set(self) -> WordSet:
        """The words with what does not belong there."""
        contested = self._with(self.words, "contested", words.with_contested)
        return self._with(contested, "junk", words.with_junk)

    def _with(self, word_set: WordSet, name: str, spoil: Callable[..., WordSet]) -> WordSet:
        share = getattr(self, name)
        return spoil(word_set, share, seed=self.junk_seed) if share else word_set

    def outline(self) -> text.TextSet:
        """The embeddings of all words, with shapes in place of arrays."""
        return text.outline(self.word_set(), self.templates, self.clip.outline().config.projection)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        texts = self.outline()
        count = sum(math.prod(np.shape(table)[:2]) for table in (texts.target, texts.spurious))
        return [text_pass(self.clip.outline(), self.batch_size, layout, count=count)]

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
class KeptWords(FieldsStage):
    """The words that the filters keep: `Filtered`.

    Attributes:
      embedded: all words.
      clip_filter: drop words that CLIP takes for another list's.
      projector: of the classifier filter, with the head of its classifier; None switches the filter off.
    """

    VERSION: ClassVar[int] = 2
    RESULT: ClassVar[Any] = Filtered

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

    def texts(self, store: Store) -> text.TextSet:
        """The embeddings of the words that are kept."""
        everything = self.embedded.word_set()
        kept = everything
        for part, lists in store.get(self).words.items():
            kept = kept.replaced(part, lists)
        return text.narrow(store.get(self.embedded).texts, everything, kept)

    def _logits(self, store: Store, fit: ProjectorFit) -> filters.LogitsOfTexts:
        mapping, head = store.get(fit), fit.target.erm.head(store)
        return lambda embeddings: heads.logits(head, projector.apply(mapping, embeddings))
