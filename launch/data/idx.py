"""MNIST and Fashion-MNIST from a folder of IDX files (LeCun et al. 1998; Xiao et al. 2017), plain or gzipped.

An IDX file is a big-endian header - two zero bytes, a type code (8 for uint8), the number of dimensions, one
uint32 a dimension - and then the values.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from launch.data.splits import Arrays

DEFAULT_FOLDER = "/usr/share/datasets/fashion-mnist"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# CRC-32 of the 60,000 training labels: the files carry no class names, and MNIST's have the same sizes.
_FASHION_LABELS = 0x2ED6E46A


def available(folder: str | Path = "") -> bool:
    """Whether all four files are in the folder ("" for where Debian's dataset-fashion-mnist puts them)."""
    folder = Path(folder or DEFAULT_FOLDER).expanduser()
    return all(_find(folder, part, kind) for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def load(folder: str | Path = "") -> tuple[Arrays, Arrays, tuple[str, ...], str]:
    """Reads the four files.

    Returns:
      (train, test, classes, note), images of shape (n, h, w, 1).

    Raises:
      FileNotFoundError: folder or file missing.
      ValueError: a file that is truncated, too long, not IDX, or does not fit its companion.
    """
    folder = Path(folder or DEFAULT_FOLDER).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with IDX files. {_HOW}")
    train, test = _read_pair(folder, "train"), _read_pair(folder, "t10k")
    if train.image_shape != test.image_shape:
        raise ValueError(f"{folder}: training images are {train.image_shape}, test images {test.image_shape}")
    count = int(max(train.labels.max(), test.labels.max())) + 1
    fashion = zlib.crc32(train.labels.astype(np.uint8).tobytes()) == _FASHION_LABELS
    classes = FASHION_CLASSES if fashion else tuple(str(k) for k in range(count))
    return train, test, classes, f"{'Fashion-MNIST' if fashion else 'IDX files'} from {folder}"


def read(path: str | Path, *, dims: int) -> np.ndarray:
    """Reads one IDX file of uint8 values with `dims` dimensions.

    Raises:
      ValueError: names the file and what was expected and found.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or not a gzip file ({error}); fetch it again. {_HOW}") from error
    header = 4 + 4 * dims
    magic = bytes((0, 0, 8, dims))
    if data[:4] != magic:
        raise ValueError(
            f"{path} is not an IDX file of uint8 with {dims} dimensions: it begins "
            f"{data[:4].hex(' ') or '(empty)'}, expected {magic.hex(' ')}"
        )
    if len(data) < header:
        raise ValueError(f"{path} is truncated: {len(data)} bytes, the header alone has {header}")
    shape = struct.unpack(f">{dims}I", data[4:header])
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise ValueError(
            f"{path} is {'truncated' if len(data) < expected else 'too long'}: its header says {shape}, "
            f"{expected} bytes, found {len(data)}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


_HOW = (
    "Install Fashion-MNIST with `apt-get install dataset-fashion-mnist`, or set config.path to a folder with "
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte "
    "(.gz or not)."
)


def _read_pair(folder: Path, part: str) -> Arrays:
    paths = {}
    for kind in ("images-idx3", "labels-idx1"):
        paths[kind] = _find(folder, part, kind)
        if paths[kind] is None:
            raise FileNotFoundError(f"no file {folder / f'{part}-{kind}-ubyte'} or the same with .gz. {_HOW}")
    images = read(paths["images-idx3"], dims=3)
    labels = read(paths["labels-idx1"], dims=1)
    if len(images) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"{paths['images-idx3']} has {len(images)} images, {paths['labels-idx1']} has {len(labels)} labels"
        )
    return Arrays(images[..., None], labels.astype(np.int32))


def _find(folder: Path, part: str, kind: str) -> Path | None:
    names = (f"{part}-{kind}-ubyte", f"{part}-{kind}-ubyte.gz", f"{part}-{kind.replace('-', '.')}-ubyte")
    return next((folder / name for name in names if (folder / name).is_file()), None)
