"""The data sets by name: `DataSet` is the section `data` of a config; it reads a set and cuts it into three splits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from launch.data import idx, splits
from launch.data.splits import Arrays, Split, Splits, Stream
from launch.stages import File, SettingError, free, require, require_known, section, settings

NAMES = ("cifar10", "digits", "fashion_mnist", "idx", "image_folder", "imagenet100", "scenes")

Shape = tuple[int, int, int]  # (h, w, c)
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel, in [0, 1] units

# Of the training images.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FASHION_MNIST = ((0.2860,), (0.3530,))
DIGITS = ((0.3056,), (0.3188,))

DIGITS_SIZE = 16
IMAGENET_SIZE = 224
_DIGITS, _DIGITS_TEST = 1797, 360
_SCENES_TRAIN, _SCENES_TEST = 3000, 2000


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


@dataclass(frozen=True)
class DataSet:
    """A data set by its declared name, and the part of it that a run uses.

    It counts for the key of a stage by these fields: the images are never read for that. `path` counts as it is
    written, so a folder that moves is another data set; TFDS data may move with $TFDS_DATA_DIR.

    Attributes:
      name: one of `NAMES`.
      path: folder of the files or of the prepared TFDS data; "" for the data set's usual place.
      val_examples: held out of the training images, by seed.
      train_examples: a seeded subset of the others; 0 for all.
      test_examples: a seeded subset of the test images; 0 for all.
      image_size: side of the square images delivered, in pixels; 0 for the stored size (digits: 16, imagenet100: 224).
      crop_padding: pixels of zeros on each side before a random crop; 0 for no crop. Of sets in memory.
      flip: flip training images at random.
      workers: Grain worker processes of a streamed set; 0 for threads.
      classes: of image_folder: "" for all class folders by name, "imagenet100", or a text file with the class folders
        to keep, one per line; their order is the order of the labels. A file counts by its content.
      correlation: of scenes: the share of training images, in [0, 1], whose background gives the class away.
      mean, std: per channel, in [0, 1] units; () for the data set's own.

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
    classes: str | File = ""
    correlation: float = 0.95
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_known(self, "name", NAMES)
        for name in ("val_examples", "train_examples", "test_examples", "image_size", "crop_padding", "workers"):
            require(getattr(self, name) >= 0, self, name, "must not be negative")
        require(0 <= self.correlation <= 1, self, "correlation", "must be in [0, 1]")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        require(all(value > 0 for value in self.std), self, "std", "must be positive")
        if self.name == "image_folder":
            require(self.path, self, "path", f"image_folder has no usual place; set it to a folder. {_folder_layout()}")
            require(self.image_size, self, "image_size", "image_folder has no stored size; set it, for example to 224")
        else:
            require(not self.classes, self, "classes", f"only image_folder lets you choose classes, not {self.name}")
        if self.name in ("image_folder", "imagenet100"):
            streamed = f"{self.name} is streamed with random resized crops; set it to 0"
            require(not self.crop_padding, self, "crop_padding", streamed)
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
        read = _SOURCES[self.name].read(self)
        train_all, test_all = len(read.train), len(read.test)
        with section("data"):
            self._check_counts(train_all, len(read.val) if read.val else 0, test_all)
            train, val = splits.hold_out(
                read.train, seed=seed, val_examples=self.val_examples, train_examples=self.train_examples
            )
            test = splits.subset(read.test, seed=seed, examples=self.test_examples, name="test_examples")
            mean, std = self._checked(read.statistics, channels=train.image_shape[-1])
        val = read.val or val
        note = (
            f"{read.note}: {len(train)} train of {train_all}, {len(val) if val else 0} val, "
            f"{len(test)} test of {test_all}, images {'x'.join(map(str, train.image_shape))}, seed {seed}"
        )
        return Splits(train, val, test, read.classes, mean, std, train.image_shape, note)

    def spec(self) -> Spec:
        """What `load` will give, from the settings, the headers of files or a listing of the folder.

        Raises:
          As `load`.
        """
        outline = _SOURCES[self.name].outline(self)
        with section("data"):
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
                return self._checked((self.mean, self.std), channels=_SOURCES[self.name].outline(self).image_shape[-1])
            mean, std = _SOURCES[self.name].statistics(self)
            return self._checked((mean, std), channels=len(mean))

    def _check_counts(self, train: int, val: int, test: int) -> None:
        """Raise `SettingError` if the data set has fewer examples than are asked for."""
        problem = f"={self.val_examples}: {self.name} has a validation split with {val} examples; set it to 0"
        if val and self.val_examples:
            raise SettingError("val_examples", problem)
        splits.check_hold_out(train, val_examples=self.val_examples, train_examples=self.train_examples)
        splits.check_subset(test, examples=self.test_examples, name="test_examples")

    def _checked(self, statistics: Statistics, *, channels: int) -> Statistics:
        """The settings' mean and std where they are given, else the data set's."""
        mean, std = self.mean or statistics[0], self.std or statistics[1]
        for name, values in (("mean", mean), ("std", std)):
            require(len(values) == channels, self, name, f"the images have {channels} channels; give as many values")
        return mean, std


def load(config: Any, *, seed: int) -> Splits:
    """Read a data set; until all callers have a `DataSet`.

    Args:
      config: a section with the fields of `DataSet`.
      seed: see `DataSet.load`.
    """
    return settings(DataSet, {"data": config}, "data").load(seed)


# -- sources: how each data set is read -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """A data set as it was read, before it is cut; `val` only where the set comes with one."""

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    statistics: Statistics
    note: str


