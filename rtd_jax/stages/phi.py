"""φ as stages: what it is trained on, its three trainings, and φ from a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging

import clip_jax
from clip_jax.losses import normalise
from launch.stages import File, SettingError, Stage, free, require, stackable
from launch.store import Store
from launch.training import keys
from launch.training.program import Program
from launch.training.sharding import Layout
from rtd_jax import phi
from rtd_jax.phi import lincir, pic2word, searle, validation
from rtd_jax.stages.data import ClipSource, DataStage
from rtd_jax.stages.fitting import TextTraining, metrics_of
from rtd_jax.text import compose
from rtd_jax.tuning import feed, training

Shapes = dict[str, Any]


def _shape(*size: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


# -- what φ is trained on --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CaptionTable(Stage):
    """LinCIR's captions with their embeddings: a table to train on, and embeddings (n, d) to validate on."""

    clip: ClipSource
    captions: DataStage
    batch_size: int = free(256)

    def make(self, store: Store) -> tuple[feed.TextTable, np.ndarray]:
        clip, (train, val, matcher) = store.get(self.clip), store.get(self.captions)
        table = lincir.prepare(clip, train, matcher, batch_size=self.batch_size)
        return table, clip_jax.embed_texts(clip, val, batch_size=self.batch_size, progress=False)

    def encode(self, value: tuple[feed.TextTable, np.ndarray]) -> Any:
        return value[0].as_tree(), value[1]

    def decode(self, tree: Any) -> tuple[feed.TextTable, np.ndarray]:
        return feed.TextTable.from_tree(tree[0]), tree[1]


@dataclass(frozen=True, kw_only=True)
class ImageEmbeddings(Stage):
    """Embeddings of the images that φ is trained and validated on: {"train": (n, d), "val": (n', d)}."""

    clip: ClipSource
    images: DataStage
    target_pad: bool = True
    batch_size: int = free(256)

    def make(self, store: Store) -> dict[str, np.ndarray]:
        clip, images = store.get(self.clip), store.get(self.images)
        embed = partial(clip_jax.embed_images, clip, target_pad=self.target_pad, batch_size=self.batch_size)
        return {name: embed(part, progress=False) for name, part in images._asdict().items()}


# -- φ --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TrainedPhi:
    """φ, and how it did on validation; no metrics where it comes from a file."""

    network: phi.Network
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PhiFile(Stage):
    """φ of a file.

    Attributes:
      clip: the CLIP that it has to fit.
      load: the file, see `rtd_jax.phi.load`.
    """

    KEPT = False

    clip: ClipSource
    load: File

    def __post_init__(self) -> None:
        try:
            phi.check_file(self.load.path)
        except (FileNotFoundError, ValueError) as error:
            raise SettingError("load", f": {error}") from error

    def make(self, store: Store) -> TrainedPhi:
        network = phi.load(self.load.path)
        phi.check_fits(network, store.get(self.clip).config)
        return TrainedPhi(network, {})

    def network_shapes(self, clip: clip_jax.Clip) -> phi.Network:
        """φ with the shapes of its parameters."""
        del clip
        network = phi.load(self.load.path)
        return phi.Network(network.module, jax.eval_shape(lambda: network.params))


