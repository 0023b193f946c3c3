"""φ as stages: what it is trained on, its three trainings, and φ from a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import jax
import numpy as np
from absl import logging

import clip_jax
from clip_jax.training.clips import image_pass, text_pass
from launch.networks.dtypes import DTYPES
from launch.results import FieldsStage
from launch.stages import File, SettingError, Stage, about, free, require, require_known, section, stackable
from launch.store import Store
from launch.training import accumulation, keys, sharding
from launch.training.accumulation import Parts
from launch.training.program import Pass, Program
from launch.training.sharding import Device, Layout, local
from rtd_jax import losses, phi
from rtd_jax.phi import lincir, pic2word, searle, validation
from rtd_jax.stages import galleries
from rtd_jax.stages.data import (
    CaptionsOfFile,
    CaptionsOfScenes,
    ClipSource,
    DataStage,
    ImagesOfFolder,
    ImagesOfScenes,
    require_whole,
)
from rtd_jax.stages.fitting import TextTraining, metrics_of
from rtd_jax.text import compose
from rtd_jax.tuning import feed, training

Shapes = dict[str, Any]


def _floats(*size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, np.float32)


def _ints(*size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, np.int32)


@dataclass(frozen=True, kw_only=True)
class ImageEmbeddings(Stage):
    """Embeddings of the images that φ is trained and validated on, (n, d) each."""

    clip: ClipSource
    images: ImagesOfScenes | ImagesOfFolder
    target_pad: bool = False
    batch_size: int = free(256)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        return [image_pass(self.clip.outline(), self.batch_size, layout)]

    def make(self, store: Store) -> tuple[np.ndarray, np.ndarray]:
        options: dict[str, Any] = dict(target_pad=self.target_pad, batch_size=self.batch_size, progress=False)
        train, val = (clip_jax.embed_images(store.get(self.clip), p, **options) for p in store.get(self.images))
        return train, val


@dataclass(frozen=True, eq=False)
class TrainedPhi:
    """φ, and how it did on validation; no metrics where it comes from a file."""

    network: phi.Network
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PhiFile(Stage):
    """φ of the file `load`, see `rtd_jax.phi.load`; it has to fit the CLIP."""

    KEPT = False

    clip: ClipSource
    load: File

    def __post_init__(self) -> None:
        try:
            phi.check_file(self.load.path)
        except (FileNotFoundError, ValueError) as error:
            raise SettingError("load", f": {error}") from error

    def preflight(self, store: Store) -> None:
        with about("phi.load"):
            store.get(self)

    def make(self, store: Store) -> TrainedPhi:
        network = phi.load(self.load.path)
        phi.check_fits(network, store.get(self.clip).config)
        return TrainedPhi(network, {})

    def network(self, clip: clip_jax.Clip) -> phi.Network:
        """φ."""
        return phi.load(self.load.path)


@dataclass(frozen=True, kw_only=True)
class PhiTraining(TextTraining):
    """A training of φ.

    Attributes:
      clip: the CLIP, which stays frozen.
      dtype: of φ's activations and products, see `launch.networks.dtypes`.
      dropout: share of hidden units that training drops; below 0 the published one.
      unit_inputs: φ takes embeddings of one length: for a CLIP whose images and texts have different lengths.
      accumulation: parts that a device's share of a batch is computed in, one after the other, for want of memory;
        negatives are those of a part.
    """

    SECTION = "phi"
    KIND: ClassVar[str] = "phi"

    clip: ClipSource
    dtype: str = "float32"
    dropout: float = -1.0
    unit_inputs: bool = False
    accumulation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, "dtype", DTYPES)
        require_whole(self, "accumulation")
        require(self.dropout < 1, self, "dropout", "must be below 1; below 0 for the published one")

    def source(self) -> DataStage:
        """The examples to train on."""
        raise NotImplementedError

    def read(self, store: Store) -> tuple[feed.TextTable, np.ndarray, dict[str, np.ndarray]]:
        """The table to train on, embeddings to validate on, and what the loss keeps on the devices besides the CLIP."""
        raise NotImplementedError

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        """Shapes of a batch, with texts of the largest length, and of what the loss keeps on the devices."""
        raise NotImplementedError

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.TextLoss:
        """The loss of φ's parameters."""
        raise NotImplementedError

    def module(self, width: int) -> phi.Phi | phi.Pic2Word:
        """φ's module, for tokens of a width."""
        options: dict[str, Any] = {} if self.dropout < 0 else {"dropout": self.dropout}
        return phi.KINDS[self.KIND](width, unit_inputs=self.unit_inputs, dtype=np.dtype(self.dtype), **options)

    def network(self, clip: clip_jax.Clip) -> phi.Network:
        """φ before its training."""
        widths = clip.config.projection, clip.config.text.width
        fresh = phi.init(self.KIND, *widths, keys.stream(self.seed, "phi"))
        return phi.Network(self.module(widths[1]), fresh.params)

    def update(self, clip: clip_jax.Clip, examples: int, shards: int) -> training.Update:
        """One update of φ, by batches over so many devices."""
        module = self.module(clip.config.text.width)

        def apply_phi(params: Any, embeddings: jax.Array, key: jax.Array, /) -> jax.Array:
            tokens = module.apply({"params": params}, embeddings, train=True, rngs={"dropout": key})
            return cast(jax.Array, tokens)  # a pair only with `mutable`

        optimizer, _ = self.create_optimizer(examples)
        return training.make_step(self.loss(clip, apply_phi), optimizer, Parts(self.accumulation, shards))

    def layout(self, devices: Sequence[Device] | None = None) -> Layout:
        layout = super().layout(devices)
        with section(self.SECTION):
            accumulation.check(self, self.batch_size, layout.data_shards)
        return layout

    def program(self, layout: Layout) -> Program:
        """What is compiled; epochs are counted as if no example were left out."""
        clip, examples = self.clip.outline(), len(self.source().make()[0])
        params, (batch, resident) = jax.eval_shape(lambda: self.network(clip).params), self.shapes(clip)
        update = lambda stage: stage.update(clip, examples, layout.data_shards)
        return self.program_of(update, params, examples, batch, _frozen(clip) | resident)

    def preflight(self, store: Store) -> None:
        clip = store.get(self.clip)
        params = jax.eval_shape(lambda: self.network(clip).params)
        self.check_fit(len(store.get(self.source())[0]), params)
        self.layout()

    def make(self, store: Store) -> TrainedPhi:
        clip, layout = store.get(self.clip), self.layout()
        table, val, resident = self.read(store)
        fresh = self.network(clip)
        at = lambda state: phi.Network(fresh.module, local(state.params))
        held_back = lambda clip, network: validation.validate(clip, network, val)
        check = held_back if self.cirr is None else galleries.recall(store, self.cirr)
        outcome = self.fit(
            store,
            lambda stage: stage.update(clip, len(table), layout.data_shards),
            fresh.params,
            layout=layout,
            config=clip.config,
            table=table,
            evaluate=lambda state: check(clip, at(state)),
            resident=_frozen(clip) | resident,
        )
        return TrainedPhi(at(outcome.state), metrics_of(outcome))

    def encode(self, value: TrainedPhi) -> Any:
        return {"params": value.network.params, "metrics": dict(value.metrics)}

    def decode(self, tree: Any) -> TrainedPhi:
        last = tree["params"][max(tree["params"])]
        return TrainedPhi(phi.Network(self.module(last["bias"].shape[0]), tree["params"]), tree["metrics"])