@dataclass(frozen=True)
class _Outline:
    """Shape of the images delivered, class names, and the number of examples in each part of the whole set."""

    image_shape: Shape
    classes: tuple[str, ...]
    train: int
    val: int
    test: int
    in_memory: bool = True


@dataclass(frozen=True)
class _Source:
    """How a data set is read: whole, in outline without pixels, and its statistics."""

    read: Callable[[DataSet], _Read]
    outline: Callable[[DataSet], _Outline]
    statistics: Callable[[DataSet], Statistics]


def _digits(data: DataSet) -> _Read:
    """Read scikit-learn's copy of the UCI handwritten digits: 1,797 images of 8 x 8, values 0 to 16."""
    from sklearn.datasets import load_digits  # imports scipy: only where it is asked for

    source: Any = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., None]
    images = splits.resize_all(images, data.image_size or DIGITS_SIZE)
    # The test images are the same for every seed of a run.
    order = np.random.Generator(np.random.Philox(0)).permutation(_DIGITS)
    test, train = np.sort(order[:_DIGITS_TEST]), np.sort(order[_DIGITS_TEST:])
    whole = Arrays(images, source.target.astype(np.int32))
    note = "handwritten digits bundled with scikit-learn"
    return _Read(splits.select(whole, train), None, splits.select(whole, test), _digit_names(), DIGITS, note)


def _digits_outline(data: DataSet) -> _Outline:
    size = data.image_size or DIGITS_SIZE
    return _Outline((size, size, 1), _digit_names(), _DIGITS - _DIGITS_TEST, 0, _DIGITS_TEST)


def _digit_names() -> tuple[str, ...]:
    return tuple(str(k) for k in range(10))


def _idx(data: DataSet) -> _Read:
    train, test, classes, note = idx.load(data.path)
    statistics = splits.moments(_resized(train, data).images)
    return _Read(_resized(train, data), None, _resized(test, data), classes, statistics, note)


def _idx_outline(data: DataSet) -> _Outline:
    shape, classes, train, test = idx.outline(data.path)
    return _Outline(_resized_shape(shape, data), classes, train, 0, test)


def _scenes(data: DataSet) -> _Read:
    from launch.data import scenes

    # The images are the same for every seed of a run.
    whole = scenes.classification(0, train=_SCENES_TRAIN, test=_SCENES_TEST, correlation=data.correlation).splits
    train, test = _resized(whole.train, data), _resized(whole.test, data)
    return _Read(train, None, test, whole.classes, (whole.mean, whole.std), "Scenes, curved or angular shapes")


def _scenes_outline(data: DataSet) -> _Outline:
    from launch.data import scenes
    from launch.data.scenes import world

    size = data.image_size or scenes.IMAGE_SIZE
    return _Outline((size, size, 3), world.FAMILIES, _SCENES_TRAIN, 0, _SCENES_TEST)


def _tfds(statistics: Statistics) -> _Source:
    """A small data set prepared with TFDS."""

    def read(data: DataSet) -> _Read:
        from launch.data import tfds_sets

        train, test, classes, note = tfds_sets.load_arrays(data.name, data.path)
        return _Read(_resized(train, data), None, _resized(test, data), classes, statistics, note)

    def outline(data: DataSet) -> _Outline:
        from launch.data import tfds_sets

        shape, classes, train, test = tfds_sets.outline(data.name, data.path)
        return _Outline(_resized_shape(shape, data), classes, train, 0, test)

    return _Source(read, outline, lambda data: statistics)


def _imagenet100(data: DataSet) -> _Read:
    from launch.data import tfds_sets

    train, test, classes, note = tfds_sets.load_imagenet100(data.path)
    return _Read(_stream(*train, data), None, _stream(*test, data), classes, IMAGENET, note)


def _image_folder(data: DataSet) -> _Read:
    from launch.data import folder

    train, val, test, classes, note = folder.load(data.path, classes=_class_list(data))
    held = _stream(*val, data) if val else None
    return _Read(_stream(*train, data), held, _stream(*test, data), classes, IMAGENET, note)


def _streamed_outline(data: DataSet) -> _Outline:
    """The outline of a streamed set: listing it, or reading its labels, decodes nothing."""
    read = _SOURCES[data.name].read(data)
    val = len(read.val) if read.val else 0
    return _Outline(read.train.image_shape, read.classes, len(read.train), val, len(read.test), in_memory=False)


def _resized(split: Split, data: DataSet) -> Arrays:
    assert isinstance(split, Arrays)
    return Arrays(splits.resize_all(split.images, data.image_size), split.labels)


def _resized_shape(shape: Shape, data: DataSet) -> Shape:
    size = splits.square_side(shape, data.image_size)
    return (size, size, shape[2])


def _stream(source: Any, labels: np.ndarray, data: DataSet) -> Stream:
    return Stream(source, labels, data.image_size or IMAGENET_SIZE, flip=data.flip, workers=data.workers)


def _class_list(data: DataSet) -> str:
    return data.classes.path if isinstance(data.classes, File) else data.classes


def _folder_layout() -> str:
    from launch.data import folder

    return folder.LAYOUT


_SOURCES = {
    "cifar10": _tfds(CIFAR10),
    "digits": _Source(_digits, _digits_outline, lambda data: DIGITS),
    "fashion_mnist": _tfds(FASHION_MNIST),
    "idx": _Source(_idx, _idx_outline, lambda data: _idx(data).statistics),
    "image_folder": _Source(_image_folder, _streamed_outline, lambda data: IMAGENET),
    "imagenet100": _Source(_imagenet100, _streamed_outline, lambda data: IMAGENET),
    "scenes": _Source(_scenes, _scenes_outline, lambda data: _scenes(data).statistics),
}