@dataclass(frozen=True, kw_only=True)
class PhiTraining(TextTraining):
    """A training of φ; see `TextTraining`.

    Attributes:
      clip: stays as it is.
      dropout: share of hidden units that training drops; below 0 the published one.
      unit_inputs: φ takes embeddings of one length: for a CLIP whose images and texts have different lengths.
    """

    SECTION = "phi"
    KIND: ClassVar[str] = "phi"

    clip: ClipSource
    dropout: float = -1.0
    unit_inputs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dropout < 1, self, "dropout", "must be below 1; below 0 for the published one")

    def examples(self) -> int:
        """The number of captions or images to train on, before any is left out."""
        raise NotImplementedError

    def read(self, store: Store) -> tuple[feed.TextTable, np.ndarray, dict[str, np.ndarray]]:
        """The table to train on, embeddings to validate on, and what the loss keeps on the devices beside the CLIP."""
        raise NotImplementedError

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        """Shapes of a batch, for texts of the largest length, and of what the loss keeps on the devices."""
        raise NotImplementedError

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.Loss:
        """The loss of φ's parameters."""
        raise NotImplementedError

    @property
    def _options(self) -> dict[str, Any]:
        return dict(dropout=None if self.dropout < 0 else self.dropout, unit_inputs=self.unit_inputs)

    def fresh(self, clip: clip_jax.Clip) -> phi.Network:
        """φ before its training."""
        widths = clip.config.projection, clip.config.text.width
        return phi.init(self.KIND, *widths, keys.stream(self.seed, "phi"), **self._options)

    def update(self, clip: clip_jax.Clip, module: Any, examples: int) -> training.Update:
        """One update of φ."""
        apply_phi = lambda params, x, key: module.apply({"params": params}, x, train=True, rngs={"dropout": key})
        optimizer, _ = self.create_optimizer(examples)
        return training.make_step(self.loss(clip, apply_phi), optimizer)

    def network_shapes(self, clip: clip_jax.Clip) -> phi.Network:
        """φ with the shapes of its parameters."""
        module = phi.create_module(self.KIND, clip.config.text.width, **self._options)
        return phi.Network(module, jax.eval_shape(lambda: self.fresh(clip).params))

    def program(self, layout: Layout) -> Program:
        """What is compiled; LinCIR's epochs are counted as if no caption were left out."""
        del layout
        clip, examples = self.clip.shapes(), self.examples()
        network, (batch, resident) = self.network_shapes(clip), self.shapes(clip)
        update = lambda stage: stage.update(clip, network.module, examples)
        return self.program_of(update, network.params, examples, batch=batch, resident=_frozen(clip) | resident)

    def make(self, store: Store) -> TrainedPhi:
        clip, layout = store.get(self.clip), self.sharding.layout()
        table, val, resident = self.read(store)
        network = self.fresh(clip)
        trained_phi = lambda state: phi.Network(network.module, training.local(state.params))
        outcome = self.fit(
            store,
            lambda stage: stage.update(clip, network.module, len(table)),
            jax.device_get(network.params),
            layout=layout,
            config=clip.config,
            table=table,
            evaluate=lambda state: validation.validate(clip, trained_phi(state), val),
            resident=_frozen(clip) | resident,
        )
        return TrainedPhi(trained_phi(outcome.state), metrics_of(outcome))

    def encode(self, value: TrainedPhi) -> Any:
        return {"params": value.network.params, "metrics": dict(value.metrics)}

    def decode(self, tree: Any) -> TrainedPhi:
        width = max(tree["params"].items())[1]["bias"].shape[0]  # of the last layer
        module = phi.create_module(self.KIND, width, **self._options)
        return TrainedPhi(phi.Network(module, tree["params"]), tree["metrics"])


def _frozen(clip: clip_jax.Clip) -> Shapes:
    """The frozen CLIP's part of what φ's losses keep on every device."""
    return {"clip": {"text": clip.params["text"], "logit_scale": clip.params["logit_scale"]}}


@dataclass(frozen=True, kw_only=True)
class LincirPhi(PhiTraining):
    """φ from captions (Gu et al. 2024).

    Attributes:
      table: the captions.
      noise: level of the noise on a caption's embedding.
    """

    table: CaptionTable
    noise: float = stackable(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noise >= 0, self, "noise", "must be at least 0")

    def examples(self) -> int:
        return self.table.captions.size()

    def read(self, store: Store):
        table, val = store.get(self.table)
        return table, val, {}

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        b, config = self.batch_size, clip.config
        ids, slot = _shape(b, config.text.context_length, dtype=np.int32), _shape(b, dtype=np.int32)
        return {"caption": _shape(b, config.projection), "ids": ids, "slot": slot}, {}

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.Loss:
        options = dict(marker_id=clip.marker_id, noise=self.noise, seed=self.seed)
        return lincir.make_loss(clip.config, apply_phi, **options)


def _image_shapes(clip: clip_jax.Clip, b: int) -> Shapes:
    return {"image": _shape(b, clip.config.projection), "slot": _shape(b, dtype=np.int32)}


