"""Data prepared with TensorFlow Datasets (TFDS), read without TensorFlow from array_record files."""

import functools
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from launch.data.folder import cache_folder, class_list
from launch.data.idx import FASHION_CLASSES
from launch.data.images import decoding_threads, in_chunks
from launch.data.splits import Arrays, Rows
from launch.files import writing
from launch.reading import InputError, images, printable

VERSIONS = {
    "celeb_a": "2.1.0",
    "cifar10": "3.0.2",
    "coco_captions/2014": "1.1.0",
    "fashion_mnist": "3.0.1",
    "imagenet2012": "5.1.0",
}
# What `outline` gives of the small ones: image shape, class names, training and test examples.
PUBLISHED: dict[str, tuple[tuple[int, int, int], tuple[str, ...], int, int]] = {
    "cifar10": (
        (32, 32, 3),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        *(50_000, 10_000),
    ),
    "fashion_mnist": ((28, 28, 1), FASHION_CLASSES, 60_000, 10_000),
}
Part = tuple[Rows, np.ndarray]  # images of mode RGB, labels int32 (n,)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CHUNK = 256  # records a thread reads at once

log = logging.getLogger(__name__)


class Pick(Protocol):
    """What to take from a record."""

    def __call__(self, record: dict[str, Any], /) -> Any: ...


class KeepRecords(Protocol):
    """What to do with a chunk of records, of which the first has index `start`."""

    def __call__(self, start: int, records: list[dict[str, Any]], /) -> None: ...


class Records:
    """The images of a prepared split, as PIL images of mode RGB.

    It is opened on first use, so that a worker process receives only the path.
    """

    def __init__(self, directory: Path, split: str):
        self.directory, self.split = str(directory), split

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> Image.Image:
        record = _read(self._source, [index], f"{self.split} split in {self.directory}")[0]
        return images.decode(record["image"], alpha="drop", name=self.describe(index, record))

    def describe(self, index: int, record: dict) -> str:
        """Name a record in an error: its number, split, folder and, if it has one, its file's name."""
        file = record.get("file_name", b"")
        file = f" ({printable(file)})" if file else ""
        return f"record {index}{file} of split {self.split!r} in {self.directory}"

    @functools.cached_property
    def _source(self):
        return _open(self.directory, self.split)

    def __getstate__(self):
        return {"directory": self.directory, "split": self.split}


def load_arrays(name: str, path: str = "") -> tuple[Arrays, Arrays, tuple[str, ...], str]:
    """Decode a prepared data set of small images into memory.

    Args:
      name: cifar10 or fashion_mnist.
      path: TFDS data folder; "" for $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
      (train, test, class names, note).

    Raises:
      FileNotFoundError: the data set is not prepared there in a suitable version and format.
      ValueError: a record cannot be read or decoded; the error names it.
    """
    directory = prepared(name, path)
    info: Any = _builder(directory).info  # TFDS types features more loosely than they are
    mode = "L" if info.features["image"].shape[-1] == 1 else "RGB"
    train, test = (_decode_all(Records(directory, split), mode) for split in ("train", "test"))
    return train, test, tuple(info.features["label"].names), f"{name} (TFDS) from {directory}"


def outline(name: str, path: str = "") -> tuple[tuple[int, int, int], tuple[str, ...], int, int]:
    """The metadata of a prepared data set of small images; as published where nothing is prepared.

    Args:
      name: cifar10 or fashion_mnist.
      path: as for `load_arrays`.

    Returns:
      (image shape, class names, training examples, test examples).

    Raises:
      FileNotFoundError: there is another version, or one in another format.
    """
    if not _root(path).joinpath(name).is_dir():  # `load_arrays` will say so; a plan needs no image
        return PUBLISHED[name]
    info: Any = _builder(prepared(name, path)).info
    train, test = (info.splits[split].num_examples for split in ("train", "test"))
    return info.features["image"].shape, tuple(info.features["label"].names), train, test


