"""The stages of a CLIP training: images with captions, the CLIP it starts from, the training, its evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging
from optax import GradientTransformation

import clip_jax
from clip_jax.attention import fastest
from clip_jax.config import DTYPES
from clip_jax.embed import Embedder
from clip_jax.training import attributes, clips, measures, pairs, sources
from clip_jax.training import step as steps
from clip_jax.training.clips import FreshClip, PretrainedClip
from clip_jax.training.composition import RowsAt
from clip_jax.training.options import ClipLoop, Composition, Computation, Devices
from clip_jax.training.pairs import CaptionedImages
from launch.data import images as image_files
from launch.data import scenes
from launch.data.scenes import world
from launch.stages import (
    File,
    SettingError,
    Stage,
    about,
    free,
    numbers,
    require,
    require_known,
    require_number,
    section,
    stackable,
    with_numbers,
)
from launch.store import Store
from launch.training import accumulation, keys
from launch.training import duration as durations
from launch.training.accumulation import Parts
from launch.training.fit import Cadence, Training, alone, train
from launch.training.optim import Optimizer, ToSteps
from launch.training.places import One
from launch.training.program import Batch, Metrics, Numbers, Pass, Program, State, Step, as_arrays
from launch.training.sharding import Device, Layout, local

# -- images with captions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScenesPairs(Stage):
    """Images of Scenes with captions.

    Attributes:
      examples: images.
      held_out: whether they show only compositions that are held out from training, or none of those.
      captions_per_image: drawn once.
      complete: captions name all five attributes and no composition occurs twice: each caption describes one image.
      seed: of compositions, images and captions.
    """

    KEPT: ClassVar[bool] = False

    examples: int
    held_out: bool = False
    captions_per_image: int = 1
    complete: bool = False
    seed: int = stackable(0)

    def attributes(self) -> np.ndarray:
        """What is in the images, int32 (n, 5); nothing is drawn."""
        return scenes.compositions(self.seed, self.examples, held_out=self.held_out, distinct=self.complete)

    def make(self, store: Store) -> CaptionedImages:
        del store
        made = scenes.pairs(
            self.seed,
            self.examples,
            held_out=self.held_out,
            captions_per_image=self.captions_per_image,
            full=self.complete,
            distinct=self.complete,
        )
        logging.info("Scenes: %d images with %d captions each", self.examples, self.captions_per_image)
        return CaptionedImages(made.images, made.captions, made.attributes)


@dataclass(frozen=True)
class CaptionFile(Stage):
    """Images that a file names beside their captions; see `sources.read_captions`.

    Attributes:
      file: .jsonl, .csv or .tsv.
      images: the folder of the images.
      image_column, caption_column: of the file.
    """

    KEPT: ClassVar[bool] = False

    file: File
    images: str
    image_column: str = "image"
    caption_column: str = "caption"

    @property
    def path(self) -> str:
        return self.file.path

    def preflight(self, store: Store) -> None:
        store.get(self)

    def make(self, store: Store) -> CaptionedImages:
        del store
        return sources.read_captions(
            self.path, self.images, image_column=self.image_column, caption_column=self.caption_column
        )


@dataclass(frozen=True)
class CaptionSplit(Stage):
    """Images that are held out of others by seed, or those that remain.

    Attributes:
      source: all of them.
      split: "val" or "test", what the images are held out for.
      examples: how many are held out.
      remaining: those that are not held out.
      seed: of the choice.
    """

    KEPT: ClassVar[bool] = False

    source: "CaptionFile | CaptionSplit"
    split: str
    examples: int
    remaining: bool = False
    seed: int = stackable(0)

    @property
    def path(self) -> str:
        return self.source.path

    def preflight(self, store: Store) -> None:
        store.get(self)

    def make(self, store: Store) -> CaptionedImages:
        whole = store.get(self.source)
        if self.examples > len(whole) - self.remaining:
            problem = f"={self.examples}: there are {len(whole)} images in {self.path}"
            raise SettingError(f"data.{self.split}_examples", problem)
        held_out, remaining = sources.hold_out(whole, self.examples, seed=self.seed)
        return remaining if self.remaining else held_out


Pairs = ScenesPairs | CaptionFile | CaptionSplit


# -- training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipTraining(Stage):
    """A CLIP trained by its contrastive loss: the checkpoint that is best on the validation set.

    Its result is a dict: `params` on the host, `best_step`, and the `metrics` of that step.

    Attributes:
      clip: that it starts from.
      train, val: images with captions.
      composition: of its batches.
      computation: of the towers.
      optimizer: of the trainable parameters.
      loop: logs, validation, checkpoints.
      batch_size: over all devices: every other pair of it is a negative.
      accumulation: parts that a device's share is computed in, each twice; negatives are still those of all parts.
      duration: of the training, such as "30 epochs".
      sharding: over the devices.
      trainable: regular expressions over parameter paths; ("text/.*", "logit_scale") freezes the images' tower.
      attribute_weight: of a supervised loss on the image embedding, beside the contrastive one; only for Scenes.
      attribute_until: fraction of the steps after which that weight is 0; it decreases from half of them on.
      seed: of the order of images and captions, and of the attributes' head.
      workers: threads that decode images; 0 for one per core.
      evaluation_batch_size: of the validation.
    """

    clip: PretrainedClip | FreshClip
    train: Pairs
    val: Pairs
    optimizer: Optimizer
    composition: Composition
    computation: Computation
    loop: ClipLoop
    batch_size: int
    duration: str
    sharding: Devices = free()
    trainable: tuple[str, ...] = (".*",)
    attribute_weight: float = stackable(0.0, off_at_zero=True)
    attribute_until: float = 0.6
    accumulation: int = 1
    seed: int = stackable(0, argument=False)  # decides on the host what the batches are; the step does not use it
    workers: int = free(0)
    evaluation_batch_size: int = free(256)

    def __post_init__(self) -> None:
        durations.check(self, "duration", least=1)
        for name in ("batch_size", "accumulation"):
            require_number(self, name, least=1)
        require_number(self, "attribute_weight", least=0)
        require_number(self, "attribute_until", least=0, most=1)
        groups_fit = not any(self.composition.alike) or self.batch_size % self.composition.group == 0
        require(groups_fit, self, "batch_size", f"does not divide into groups of {self.composition.group} (data.group)")
        require(self.trainable, self, "trainable", "trains nothing; ('.*',) is all parameters")
        has_attributes = self.attribute_weight == 0 or isinstance(self.train, ScenesPairs)
        require(has_attributes, self, "attribute_weight", "these images have no attributes; use 0.0")

    def outline(self) -> clip_jax.Clip:
        """The CLIP that is trained, with shapes in place of parameters."""
        return self.computation.of(self.clip.outline())

    def check(self) -> None:
        """Raise `SettingError` if settings do not fit together; no data is read and nothing is computed."""
        with about("init_from"):
            clip = self.outline()
        if clip.tokenizer is None:
            raise SettingError("init_from", f": {clip.source} came without tokenizer files, which captions need")
        self.sharding.rules(clip.config)
        with about("trainable"):
            steps.split(clip.params, self.trainable)
        with about("optimizer.decay_mask"):
            optimizer, _ = self._optimizer(self.batch_size)
            jax.eval_shape(partial(self._initial, optimizer), clip.params)
        labels = self.train.attributes() if isinstance(self.train, ScenesPairs) else None
        if labels is not None:
            self._cadence(len(labels))
        self._rows_at(self.batch_size if labels is None else len(labels), labels)

    def preflight(self, store: Store) -> None:
        self.layout()
        if not isinstance(self.train, ScenesPairs):
            examples = len(store.get(self.train))
            self._rows_at(examples, None)
            self._optimizer(examples)
            self._cadence(examples)

    def program(self, layout: Layout) -> Program:
        """The program that is compiled; the training set is read for its shapes."""
        clip = self.outline()
        prepared = self._prepare(clip, Store("").get(self.train))
        examples = len(prepared.count)
        return Program(
            step=self._step(clip, examples, layout),
            numbers=as_arrays(numbers(self)),
            state=jax.eval_shape(partial(self._initial, self._optimizer(examples)[0]), clip.params),
            batch=prepared.batch_shapes(self.batch_size, clip.preprocessing.crop),
            resident=jax.eval_shape(lambda arrays: arrays, prepared.resident),
        )

    def make(self, store: Store) -> dict[str, Any]:
        layout = self.layout()
        images, val = store.get(self.train), store.get(self.val)
        logging.info("%d images to train on, %d to validate", len(images), len(val))
        rows_at = self._rows_at(len(images), images.attributes)
        clip = self.computation.of(store.get(self.clip))
        prepared = self._prepare(clip, images)
        optimizer, to_steps = self._optimizer(len(images))

        def validate(state: State) -> Mapping[str, float]:
            placed = self.sharding.laid(replace(clip, params=state.params), layout)
            return measures.validate(Embedder(placed, self.evaluation_batch_size), val)

        training = Training(
            place=One(layout),
            step=self._step(clip, len(images), layout),
            numbers=as_arrays(numbers(self)),
            batches=lambda start: pairs.train_batches(
                clip,
                prepared,
                rows_at,
                seed=self.seed,
                start=start,
                **layout.share,
                workers=self.workers or image_files.decoding_threads(),
            ),
            batch_size=self.batch_size,
            steps=to_steps(self.duration),
            evaluate=alone(validate),
            resident=prepared.resident or None,
            cadence=self._cadence(len(images)),
            best=(self.loop.best_metric, self.loop.best_mode),
        )
        state = steps.create_state(self._with_head(clip.params), optimizer, self.trainable)
        best = train(store, self, state, training)
        params = attributes.without_head(local(best.state.params))
        return {"params": jax.device_get(params), "best_step": best.step, "metrics": best.metrics}

    def trained(self, store: Store) -> clip_jax.Clip:
        """The trained CLIP, on the host."""
        return replace(self.outline(), params=store.get(self)["params"])

    def layout(self, devices: Sequence[Device] | None = None) -> Layout:
        """See `launch.training.program.TrainedStage`."""
        layout = self.sharding.layout(self.sharding.rules(self.outline().config), devices)
        layout.check_batch(self.batch_size)
        accumulation.check(self, self.batch_size, layout.data_shards)
        return layout

    def _optimizer(self, examples: int) -> tuple[GradientTransformation, ToSteps]:
        """The optimiser for a training set of `examples` images, and the function that turns durations into steps."""
        to_steps = partial(durations.to_steps, examples=examples, batch_size=self.batch_size)
        with about("duration"):
            total = to_steps(self.duration)
        with section("optimizer.schedule"):
            optimizer, _ = self.optimizer.create(total_steps=total, to_steps=to_steps)
        return optimizer, to_steps

    def _cadence(self, examples: int) -> Cadence:
        with section("loop"):
            return self.loop.cadence(self._optimizer(examples)[1])

    def _with_head(self, params: Any) -> Any:
        """The parameters, with the attributes' head if there is a loss on it."""
        if not self.attribute_weight:
            return params
        return attributes.add_head(params, keys.stream(self.seed, "attribute head"), world.COUNTS)

    def _initial(self, optimizer: GradientTransformation, params: Any) -> State:
        return steps.initial_state(self._with_head(params), optimizer, self.trainable)

    def _prepare(self, clip: clip_jax.Clip, images: CaptionedImages) -> pairs.PreparedPairs:
        """The training set; with attributes only where the loss needs them."""
        return pairs.prepare(clip, images if self.attribute_weight else replace(images, attributes=None))

    def _rows_at(self, examples: int, labels: np.ndarray | None) -> RowsAt:
        if self.batch_size > examples:  # an image would be its own negative
            raise SettingError("batch_size", f"={self.batch_size}: more than the {examples} training images")
        with section("data"), about("alike"):
            return self.composition.rows_at(examples, labels, batch_size=self.batch_size, seed=self.seed)

    def _step(self, clip: clip_jax.Clip, examples: int, layout: Layout) -> Step:
        """The step, in which the stage's numbers are arguments."""
        config = fastest(self.sharding.spread(clip.config, layout), layout.mesh.devices.flat)

        def step(numbers: Numbers, state: Any, batch: Batch, *, axis_name: str | None = None) -> tuple[State, Metrics]:
            traced = with_numbers(self, numbers)
            optimizer, to_steps = traced._optimizer(examples)
            until = round(self.attribute_until * to_steps(self.duration))
            supervised = attributes.supervised(traced.attribute_weight, until, world.COUNTS)
            return steps.update(
                state,
                batch,
                config=config,
                preprocessing=clip.preprocessing,
                optimizer=optimizer,
                trainable=self.trainable,
                attribute_loss=supervised if self.attribute_weight else None,
                axis_name=axis_name,
                parts=Parts(self.accumulation, layout.data_shards),
            )

        return step