@dataclass(frozen=True, kw_only=True)
class Pic2wordPhi(PhiTraining):
    """φ from images (Saito et al. 2023)."""

    KIND = "pic2word"

    images: ImageEmbeddings

    def examples(self) -> int:
        return self.images.images.size()

    def read(self, store: Store):
        images = store.get(self.images)
        return feed.TextTable({"image": images["train"]}), images["val"], {}

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        return _image_shapes(clip, self.batch_size), {}

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.Loss:
        return pic2word.make_loss(clip.config, apply_phi, prompt=compose.prompt(clip), seed=self.seed)


# -- SEARLE ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SearleConcepts(Stage):
    """Words that images may show, and phrases about them.

    Attributes:
      clip: embeds them.
      images: says which words there are.
      phrases: with "{}" in each; () for `searle.PHRASES`.
    """

    clip: ClipSource
    images: DataStage
    phrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for phrase in self.phrases:
            require(phrase.count("{}") == 1, self, "phrases", f"{phrase!r} has to hold '{{}}' once, for the concept")

    @property
    def templates(self) -> tuple[str, ...]:
        """The phrases, or the built-in ones."""
        return self.phrases or searle.PHRASES

    def make(self, store: Store) -> searle.Concepts:
        return searle.concepts(store.get(self.clip), self.images.words(), self.templates)

    def encode(self, value: searle.Concepts) -> Any:
        return {"words": value.words, "phrases": value.phrases, "ids": value.ids}

    def decode(self, tree: Any) -> searle.Concepts:
        return searle.Concepts(**tree)


@dataclass(frozen=True, kw_only=True)
class SearleTokens(Stage):
    """A token for every image to train φ on, by gradient descent: float32 (n, w)."""

    images: ImageEmbeddings
    concepts: SearleConcepts
    inversion_steps: int = 350
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        whole = isinstance(self.inversion_steps, int) and self.inversion_steps >= 1
        require(whole, self, "inversion_steps", "must be a whole number, at least 1")

    def make(self, store: Store) -> np.ndarray:
        clip, images, known = store.get(self.images.clip), store.get(self.images), store.get(self.concepts)
        options = dict(steps=self.inversion_steps, seed=self.seed, check_stop=store.stop.check)
        invert = partial(searle.invert, clip, known=known, **options)
        val = invert(images["val"])
        sentences = clip_jax.embed_texts(clip, [compose.BASE] * len(val), pseudo_tokens=val, progress=False)
        similar = np.asarray(normalise(sentences)) * np.asarray(normalise(np.asarray(images["val"])))
        logging.info("optimised tokens of validation images: mean cosine %.3f", similar.sum(1).mean())
        return invert(images["train"])


@dataclass(frozen=True, kw_only=True)
class SearlePhi(PhiTraining):
    """φ from images and their optimised tokens (Baldrati et al. 2023)."""

    tokens: SearleTokens

    def examples(self) -> int:
        return self.tokens.images.images.size()

    def read(self, store: Store):
        images, known = store.get(self.tokens.images), store.get(self.tokens.concepts)
        table = searle.prepare(images["train"], store.get(self.tokens), known)
        return table, images["val"], searle.resident(known)

    def shapes(self, clip: clip_jax.Clip) -> tuple[Shapes, Shapes]:
        concepts, b = self.tokens.concepts, self.batch_size
        words, ids = len(concepts.images.words()), searle.phrase_ids(clip, concepts.templates)
        near = _shape(b, min(searle.NEAREST, words), dtype=np.int32)
        batch = _image_shapes(clip, b) | {"token": _shape(b, clip.config.text.width), "near": near}
        phrases = _shape(words, len(ids), clip.config.projection)
        return batch, {"phrases": phrases, "phrase_ids": _shape(*ids.shape, dtype=np.int32)}

    def loss(self, clip: clip_jax.Clip, apply_phi: phi.ApplyPhi) -> training.Loss:
        return searle.make_loss(clip.config, apply_phi, prompt=compose.prompt(clip), seed=self.seed)


METHODS = {"lincir": LincirPhi, "pic2word": Pic2wordPhi, "searle": SearlePhi}
