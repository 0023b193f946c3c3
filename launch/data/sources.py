"""Where each data set comes from: how it is read, and what is known of it without reading pixels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from absl import logging

from launch.data import folder, idx, splits
from launch.data.splits import Arrays, Split, Stream
from launch.stages import File, require

if TYPE_CHECKING:
    from launch.data.sets import DataSet

Shape = tuple[int, int, int]  # (h, w, c)
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel, in [0, 1] units

# Of the training images.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FASHION_MNIST = ((0.2860,), (0.3530,))
DIGITS = ((0.3056,), (0.3188,))

DIGITS_SIZE = 16
IMAGENET_SIZE = 224


@dataclass(frozen=True)
class WholeSet:
    """A data set as it was read, before a run's splits are cut from it.

    Attributes:
      train: all training examples.
      val: validation examples; None unless the set comes with a validation split.
      test: all test examples.
      classes: class names, by label.
      statistics: of the training images.
      note: what was read from where.
    """

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    statistics: Statistics
    note: str


@dataclass(frozen=True)
class Outline:
    """A whole set without its pixels: shape of the images delivered, class names, examples in each split."""

    image_shape: Shape
    classes: tuple[str, ...]
    train: int
    val: int
    test: int
    in_memory: bool = True


class Source(Protocol):
    """How a data set is read, by the settings of a run."""

    def read(self, data: "DataSet") -> WholeSet:
        """The examples, in memory or ready to be streamed."""
        ...

    def outline(self, data: "DataSet") -> Outline:
        """What `read` would give, from the settings, the headers of files or a listing."""
        ...

    def statistics(self, data: "DataSet") -> Statistics:
        """Those of `read`; it looks at the images only if none were published."""
        ...


class _Digits:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 images of 8 x 8, values 0 to 16."""

    examples, test = 1797, 360
    names = tuple(str(k) for k in range(10))

    def read(self, data: "DataSet") -> WholeSet:
        from sklearn.datasets import load_digits  # imports scipy: only where it is needed

        source: Any = load_digits()
        images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., None]
        images = splits.resize_all(images, data.image_size or DIGITS_SIZE)
        # The test images are the same for every seed of a run.
        order = np.random.Generator(np.random.Philox(0)).permutation(self.examples)
        test, train = np.sort(order[: self.test]), np.sort(order[self.test :])
        whole = Arrays(images, source.target.astype(np.int32))
        note = "handwritten digits bundled with scikit-learn"
        return WholeSet(splits.select(whole, train), None, splits.select(whole, test), self.names, DIGITS, note)

    def outline(self, data: "DataSet") -> Outline:
        size = data.image_size or DIGITS_SIZE
        return Outline((size, size, 1), self.names, self.examples - self.test, 0, self.test)

    def statistics(self, data: "DataSet") -> Statistics:
        return DIGITS


class _Idx:
    """MNIST or Fashion-MNIST in IDX files."""

    def read(self, data: "DataSet") -> WholeSet:
        train, test, classes, note = idx.load(data.path)
        train, test = _resized(train, data), _resized(test, data)
        return WholeSet(train, None, test, classes, splits.moments(train.images), note)

    def outline(self, data: "DataSet") -> Outline:
        shape, classes, train, test = idx.outline(data.path)
        return Outline(_resized_shape(shape, data), classes, train, 0, test)

    def statistics(self, data: "DataSet") -> Statistics:
        return self.read(data).statistics


class _Scenes:
    """Curved and angular shapes of Scenes, the same images for every seed of a run."""

    train, test = 3000, 2000

    def read(self, data: "DataSet") -> WholeSet:
        from launch.data import scenes

        whole = scenes.classification(0, train=self.train, test=self.test, correlation=data.correlation).splits
        train, test = _resized(whole.train, data), _resized(whole.test, data)
        statistics = whole.mean, whole.std  # of the images as they were drawn, before resizing
        return WholeSet(train, None, test, whole.classes, statistics, "Scenes, curved or angular shapes")

    def outline(self, data: "DataSet") -> Outline:
        from launch.data import scenes
        from launch.data.scenes import world

        size = data.image_size or scenes.IMAGE_SIZE
        return Outline((size, size, 3), world.FAMILIES, self.train, 0, self.test)

    def statistics(self, data: "DataSet") -> Statistics:
        return self.read(data).statistics


