"""Images, the classifier that is debiased, and the two views of every image."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optax
from absl import logging

import clip_jax
from clip_jax.training.clips import PretrainedClip, image_pass
from launch.data import Arrays, feed, scenes
from launch.data.scenes import world
from launch.data.splits import select
from launch.reading import paths
from launch.results import FieldsStage
from launch.stages import File, SettingError, Stage, about, free, require, require_known, require_number, stackable
from launch.store import Store
from launch.training import sharding
from launch.training.program import Pass
from launch.training.sharding import Layout, of_one_process
from tldr_jax import datasets
from tldr_jax.classifier import backbones, erm, features
from tldr_jax.classifier.training import BestCheckpoint, Examples, Supervised
from tldr_jax.datasets.preparation import Cut, cut
from tldr_jax.heads import Head


@dataclass(frozen=True)
class ImageSplit(Stage):
    """One split of a data set, by its declared name and selection; see `tldr_jax.datasets.load`."""

    KEPT: ClassVar[bool] = False

    name: str
    split: str
    path: str = ""
    examples: int = 0
    seed: int = stackable(0)
    correlation: float = 0.95

    def __post_init__(self):
        require_known(self, "name", datasets.NAMES)
        require(0 <= self.correlation <= 1, self, "correlation", "a share, from 0 to 1")
        lowest = 1 if (self.name, self.split) == ("scenes", "val") else 0
        published = datasets.TRAIN_EXAMPLES[self.name] if self.split == "train" else scenes.LARGEST
        most = scenes.LARGEST if self.name == "scenes" else published
        if self.examples < lowest:
            problem = f"={self.examples}: at least 1 for scenes" if lowest else f"={self.examples}: at least 0, for all"
            raise SettingError(f"{self.split}_examples", problem)
        if self.examples > most:
            raise SettingError(f"{self.split}_examples", f"={self.examples}: {self.name} has at most {most}")
        require_number(self, "seed", least=0)
        if self.path and self.name != "scenes":
            paths.folder(self.path, "data.path")

    @property
    def groups(self) -> datasets.Groups:
        """Classes and spurious values; nothing is read."""
        return datasets.groups(self.name)

    def preflight(self, store: Store) -> None:
        store.get(self)

    def make(self, store: Store) -> datasets.Part:
        data = datasets.load(
            self.name,
            self.path,
            splits=[self.split],
            examples={self.split: self.examples},
            seed=self.seed,
            correlation=self.correlation,
        )
        logging.info("%s", data.note)
        counts, groups = data.counts(self.split), self.groups
        if self.split == "train":
            classes = counts.reshape(len(groups.classes), -1).sum(1)
            missing = [
                f"the class {groups.classes[i]}: nothing tells it from others" for i in np.flatnonzero(classes == 0)
            ]
        else:
            empty = np.flatnonzero(groups.allowed.ravel() & (counts == 0))
            missing = [f"{groups.name(int(group))}: its accuracy is not defined" for group in empty]
        if missing:
            raise ValueError(f"there is no {self.split} image of {missing[0]}")
        return data.parts[self.split]


@dataclass(frozen=True, kw_only=True)
class Pretraining(Supervised):
    """A network that predicts the attributes of Scenes' images, without held-out compositions: in place of ImageNet."""

    SECTION: ClassVar[str] = "pretrain"

    examples: int = 24_000

    def __post_init__(self):
        super().__post_init__()
        require(self.examples >= 1, self, "examples", "at least 1")
        require_number(self, "examples", most=scenes.LARGEST)

    @property
    def outputs(self) -> int:
        return sum(world.COUNTS)

    @property
    def loss(self) -> erm.Loss:
        return erm.attribute_loss

    def training_data(self) -> Examples:
        return Examples(self.examples, (len(world.COUNTS),))

    def prepare(self, seed, batch, step):
        del seed, step  # not augmented: it has to predict colour and place
        return erm.images_and_labels(batch)

    def make(self, store: Store) -> dict[str, Any]:
        pairs = scenes.pairs(self.seed, self.examples, held_out=False, captions_per_image=0)
        split = Arrays(pairs.images, np.zeros(len(pairs.images), np.int32))
        variables = erm.init(self.model(), split.image_shape, self.seed)
        return self.train(store, variables, split, {"images": feed.Table.of(pairs.images), "labels": pairs.attributes})


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    Attributes:
      flip: at random.
      crop: streamed images are cropped at random, to 8 to 100 % of their area.
      crop_padding: of images in memory: pixels of zeros on each side before a random crop; 0 for none.
      workers: Grain processes of streamed images; 0 for threads.
    """

    flip: bool = True
    crop: bool = True
    crop_padding: int = 0
    workers: int = free(0)

    def __post_init__(self):
        for name in ("crop_padding", "workers"):
            require(getattr(self, name) >= 0, self, name, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Erm(Supervised):
    """The classifier that is debiased, trained as usual; its result is the variables.

    Attributes:
      images: what it is trained on.
      val: images that are measured along the way.
      start: a pretrained network, or a file of published weights; None for fresh ones.
      keep_head: take the file's head too: with no training, a classifier that is trained already.
      held_out: a share of the images that it does not see, for AFR.
      augmentation: of the images.
      preparation: how images are cut to size where they are not augmented, see `tldr_jax.datasets.preparation`; "" for
        images in memory, which have their size.
      best: which checkpoint is the result; None for the last.
      eval_batch_size: images per step in validation.
    """

    SECTION: ClassVar[str] = "erm"

    images: ImageSplit
    val: ImageSplit = free()
    start: Pretraining | File | None = None
    keep_head: bool = False
    held_out: float = 0.0
    augmentation: Augmentation = Augmentation()
    preparation: str = ""
    best: BestCheckpoint | None = None
    eval_batch_size: int = free(256)

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.held_out < 1, self, "held_out", "a share of the training images, from 0 to below 1")
        if isinstance(self.start, File):
            require(Path(self.start.path).is_file(), self, "start", "no such file of weights: set erm.init_from")

    @property
    def outputs(self) -> int:
        return len(self.images.groups.classes)

    @property
    def view(self) -> Cut:
        """What cuts images to the backbone's size."""
        return cut(self.preparation, self.backbone.image_size) if self.preparation else np.asarray

    @property
    def loss(self) -> erm.Loss:
        return optax.softmax_cross_entropy_with_integer_labels

    def training_data(self) -> Examples:
        total = self.images.examples or datasets.TRAIN_EXAMPLES[self.images.name]
        return Examples(len(self.rows(total)[0]), in_memory=self.images.name == "scenes")

    def prepare(self, seed, batch, step):
        return erm.augmented(batch, seed, step, padding=self.augmentation.crop_padding, flip=self.augmentation.flip)

    def rows(self, examples: int) -> tuple[np.ndarray, np.ndarray]:
        """The training images that it sees and those held out, see `erm.held_out`."""
        return erm.held_out(examples, self.held_out, seed=self.seed)

    def preflight(self, store: Store) -> None:
        super().preflight(store)
        self.check_batch(len(self.rows(len(store.get(self.images)))[0]))

    def make(self, store: Store) -> dict[str, Any]:
        images, val = store.get(self.images), store.get(self.val)
        augmentation = self.augmentation
        options: dict[str, Any] = dict(
            image_size=self.backbone.image_size,
            flip=augmentation.flip,
            crop=augmentation.crop,
            workers=augmentation.workers,
            view=self.view,
        )
        split = select(datasets.split(images, **options), self.rows(len(images))[0])
        variables = erm.init(self.model(), split.image_shape, self.seed)
        if isinstance(self.start, File):
            variables = backbones.load(
                self.backbone.name, self.start.path, split.image_shape, variables, keep_head=self.keep_head
            )
        elif self.start is not None:
            variables = backbones.with_head(store.get(self.start), variables["params"][backbones.HEAD])
        evaluate = erm.validation(
            self.layout(),
            self.backbone,
            self.model(),
            datasets.split(val, **options),
            val.classes * len(self.images.groups.spurious) + val.spurious,
            batch_size=self.eval_batch_size,
        )
        return self.train(store, variables, split, feed.resident(split), evaluate=evaluate, best=self.best)

    def head(self, store: Store) -> Head:
        """The classifier's own head."""
        head = store.get(self)["params"][backbones.HEAD]
        return Head(head["kernel"], head["bias"])


