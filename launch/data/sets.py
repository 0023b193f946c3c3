"""The data sets by name: `load(config, seed=...)` reads one and cuts it into train, val and test."""

from collections.abc import Sequence

import numpy as np

from launch.data import idx
from launch.data.splits import Arrays, Split, Splits, Stream, hold_out, moments, resize_all, select, subset

NAMES = ("cifar10", "digits", "fashion_mnist", "idx", "image_folder", "imagenet100", "scenes")

# Per channel, of the training images in [0, 1] units.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FASHION_MNIST = ((0.2860,), (0.3530,))
DIGITS = ((0.3056,), (0.3188,))

DIGITS_SIZE = 16
_DIGITS_TEST = 360


def load(config, *, seed: int) -> Splits:
    """Reads a data set.

    Args:
      config: ConfigDict with `name` (one of `NAMES`), `path` (folder; "" for the data set's default place),
        `val_examples` (held out of the training images, by seed), `train_examples` and `test_examples` (a
        seeded subset; 0 for all), `image_size` (0 for native), `crop_padding`, `flip`, `workers` (Grain
        processes of a stream; 0 for threads). Optional: `mean` and `std`, tuples per channel in [0, 1] units,
        in place of the data set's own; for image_folder `classes`: "" for all folders, "imagenet100", or a
        text file of class folders, one a line; for scenes `correlation`: the share of the training images, 0.95
        by default, whose background gives the class away (see `launch.data.scenes.classification`).
      seed: of the hold-out and of the subsets.

    Returns:
      Splits.

    Raises:
      FileNotFoundError: data that are not there, with how to get them.
      ValueError: an unknown name, a file that is damaged, or sizes that do not fit.
    """
    loaders = {
        "cifar10": lambda: _tfds_arrays(config, CIFAR10),
        "digits": lambda: _digits(config),
        "fashion_mnist": lambda: _tfds_arrays(config, FASHION_MNIST),
        "idx": lambda: _idx(config),
        "image_folder": lambda: _image_folder(config),
        "imagenet100": lambda: _imagenet100(config),
        "scenes": lambda: _scenes(config),
    }
    if config.name not in loaders:
        raise ValueError(f"no data set {config.name!r}; there are: {', '.join(NAMES)}")
    _check(config)
    train, val, test, classes, (mean, std), note = loaders[config.name]()
    train_all, test_all = len(train), len(test)
    if val is None:
        train, val = hold_out(train, seed=seed, val_examples=config.val_examples, train_examples=config.train_examples)
    elif config.val_examples:
        raise ValueError(
            f"{config.name} brings a validation split of its own ({len(val)} examples): set val_examples=0, "
            f"not {config.val_examples}"
        )
    else:
        train, _ = hold_out(train, seed=seed, val_examples=0, train_examples=config.train_examples)
    test = subset(test, seed=seed, examples=config.test_examples, name="test_examples")
    mean, std = _statistics(config, mean, std, channels=train.image_shape[-1])
    note = (
        f"{note}: {len(train)} train of {train_all}, {len(val) if val else 0} val, "
        f"{len(test)} test of {test_all}, images {'x'.join(map(str, train.image_shape))}, seed {seed}"
    )
    return Splits(train, val, test, tuple(classes), mean, std, train.image_shape, note)


Loaded = tuple[Split, Split | None, Split, Sequence[str], tuple[tuple[float, ...], tuple[float, ...]], str]


def _digits(config) -> Loaded:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 images of 8 x 8, values 0 to 16."""
    from sklearn.datasets import load_digits  # scipy and all: only where it is asked for

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    images = resize_all(images, config.image_size or DIGITS_SIZE)
    labels = data.target.astype(np.int32)
    # The test images are the same whatever the seed of a run is.
    order = np.random.Generator(np.random.Philox(0)).permutation(len(labels))
    test, train = np.sort(order[:_DIGITS_TEST]), np.sort(order[_DIGITS_TEST:])
    whole = Arrays(images, labels)
    classes = [str(k) for k in range(10)]
    note = "handwritten digits bundled with scikit-learn"
    return select(whole, train), None, select(whole, test), classes, DIGITS, note


def _idx(config) -> Loaded:
    train, test, classes, note = idx.load(config.path)
    train, test = _resized(train, config), _resized(test, config)
    return train, None, test, classes, moments(train.images), note


def _tfds_arrays(config, statistics) -> Loaded:
    from launch.data import tfds_sets

    train, test, classes, note = tfds_sets.load_arrays(config.name, config.path)
    return _resized(train, config), None, _resized(test, config), classes, statistics, note


def _imagenet100(config) -> Loaded:
    from launch.data import tfds_sets

    train, test, classes, note = tfds_sets.load_imagenet100(config.path)
    return _stream(*train, config), None, _stream(*test, config), classes, IMAGENET, note


def _image_folder(config) -> Loaded:
    from launch.data import folder

    if not config.image_size:
        raise ValueError("image_folder has no native size: set image_size, for example 224")
    train, val, test, classes, note = folder.load(config.path, classes=config.get("classes", ""))
    held = _stream(*val, config) if val else None
    return _stream(*train, config), held, _stream(*test, config), classes, IMAGENET, note


def _scenes(config) -> Loaded:
    from launch.data import scenes

    # The images are the same whatever the seed of a run is.
    found = scenes.classification(0, correlation=config.get("correlation", 0.95)).splits
    train, test = _resized(found.train, config), _resized(found.test, config)
    return train, None, test, found.classes, (found.mean, found.std), "Scenes, curved or angular shapes"


def _resized(split: Arrays, config) -> Arrays:
    return Arrays(resize_all(split.images, config.image_size), split.labels)


def _stream(source, labels: np.ndarray, config) -> Stream:
    return Stream(source, labels, config.image_size or 224, flip=config.flip, workers=config.workers)


def _check(config):
    if config.image_size < 0 or config.crop_padding < 0 or config.workers < 0:
        raise ValueError(
            f"image_size={config.image_size}, crop_padding={config.crop_padding}, workers={config.workers}: "
            "none may be negative"
        )
    if config.name in ("image_folder", "imagenet100") and config.crop_padding:
        raise ValueError(
            f"crop_padding={config.crop_padding} is for sets held on the device; {config.name} is streamed "
            "with random resized crops: set crop_padding=0"
        )


def _statistics(config, mean, std, *, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The config's mean and std where it gives them, else the data set's."""
    chosen = []
    for name, own in (("mean", mean), ("std", std)):
        given = config.get(name, None)
        values = tuple(float(v) for v in (given or own))
        if len(values) != channels or (name == "std" and min(values) <= 0):
            raise ValueError(f"{name}={values} must have {channels} values{', all positive' * (name == 'std')}")
        chosen.append(values)
    return tuple(chosen)