# -- evaluation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipEvaluation(Stage):
    """Metrics of a trained CLIP on its test set, and of its best step on the validation set: {name: value}.

    Attributes:
      training: of the CLIP.
      test: images with captions.
      batch_size: of the embeddings.
      checkpoint_dtype: of the weights in the folder that `experiment.leave` writes.
    """

    training: ClipTraining
    test: Pairs
    batch_size: int = free(256)
    checkpoint_dtype: str = free("float32")

    def __post_init__(self) -> None:
        require_known(self, "checkpoint_dtype", DTYPES)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        clip, count = self.training.outline(), self.test.examples if isinstance(self.test, ScenesPairs) else 0
        clip = self.training.sharding.laid(clip, self.training.layout(list(layout.mesh.devices.flat)))
        return [embed(clip, self.batch_size, layout, count=count) for embed in (clips.image_pass, clips.text_pass)]

    def make(self, store: Store) -> dict[str, float]:
        training, test = store.get(self.training), store.get(self.test)
        logging.info("best at step %d; %d images to test", training["best_step"], len(test))
        zero_shot = {} if test.attributes is None else sources.scenes_zero_shot(test.attributes)
        clip = self.training.sharding.laid(self.training.trained(store), self.training.layout())
        measured = measures.measure(Embedder(clip, self.batch_size), test, zero_shot)
        return {"best_step": training["best_step"], **training["metrics"], **measured}