class FrozenClip(PretrainedClip):
    """A CLIP with its parameters on all devices, for many small batches."""

    def preflight(self, store: Store) -> None:
        with about("clip.source"):
            self.outline()

    def make(self, store: Store | None = None) -> clip_jax.Clip:
        return clip_jax.placed(super().make(store))


@dataclass(frozen=True)
class ClipImages(Stage):
    """CLIP's embeddings of a split's images: float32 (n, d), mapped from disk, not normalised."""

    clip: FrozenClip
    images: ImageSplit
    batch_size: int = free(256)
    decoded: int = free(256)

    def encoder(self, store: Store) -> features.Encoder:
        return features.of_clip(store.get(self.clip), self.batch_size)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        own = sharding.layout(devices=of_one_process(list(layout.mesh.devices.flat)))
        return [image_pass(self.clip.outline(), self.batch_size, own, count=self.images.examples)]

    def make(self, store: Store) -> np.ndarray | None:
        return _tables([self], store, self.decoded)[0]


@dataclass(frozen=True)
class Features(FieldsStage):
    """The classifier's features of a split's images with their labels: `features.LabelledRows`, mapped from disk.

    Attributes:
      erm: the classifier.
      images: the split.
      dtype: of activations and products, see `launch.networks.dtypes`, whatever the classifier was trained in.
      batch_size: images per step, and decoded at a time.
      beside: made in the same pass over the images, unless it is there already: they are decoded once for both.
    """

    RESULT: ClassVar[Any] = features.LabelledRows

    erm: Erm
    images: ImageSplit
    dtype: str = "float32"
    batch_size: int = free(256)
    beside: ClipImages | None = free(None)

    @property
    def backbone(self) -> backbones.Backbone:
        """The classifier's network, as it is computed here."""
        return replace(self.erm.backbone, dtype=self.dtype)

    def encoder(self, store: Store) -> features.Encoder:
        variables = store.get(self.erm)
        options = dict(outputs=self.erm.outputs, batch_size=self.batch_size)
        return features.of_classifier(self.backbone, variables, crop=self.erm.view, **options)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        devices = of_one_process(list(layout.mesh.devices.flat))
        backbone, outputs = self.backbone, self.erm.outputs
        function, arguments = features.outline(backbone, outputs=outputs, batch_size=self.batch_size, devices=devices)
        return [Pass("features", function, arguments, -(-self.images.examples // self.batch_size))]

    def make(self, store: Store) -> features.LabelledRows:
        part = store.get(self.images)
        with contextlib.ExitStack() as held:
            stages: list[Any] = [self]
            if self.beside is not None and not store.has(self.beside):
                held.enter_context(store.locked([self.beside]))
                if not store.has(self.beside):  # another process may have made it while this one waited
                    stages.append(self.beside)
            rows, *others = _tables(stages, store, self.batch_size)
            if others:
                store.put(stages[1], others[0])
        return features.LabelledRows(rows, part.classes, part.spurious)


def _tables(stages: Sequence[Any], store: Store, batch_size: int) -> list[Any]:
    """Tables of rows of stages with the same `images`, in one pass; None on processes that do not write."""
    part = store.get(stages[0].images)
    encoders = {stage.key: stage.encoder(store) for stage in stages}
    folders = {stage.key: store.scratch(stage) for stage in stages}
    tables = features.write(part, encoders, folders, batch_size=batch_size, check_stop=store.stop.check)
    return [tables.get(stage.key) for stage in stages]
