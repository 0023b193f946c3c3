"""MNIST and Fashion-MNIST from a folder of IDX files (LeCun et al. 1998; Xiao et al. 2017), plain or gzipped.

An IDX file is a big-endian header - two zero bytes, a type code (8 for uint8), the number of dimensions, one uint32
per dimension - followed by the values.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from launch.data.splits import Arrays
from launch.reading import InputError
from launch.reading.errors import of_os

DEFAULT_FOLDER = "/usr/share/datasets/fashion-mnist"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# CRC-32 of the 60,000 training labels: the files carry no class names, and MNIST's have the same sizes.
_FASHION_LABELS = 0x2ED6E46A


def available(folder: str | Path = "") -> bool:
    """Whether all four files are in the folder; "" for that of Debian's dataset-fashion-mnist."""
    folder = Path(folder or DEFAULT_FOLDER).expanduser()
    return all(_find(folder, part, kind) for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def load(folder: str | Path = "") -> tuple[Arrays, Arrays, tuple[str, ...], str]:
    """Read the four files.

    Returns:
      (train, test, classes, note), images of shape (n, h, w, 1).

    Raises:
      FileNotFoundError: the folder or a file is missing.
      ValueError: a file is truncated, too long or not IDX, or does not fit its companion.
    """
    folder = _folder(folder)
    train, test = _read_pair(folder, "train"), _read_pair(folder, "t10k")
    _check_shapes(folder, train.image_shape, test.image_shape)
    classes = _classes(folder, train.labels, test.labels)
    return train, test, classes, f"{'Fashion-MNIST' if classes == FASHION_CLASSES else 'IDX files'} from {folder}"


def outline(folder: str | Path = "") -> tuple[tuple[int, int, int], tuple[str, ...], int, int]:
    """Read the headers of the images and the labels, no pixels.

    Returns:
      (image shape (h, w, 1), class names, training examples, test examples).

    Raises:
      As `load`.
    """
    folder = _folder(folder)
    shapes, labels = [], []
    for part in ("train", "t10k"):
        images_path, labels_path = _pair(folder, part)
        shapes.append(_read_header(images_path, dims=3))
        labels.append(read(labels_path, dims=1))
        _check_pair(images_path, shapes[-1][0], labels_path, len(labels[-1]))
    (train, *size), (test, *test_size) = shapes
    _check_shapes(folder, (*size, 1), (*test_size, 1))
    return (*size, 1), _classes(folder, *labels), train, test


def read(path: str | Path, *, dims: int) -> np.ndarray:
    """Read one IDX file of uint8 values with `dims` dimensions.

    Raises:
      ValueError: the file is damaged; the message names it, what was expected and what it has.
    """
    path = Path(path)
    data = _content(path)
    shape = _shape(path, data, dims)
    header = 4 + 4 * dims
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise ValueError(
            f"{path} is {'truncated' if len(data) < expected else 'too long'}: its header says {shape}, "
            f"{expected} bytes, found {len(data)}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


_HOW = (
    "Install Fashion-MNIST with `apt-get install dataset-fashion-mnist`, or set data.path to a folder with "
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte "
    "(.gz or not)."
)


def _folder(folder: str | Path) -> Path:
    path = Path(folder or DEFAULT_FOLDER).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path} with IDX files. {_HOW}")
    return path


def _content(path: Path, size: int = -1) -> bytes:
    """The first `size` bytes of a file, unzipped; all by default."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or not a gzip file ({error}); fetch it again. {_HOW}") from error
    except OSError as error:
        raise of_os(error, path) from error


def _read_header(path: Path, *, dims: int) -> tuple[int, ...]:
    return _shape(path, _content(path, 4 + 4 * dims), dims)


def _shape(path: Path, data: bytes, dims: int) -> tuple[int, ...]:
    """The shape that the header at the beginning of `data` gives."""
    header = 4 + 4 * dims
    magic = bytes((0, 0, 8, dims))
    if data[:4] != magic:
        raise ValueError(
            f"{path} is not an IDX file of uint8 with {dims} dimensions: it begins "
            f"{data[:4].hex(' ') or '(empty)'}, expected {magic.hex(' ')}"
        )
    if len(data) < header:
        raise ValueError(f"{path} is truncated: {len(data)} bytes, the header alone has {header}")
    return struct.unpack(f">{dims}I", data[4:header])


def _read_pair(folder: Path, part: str) -> Arrays:
    images_path, labels_path = _pair(folder, part)
    images, labels = read(images_path, dims=3), read(labels_path, dims=1)
    _check_pair(images_path, len(images), labels_path, len(labels))
    return Arrays(images[..., None], labels.astype(np.int32))


def _pair(folder: Path, part: str) -> tuple[Path, Path]:
    """The files with images and labels of a part."""
    paths = []
    for kind in ("images-idx3", "labels-idx1"):
        path = _find(folder, part, kind)
        if path is None:
            raise FileNotFoundError(f"no file {folder / f'{part}-{kind}-ubyte'} or the same with .gz. {_HOW}")
        paths.append(path)
    return paths[0], paths[1]


def _check_pair(images_path: Path, images: int, labels_path: Path, labels: int) -> None:
    if images != labels or labels == 0:
        raise ValueError(f"{images_path} has {images} images, {labels_path} has {labels} labels")


def _check_shapes(folder: Path, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    if train != test or 0 in train:
        raise ValueError(f"{folder}: training images are {train}, test images {test}; one size above 0 is needed")


def _classes(folder: Path, train: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """The names of the classes, which the training labels declare: from 0 on, each at least once.

    Raises:
      InputError: the training labels leave a class out, or a test label is not among theirs.
    """
    present = np.unique(train)
    if (gap := np.flatnonzero(present != np.arange(len(present)))).size:
        label = int(present[gap[0]])
        raise _wrong_label(folder, "train", train, label, f"the classes are 0 to {gap[0] - 1}, {gap[0]} has no example")
    if (beyond := np.flatnonzero(test >= len(present))).size:
        most = f"the training labels are 0 to {len(present) - 1}"
        raise _wrong_label(folder, "t10k", test, int(test[beyond[0]]), most)
    if zlib.crc32(train.astype(np.uint8).tobytes()) == _FASHION_LABELS:
        return FASHION_CLASSES
    return tuple(map(str, range(len(present))))


def _wrong_label(folder: Path, part: str, labels: np.ndarray, label: int, why: str) -> InputError:
    record = int(np.flatnonzero(labels == label)[0])
    file = _find(folder, part, "labels-idx1")
    return InputError(
        f"label {label} is of no class: {why}",
        file=file,
        place=f"record {record}",
        remedy="labels count the classes from 0",
    )


def _find(folder: Path, part: str, kind: str) -> Path | None:
    names = (f"{part}-{kind}-ubyte", f"{part}-{kind}-ubyte.gz", f"{part}-{kind.replace('-', '.')}-ubyte")
    return next((folder / name for name in names if (folder / name).is_file()), None)