def _frozen(clip: clip_jax.Clip) -> Shapes:
    """What every loss of φ keeps on the devices."""
    return {"clip": {"text": clip.params["text"], "logit_scale": clip.params["logit_scale"]}}


# -- LinCIR ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CaptionTable(Stage):
    """Masked captions with their embeddings: a table to train on, and embeddings (n, d) to validate on."""

    clip: ClipSource
    captions: CaptionsOfFile | CaptionsOfScenes
    batch_size: int = free(256)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        return [text_pass(self.clip.outline(), self.batch_size, layout)]

    def make(self, store: Store) -> tuple[feed.TextTable, np.ndarray]:
        clip, (train, val, matcher) = store.get(self.clip), store.get(self.captions)
        seed = self.captions.seed if self.captions.keywords == "published" else None
        table = lincir.prepare(clip, train, matcher, seed=seed, batch_size=self.batch_size)
        return table, clip_jax.embed_texts(clip, val, batch_size=self.batch_size, progress=False)

    def encode(self, value: tuple[feed.TextTable, np.ndarray]) -> Any:
        return vars(value[0]), value[1]

    def decode(self, tree: Any) -> tuple[feed.TextTable, np.ndarray]:
        return feed.TextTable(**tree[0]), tree[1]


@dataclass(frozen=True, kw_only=True)
class LincirPhi(PhiTraining):
    """φ from captions (Gu et al. 2024); `noise` is the level of the noise on a caption's embedding."""

    table: CaptionTable
    noise: float = stackable(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noise >= 0, self, "noise", "must be at least 0")

    def source(self) -> DataStage:
        return self.table.captions

    def read(self, store: Store):
        return *store.get(self.table), {}

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        b, config = self.batch_size, clip.config
        ids = _ints(b, config.text.context_length)
        return {"caption": _floats(b, config.projection), "ids": ids, "slot": _ints(b)}, {}

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.TextLoss:
        options: dict[str, Any] = dict(marker_id=clip.marker_id, noise=self.noise, seed=self.seed)
        return lincir.make_loss(clip.config, apply_phi, **options)