@dataclass(frozen=True)
class _Tfds:
    """A small data set prepared with TFDS, decoded into memory."""

    published: Statistics

    def read(self, data: "DataSet") -> WholeSet:
        from launch.data import tfds_sets

        train, test, classes, note = tfds_sets.load_arrays(data.name, data.path)
        return WholeSet(_resized(train, data), None, _resized(test, data), classes, self.published, note)

    def outline(self, data: "DataSet") -> Outline:
        from launch.data import tfds_sets

        shape, classes, train, test = tfds_sets.outline(data.name, data.path)
        return Outline(_resized_shape(shape, data), classes, train, 0, test)

    def statistics(self, data: "DataSet") -> Statistics:
        return self.published


class _ImageNet100:
    """A hundred classes of ImageNet as prepared with TFDS, streamed."""

    def read(self, data: "DataSet") -> WholeSet:
        from launch.data import tfds_sets

        train, test, classes, note = tfds_sets.load_imagenet100(data.path)
        return WholeSet(_stream(*train, data), None, _stream(*test, data), classes, IMAGENET, note)

    def outline(self, data: "DataSet") -> Outline:
        whole = self.read(data)  # reads labels; no image is decoded
        return Outline(whole.train.image_shape, whole.classes, len(whole.train), 0, len(whole.test), in_memory=False)

    def statistics(self, data: "DataSet") -> Statistics:
        return IMAGENET


class _ImageFolder:
    """Images in class folders, decoded into memory or streamed."""

    def read(self, data: "DataSet") -> WholeSet:
        parts, classes, note, stay = self._listed(data)
        logging.info("%s: %s: %s", note, "kept in memory" if stay.in_memory else "streamed", stay.reason)
        if stay.in_memory:
            sources = {name: source for name, (source, _) in parts.items()}
            pixels = folder.decoded(sources, stay.size, folder.cache_folder(data.cache))
            read: dict[str, Split] = {name: Arrays(pixels[name], labels) for name, (_, labels) in parts.items()}
        else:
            read = {name: _stream(*part, data, as_stored=True) for name, part in parts.items()}
        return WholeSet(read["train"], read.get("val"), read["test"], classes, IMAGENET, note)

    def outline(self, data: "DataSet") -> Outline:
        parts, classes, _, stay = self._listed(data)
        train, val, test = (len(parts[name][0]) if name in parts else 0 for name in ("train", "val", "test"))
        return Outline((stay.size, stay.size, 3), classes, train, val, test, in_memory=stay.in_memory)

    def statistics(self, data: "DataSet") -> Statistics:
        return IMAGENET

    def _listed(self, data: "DataSet") -> tuple[dict[str, folder.Part], tuple[str, ...], str, folder.Residence]:
        """The files of each split, class names, a note, and whether the images are kept in memory."""
        names = data.classes.path if isinstance(data.classes, File) else data.classes
        train, val, test, classes, note = folder.load(data.path, classes=names)
        parts = {"train": train} | ({"val": val} if val else {}) | {"test": test}
        sources = {name: source for name, (source, _) in parts.items()}
        cache = folder.cache_folder(data.cache)
        stay = folder.residence(sources, image_size=data.image_size, memory=data.memory, cache=cache)
        if not stay.in_memory:
            check_streamed(data, f"these images are streamed ({stay.reason})")
        return parts, classes, note, stay


def check_streamed(data: "DataSet", streamed: str) -> None:
    """Raise `SettingError` for settings that streamed images cannot have; `streamed` says which images they are."""
    require(not data.crop_padding, data, "crop_padding", f"{streamed} with random resized crops; set it to 0")
    if data.name == "image_folder":
        require(data.image_size, data, "image_size", f"{streamed} and have no common size; set it, for example to 224")


def _resized(split: Split, data: "DataSet") -> Arrays:
    assert isinstance(split, Arrays)
    return Arrays(splits.resize_all(split.images, data.image_size), split.labels)


def _resized_shape(shape: Shape, data: "DataSet") -> Shape:
    size = splits.square_side(shape, data.image_size)
    return (size, size, shape[2])


def _stream(source: Any, labels: np.ndarray, data: "DataSet", *, as_stored: bool = False) -> Stream:
    size = data.image_size or IMAGENET_SIZE
    return Stream(source, labels, size, flip=data.flip, workers=data.workers, as_stored=as_stored)


SOURCES: dict[str, Source] = {
    "cifar10": _Tfds(CIFAR10),
    "digits": _Digits(),
    "fashion_mnist": _Tfds(FASHION_MNIST),
    "idx": _Idx(),
    "image_folder": _ImageFolder(),
    "imagenet100": _ImageNet100(),
    "scenes": _Scenes(),
}