def load_imagenet100(path: str = "") -> tuple[Part, Part, tuple[str, ...], str]:
    """Open ImageNet (ILSVRC 2012) restricted to the classes of imagenet100_wnids.txt, labelled 0 to 99 in that order.

    The labels of all records are read once and cached; images are decoded on access.

    Args:
      path: TFDS data folder; "" for $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
      (train, test, WordNet ids, note); a part is (source of PIL images, labels int32 (n,)), and test is
      ImageNet's validation split.

    Raises:
      As `load_arrays`.
    """
    directory = prepared("imagenet2012", path)
    info: Any = _builder(directory).info
    names = info.features["label"].names
    classes = class_list("imagenet100")
    missing = [name for name in classes if name not in names]
    if missing:
        raise ValueError(f"{directory} lacks {len(missing)} of the 100 classes, such as {missing[0]}")
    relabel = np.full(len(names), -1, np.int32)
    relabel[[names.index(name) for name in classes]] = np.arange(len(classes))
    parts = []
    for split in ("train", "validation"):
        records = Records(directory, split)
        stored = label_index(records)
        _check_labels(stored, len(names), records)
        labels = relabel[stored]
        rows = np.flatnonzero(labels >= 0)
        if not len(rows):
            raise ValueError(f"split {split!r} in {directory} has no images of the 100 classes")
        parts.append((Rows(records, rows), labels[rows]))
    return parts[0], parts[1], classes, f"ImageNet-100 (TFDS imagenet2012) from {directory}"