# -- Pic2Word -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pic2wordPhi(PhiTraining):
    """φ from images (Saito et al. 2023)."""

    KIND = "pic2word"

    images: ImageEmbeddings

    def source(self) -> DataStage:
        return self.images.images

    def read(self, store: Store):
        train, val = store.get(self.images)
        return feed.TextTable({"image": train}), val, {}

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        return {"image": _floats(self.batch_size, clip.config.projection), "slot": _ints(self.batch_size)}, {}

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.TextLoss:
        return pic2word.make_loss(clip.config, apply_phi, prompt=compose.prompt(clip), seed=self.seed)


# -- SEARLE ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SearleConcepts(FieldsStage):
    """Words that the images may show, and phrases about them, with "{}" in each; () for the built-in ones."""

    RESULT: ClassVar[Any] = searle.Concepts

    clip: ClipSource
    images: ImagesOfScenes | ImagesOfFolder
    phrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for phrase in self.phrases:
            require(phrase.count("{}") == 1, self, "phrases", f"{phrase!r} has to hold '{{}}' once, for the concept")

    def make(self, store: Store) -> searle.Concepts:
        return searle.concepts(store.get(self.clip), self.images.words(), self.phrases or searle.PHRASES)


@dataclass(frozen=True, kw_only=True)
class SearleTokens(Stage):
    """A token for every image to train φ on, by gradient descent: float32 (n, w)."""

    images: ImageEmbeddings
    concepts: SearleConcepts
    inversion_steps: int = 350
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        require_whole(self, "inversion_steps")

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`: the descent, for a full batch."""
        clip, concepts = self.images.clip.outline(), self.concepts
        ids = searle.phrase_ids(clip, concepts.phrases or searle.PHRASES)
        words = len(concepts.images.words())
        return [Pass("inversion", *searle.inversion(clip, words, ids, layout, steps=self.inversion_steps))]

    def make(self, store: Store) -> np.ndarray:
        clip, (train, val), known = store.get(self.images.clip), store.get(self.images), store.get(self.concepts)
        options: dict[str, Any] = dict(steps=self.inversion_steps, seed=self.seed, check_stop=store.stop.check)
        layout = sharding.layout()
        tokens = searle.invert(clip, val, known, layout, **options)
        sentences = clip_jax.embed_texts(clip, [compose.BASE] * len(val), pseudo_tokens=tokens, progress=False)
        cosine = (losses.unit_rows(sentences) * losses.unit_rows(val)).sum(1)
        logging.info("optimised tokens of validation images: mean cosine %.3f", cosine.mean())
        return searle.invert(clip, train, known, layout, **options)


@dataclass(frozen=True, kw_only=True)
class SearlePhi(PhiTraining):
    """φ from images and their optimised tokens (Baldrati et al. 2023)."""

    tokens: SearleTokens

    def source(self) -> DataStage:
        return self.tokens.images.images

    def read(self, store: Store):
        (train, val), known = store.get(self.tokens.images), store.get(self.tokens.concepts)
        return searle.prepare(train, store.get(self.tokens), known), val, searle.resident(known)

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        b, d, w = self.batch_size, clip.config.projection, clip.config.text.width
        concepts = self.tokens.concepts
        count, ids = len(concepts.images.words()), searle.phrase_ids(clip, concepts.phrases or searle.PHRASES)
        near = _ints(b, min(searle.NEAREST, count))
        batch = {"image": _floats(b, d), "token": _floats(b, w), "near": near, "slot": _ints(b)}
        return batch, {"phrases": _floats(count, len(ids), d), "phrase_ids": _ints(*ids.shape)}

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.TextLoss:
        return searle.make_loss(clip.config, apply_phi, prompt=compose.prompt(clip), seed=self.seed)


METHODS = {"lincir": LincirPhi, "pic2word": Pic2wordPhi, "searle": SearlePhi}
