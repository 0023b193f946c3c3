"""The data sets by name: `DataSet` is the section `data` of a config; it reads a set and cuts it into three splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from launch.data import folder, sources, splits
from launch.data.sources import Shape, Statistics
from launch.data.splits import Splits
from launch.reading import InputError, paths
from launch.stages import File, SettingError, free, require, require_known, require_number, section

NAMES = tuple(sorted(sources.SOURCES))
_LARGEST = 8192  # side of an image
_MEMORY = 64 << 30  # bytes of a set in memory


@dataclass(frozen=True)
class Spec:
    """What a data set looks like, known without its pixels.

    Attributes:
      image_shape: (h, w, c) of every image delivered.
      classes: class names; label k is `classes[k]`.
      examples: of the training split, without those held out for validation.
      val_examples: of the validation split; 0 if there is none.
      test_examples: of the test split.
      in_memory: whether the splits are `Arrays`, which the device keeps whole, and not `Stream`.
    """

    image_shape: Shape
    classes: tuple[str, ...]
    examples: int
    val_examples: int
    test_examples: int
    in_memory: bool

    def count(self, split: str) -> int:
        """How many examples "train", "val" or "test" has."""
        return {"train": self.examples, "val": self.val_examples, "test": self.test_examples}[split]


@dataclass(frozen=True)
class DataSet:
    """A data set by its declared name, and the part of it that a run uses.

    These fields enter the key of a stage; the images are never read for it. `path` counts as it is written, so a folder
    that moves is another data set; TFDS data may move with $TFDS_DATA_DIR.

    Attributes:
      name: one of `NAMES`.
      path: folder of the files or of the prepared TFDS data; "" for the data set's usual place.
      val_examples: held out of the training images, by seed.
      train_examples: a seeded subset of the others; 0 for all.
      test_examples: a seeded subset of the test images; 0 for all.
      image_size: side of the square images delivered, in pixels; 0 for the stored size (digits: 16, imagenet100: 224).
      crop_padding: pixels of zeros on each side before a random crop; 0 for no crop. Only of sets in memory: streamed
        ones take random resized crops.
      flip: flip training images at random.
      workers: Grain worker processes of a streamed set; 0 for threads.
      memory: of image_folder: "auto" keeps all images decoded in memory where they have one size and take at most
        `folder.MEMORY_LIMIT` bytes, and streams them otherwise; "yes" and "no" force one of the two.
      cache: folder in which image_folder keeps decoded images; "" for $XDG_CACHE_HOME/alignax or ~/.cache/alignax.
      classes: of image_folder: "" for all class folders by name, "imagenet100", or a text file with the class folders
        to keep, one per line; their order is the order of the labels. A file counts by its content.
      correlation: of scenes: the share of training images, in [0, 1], whose background gives the class away.
      mean, std: per channel, in [0, 1] units; () for the data set's own (of image_folder: ImageNet's).

    Raises:
      SettingError: a setting is out of range or does not fit the data set.
    """

    VERSION: ClassVar[int] = 1

    name: str
    path: str = ""
    val_examples: int = 0
    train_examples: int = 0
    test_examples: int = 0
    image_size: int = 0
    crop_padding: int = 0
    flip: bool = False
    workers: int = free(0)
    memory: str = "auto"
    cache: str = free("")
    classes: str | File = ""
    correlation: float = 0.95
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_known(self, "name", NAMES)
        require_number(self, "val_examples", "train_examples", "test_examples", "workers", least=0)
        require_number(self, "image_size", "crop_padding", least=0, most=_LARGEST)
        require_number(self, "correlation", least=0, most=1)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        require_number(self, "mean", least=0, most=1)
        require_number(self, "std", above=0, most=1)
        if self.cache:
            paths.path(self.cache, "data.cache")
        require_known(self, "memory", folder.MEMORY)
        if self.name == "image_folder":
            require(self.path, self, "path", f"image_folder has no usual place; set it to a folder. {folder.LAYOUT}")
        else:
            require(not self.classes, self, "classes", f"only image_folder lets you choose classes, not {self.name}")
            only = f"only image_folder lets you choose, not {self.name}"
            require(self.memory == "auto", self, "memory", f"{only}; set it to 'auto'")
        if self.name == "imagenet100" or self.memory == "no":
            sources.check_streamed(self, f"images of {self.name} are streamed")
        if isinstance(self.classes, str) and self.classes not in ("", "imagenet100"):
            is_file = Path(self.classes).expanduser().is_file()
            require(is_file, self, "classes", "take 'imagenet100' or a text file of class folders; no such file")
            object.__setattr__(self, "classes", File(str(Path(self.classes).expanduser())))

    def load(self, seed: int) -> Splits:
        """Read the data set and cut it into training, validation and test split.

        Args:
          seed: of the hold-out and of the subsets.

        Raises:
          FileNotFoundError: the data is missing; the message says how to get it.
          ValueError: a file is damaged, or a setting asks for more than the data set has.
        """
        with section("data"):
            whole = self._source.read(self)
            self._check_classes(whole.classes)
            for split in filter(None, (whole.train, whole.val, whole.test)):
                _check_labels(split.labels, len(whole.classes))
            self._check_counts(len(whole.train), len(whole.val) if whole.val else 0, len(whole.test))
            train, held_out = splits.hold_out(
                whole.train, seed=seed, val_examples=self.val_examples, train_examples=self.train_examples
            )
            test = splits.subset(whole.test, seed=seed, examples=self.test_examples, name="test_examples")
            mean, std = self._checked(whole.statistics, channels=train.image_shape[-1])
        val = whole.val or held_out
        note = (
            f"{whole.note}: {len(train)} train of {len(whole.train)}, {len(val) if val else 0} val, "
            f"{len(test)} test of {len(whole.test)}, images {'x'.join(map(str, train.image_shape))}, seed {seed}"
        )
        return Splits(train, val, test, whole.classes, mean, std, train.image_shape, note)

    def spec(self) -> Spec:
        """What `load` will give, from the settings, the headers of files or a listing of the folder.

        Raises:
          As `load`.
        """
        with section("data"):
            outline = self._source.outline(self)
            self._check_classes(outline.classes)
            self._check_shape(outline)
            self._check_counts(outline.train, outline.val, outline.test)
        return Spec(
            image_shape=outline.image_shape,
            classes=outline.classes,
            examples=self.train_examples or outline.train - self.val_examples,
            val_examples=outline.val or self.val_examples,
            test_examples=self.test_examples or outline.test,
            in_memory=outline.in_memory,
        )

    def statistics(self) -> Statistics:
        """Mean and standard deviation per channel, as `load` gives them; of idx and scenes computed from the images.

        Raises:
          As `load`.
        """
        with section("data"):
            if self.mean and self.std:
                return self._checked((self.mean, self.std), channels=self._source.outline(self).image_shape[-1])
            mean, std = self._source.statistics(self)
            return self._checked((mean, std), channels=len(mean))

    @property
    def _source(self) -> sources.Source:
        return sources.SOURCES[self.name]

    def _check_counts(self, train: int, val: int, test: int) -> None:
        """Raise `SettingError` if the data set has fewer examples than are asked for."""
        problem = f"={self.val_examples}: {self.name} has a validation split with {val} examples; set it to 0"
        if val and self.val_examples:
            raise SettingError("val_examples", problem)
        splits.check_hold_out(train, val_examples=self.val_examples, train_examples=self.train_examples)
        splits.check_subset(test, examples=self.test_examples, name="test_examples")

    def _check_shape(self, outline: sources.Outline) -> None:
        """Raise `SettingError` for images that are too many for the memory, or a border wider than they are."""
        side, whole = min(outline.image_shape[:2]), outline.train + outline.val + outline.test
        require(self.crop_padding <= side, self, "crop_padding", f"the images have a side of {side} pixels")
        size = math.prod(outline.image_shape) * whole if outline.in_memory else 0
        problem = f"{whole} images would take {size >> 30} GiB of memory, at most {_MEMORY >> 30} are taken"
        require(size <= _MEMORY, self, "image_size", problem)

    def _check_classes(self, classes: Sequence[str]) -> None:
        """Raise `SettingError` where there is nothing to tell apart, unless the one class is asked for by name."""
        if len(classes) < 2 and not self.classes:
            at = self.path or self.name
            raise SettingError("name" if not self.path else "path", f"={at!r}: has {len(classes)} class; it takes two")

    def _checked(self, statistics: Statistics, *, channels: int) -> Statistics:
        """The settings' mean and std where they are given, else the data set's."""
        mean, std = self.mean or statistics[0], self.std or statistics[1]
        for name, values in (("mean", mean), ("std", std)):
            require(len(values) == channels, self, name, f"the images have {channels} channels; give as many values")
        if not all(0 < value < math.inf for value in std):
            at = f"of the images is {std}: are they all of one colour? Set data.std"
            raise SettingError("std", f": the standard deviation {at}")
        return mean, std


def _check_labels(labels: np.ndarray, classes: int) -> None:
    """Raise `InputError` for a label outside the classes: a network would learn from it as from any other."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        at = f"example {wrong[0]}"
        raise InputError(f"has a label that none of the {classes} classes has", place=at, value=int(labels[wrong[0]]))