def scan(records: Records, pick: Pick, *, rows: Sequence[int] | None = None) -> list[Any]:
    """Apply `pick` to every record, or to `rows`, in order; images are not decoded.

    Raises:
      ValueError: a record cannot be read.
    """
    rows = range(len(records)) if rows is None else [int(row) for row in rows]
    where = f"{records.split} split in {records.directory}"
    chunks = [list(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
    with ThreadPoolExecutor(decoding_threads()) as pool:
        picked = pool.map(lambda chunk: [pick(record) for record in _read(records._source, chunk, where)], chunks)
        return [value for values in picked for value in values]


def prepared(name: str, path: str = "") -> Path:
    """DATA_DIR/name/version of a prepared data set: the version of `VERSIONS`, else the newest with the same major."""
    root = _root(path)
    version = VERSIONS[name]
    home = root / name
    versions = [p for p in home.iterdir() if _VERSION.fullmatch(p.name)] if home.is_dir() else []
    present = sorted(p.name for p in versions if (p / "dataset_info.json").is_file())
    same = [v for v in present if v.split(".")[0] == version.split(".")[0]]
    if not same:
        found = f"versions found: {', '.join(present)}" if present else "nothing prepared found"
        raise FileNotFoundError(f"{name} {version} is not prepared in {home} ({found}). {_how(name, root)}")
    best = version if version in same else max(same, key=lambda v: tuple(map(int, v.split("."))))
    _check_format(home / best, name, root)
    return home / best


def label_index(records: Records) -> np.ndarray:
    """Labels of all records, int64 (n,), read without decoding images and cached as .npy in the cache folder.

    The first time, the whole split is read from disk, and again when its files have changed.
    """
    builder = _builder(records.directory)
    n = len(records)
    place = _fingerprint(Path(records.directory).resolve())
    file = cache_folder() / f"labels-{builder.name}-{builder.version}-{records.split}-{n}-{place}.npy"
    if file.is_file():
        try:
            labels = np.load(file, allow_pickle=False)
            whole = file.read_bytes().endswith(_digest(labels))
            if labels.shape == (n,) and labels.dtype == np.int64 and whole:
                return labels
            log.warning("%s has shape %s or is damaged, not (%d,): reading the labels again", file, labels.shape, n)
        except (ValueError, EOFError, OSError) as error:
            log.warning("%s cannot be read (%s): reading the labels again", file, error)
    labels = np.empty(n, np.int64)

    def keep(start: int, chunk: list[dict[str, Any]], /) -> None:
        labels[start : start + len(chunk)] = [record["label"] for record in chunk]

    _scan(records, keep, f"labels of {builder.name} {records.split}")
    _save(file, labels)
    return labels


def _decode_all(records: Records, mode: str) -> Arrays:
    n = len(records)
    info: Any = _builder(records.directory).info
    shape = info.features["image"].shape
    pixels, labels = np.empty((n, *shape), np.uint8), np.empty(n, np.int32)

    def keep(start: int, chunk: list[dict[str, Any]], /) -> None:
        for index, record in enumerate(chunk, start):
            name = records.describe(index, record)
            image = np.asarray(images.decode(record["image"], alpha="drop", name=name).convert(mode))
            if image.shape[:2] != shape[:2]:
                raise ValueError(f"{name} is {image.shape[:2]} pixels, not {shape[:2]}")
            pixels[index], labels[index] = image.reshape(shape), record["label"]

    _scan(records, keep, f"{Path(records.directory).parent.name} {records.split}")
    _check_labels(labels, info.features["label"].num_classes, records)
    return Arrays(pixels, labels)


def _check_labels(labels: np.ndarray, classes: int, records: Records) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        place = f"record {wrong[0]} of split {records.split!r}"
        reason = f"label {labels[wrong[0]]} is of no class; there are 0 to {classes - 1}"
        raise InputError(reason, file=records.directory, place=place)


def _scan(records: Records, keep: KeepRecords, title: str) -> None:
    """Call `keep` on chunks of all records, in threads."""
    n, where = len(records), f"{records.split} split in {records.directory}"

    def work(chunk: range) -> None:
        keep(chunk.start, _read(records._source, list(chunk), where))

    in_chunks(n, work, title, size=_CHUNK)


def _builder(directory: str | Path, **options: Any):
    """The builder of a prepared data set, from its metadata."""
    try:
        return tfds.builder_from_directory(directory, **options)
    except Exception as error:  # TFDS reads JSON and protobuf messages, whose parsers raise errors of their own
        reason = f"its metadata cannot be read ({type(error).__name__}: {error})"
        raise InputError(reason, file=directory, remedy="copy or prepare it again") from error


def _open(directory: str, split: str):
    builder: Any = _builder(directory, file_format="array_record")
    if split not in builder.info.splits:
        raise ValueError(f"{directory} has no split {split!r}, only {', '.join(builder.info.splits)}")
    # Pillow decodes, not TFDS: then errors name the damaged image, and reading labels decodes nothing.
    return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def _read(source, indices: list[int], where: str) -> list[dict]:
    try:
        return source.__getitems__(indices)
    except Exception as error:  # array_record's readers raise RuntimeError, IndexError, and protobuf its own
        raise ValueError(
            f"cannot read records {indices[0]} to {indices[-1]} of {where}: {type(error).__name__}: {error}. "
            "Copy or prepare it again"
        ) from error


def _root(path: str) -> Path:
    return Path(path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _check_format(directory: Path, name: str, root: Path) -> None:
    if not any(directory.glob("*.array_record*")):
        raise FileNotFoundError(f"{directory} has no array_record files (another format?). {_how(name, root)}")


def _how(name: str, root: Path) -> str:
    by_hand = " (with ImageNet's archives in DATA_DIR/downloads/manual)" if name == "imagenet2012" else ""
    return (
        f"Prepare it once on a machine with TensorFlow{by_hand}: "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}:{VERSIONS[name]}', data_dir='{root}', file_format='array_record')"
        f'.download_and_prepare()" - then copy {name}/ here; '
        "data.path or $TFDS_DATA_DIR is the folder that contains it."
    )


def _fingerprint(directory: Path) -> str:
    """Changes with the place of a prepared data set, and with the names, sizes and times of change of its files."""
    total = hashlib.sha256(str(directory).encode())
    for file in sorted(directory.glob("*.array_record*")):
        status = file.stat()
        total.update(f"\n{file.name}\0{status.st_size} {status.st_mtime_ns}".encode())
    return total.hexdigest()[:12]


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(array.tobytes()).digest()


def _save(file: Path, array: np.ndarray) -> None:
    """Write an array through a temporary file, so that no reader sees half of it; a failure is only logged."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing(file) as stream:
            np.save(stream, array)
            stream.write(_digest(array))
    except OSError as error:
        log.warning("cannot keep %s (%s): the labels will be read again next time", file, error)
