"""A folder of images sorted into class folders, as torchvision's ImageFolder lays it out; streamed or kept in memory.

Images that are kept in memory are decoded once and cached on disk, in one folder per content:

    CACHE/images-5d0c7b2a91f4e3d0/tree.json, 0.npy, …    by `launch.files.save_tree`

where the name is a hash of the listing (names, sizes and times of change of all files, the content of a few), of the
image size and of the versions of this decoder and of Pillow. A cache folder may be deleted at any time.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from absl import logging
from PIL import Image

from launch import files
from launch.data.images import evaluation_view, in_chunks
from launch.data.splits import square_side
from launch.reading import InputError, MissingInput, folders, images, lists, paths, printable
from launch.stages import SettingError

EXTENSIONS = folders.EXTENSIONS
LAYOUT = "Expected layout: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg, or ROOT/val for ROOT/test."
MEMORY = ("auto", "yes", "no")
MEMORY_LIMIT = 2 << 30  # bytes: decoded sets above it are streamed unless memory="yes"
_SAMPLED, _SAMPLE = 8, 1 << 16  # images of a split whose content counts in the name of a cache, bytes of each
_DECODER = 2  # counted up when `decoded` gives other pixels for the same files

Part = tuple["Files", np.ndarray]


class Files:
    """Image files, read as PIL images of mode RGB."""

    def __init__(self, root: Path, names: Sequence[str]):
        # An array of strings: a list of a million is slow to pickle for the worker processes.
        self.root, self.names = str(root), np.array(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> Image.Image:
        return images.decode(self.path(index), alpha="drop")

    def path(self, index: int) -> str:
        """The path of one file."""
        return os.path.join(self.root, self.names[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of one image, from the header of its file."""
        try:
            with Image.open(self.path(index)) as image:
                return image.size
        except Exception:  # the decoder will report what is wrong with the file
            return self[index].size


def load(path: str | Path, *, classes: str = "") -> tuple[Part, Part | None, Part, tuple[str, ...], str]:
    """List a folder of images.

    Args:
      path: ROOT. The test split is ROOT/test, or ROOT/val without it; with both, ROOT/val is for validation.
      classes: "" for all class folders by name, "imagenet100", or a text file with the class folders to keep, one per
        line; their order is the order of the labels.

    Returns:
      (train, val or None, test, class names, note); a part is (source of PIL images, labels int32 (n,)).

    Raises:
      MissingInput: the folder, the class list or a class folder is missing, or a class has no images.
      InputError: fewer than two classes, a class list that repeats a name, an image of two classes, a class folder of
        two splits.
    """
    if not path:
        raise MissingInput(f"image_folder has no default place: set data.path. {LAYOUT}")
    root = paths.path(path, "data.path")
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in parts or len(parts) == 1:
        present = ", ".join(parts) or ("none of these folders" if root.is_dir() else "no such folder")
        raise MissingInput(f"{root} is not a folder of images by split and class ({present}). {LAYOUT}")
    names = class_list(classes) if classes else folders.subfolders(parts["train"])
    if not names:
        raise MissingInput(f"no class folders in {parts['train']}. {LAYOUT}")
    if len(names) == 1 and not classes:
        raise InputError(
            f"has one class folder, {names[0]!r}; at least two are needed",
            file=parts["train"],
            remedy="name it in the file data.classes if one class is meant",
        )
    for folder in parts.values():
        _check_classes(folder, names, complete=not classes)
    _check_apart(parts, names)
    read = {name: _list_images(folder, names) for name, folder in parts.items()}
    if "test" not in read:
        return read["train"], None, read["val"], names, f"images in {root} (test: its val)"
    return read["train"], read.get("val"), read["test"], names, f"images in {root}"


@dataclass(frozen=True)
class Residence:
    """Where the images of a folder stay while they are used.

    Attributes:
      in_memory: decoded, all of one size; otherwise they are streamed.
      size: side of the square images delivered, in pixels.
      reason: why, for the log.
    """

    in_memory: bool
    size: int
    reason: str


def residence(parts: Mapping[str, Files], *, image_size: int, memory: str, cache: Path) -> Residence:
    """Decide whether images are kept in memory: where all have one size and take at most `MEMORY_LIMIT` bytes.

    Args:
      parts: the files of each split.
      image_size: side of the images delivered; 0 for the stored size.
      memory: "auto"; "yes" to keep them whatever they take; "no" to stream them.
      cache: as for `decoded`; cached images need no look at the files' headers.

    Raises:
      SettingError: images to be kept differ in size, or the size is 0 and the images have no common one.
      ValueError: a file is not an image.
    """
    if memory == "no":
        return Residence(False, image_size, "as data.memory='no' says")
    first = next(iter(parts.values()))
    width, height = first.size(0)
    count = sum(map(len, parts.values()))
    size = square_side((height, width), image_size)
    total = count * size * size * 3
    taken = f"{count} images of {size}x{size} pixels take {total / 2**20:.0f} MiB"
    if memory == "auto" and total > MEMORY_LIMIT:
        return Residence(False, image_size, f"{taken}, more than {MEMORY_LIMIT / 2**20:.0f}")
    odd = None
    if not (_cached_at(parts, size, cache) / "tree.json").exists():
        odd = next((s.path(i) for s in parts.values() for i in range(len(s)) if s.size(i) != (width, height)), None)
    if odd is None:
        return Residence(True, size, taken)
    differ = f"images differ in size: {first.path(0)} has {width}x{height} pixels, {odd} has another"
    if memory == "yes":
        raise SettingError("memory", f"='yes': {differ}; set it to 'auto' or 'no' to stream them")
    return Residence(False, image_size, differ)


def decoded(parts: Mapping[str, Files], size: int, cache: Path) -> dict[str, np.ndarray]:
    """Decode all images, or read them from the cache.

    Args:
      parts: the files of each split.
      size: side of the images delivered; images of another size take the centre crop of `images`.
      cache: the folder of all caches.

    Returns:
      For each split uint8 (n, size, size, 3), in the order of the files; memory-mapped from the cache.

    Raises:
      ValueError: a file cannot be decoded; the error names it.
    """
    place = _cached_at(parts, size, cache)
    shapes = {name: (len(source), size, size, 3) for name, source in parts.items()}
    if place.exists():
        try:
            return _read_cache(place, shapes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logging.warning("the cached images in %s cannot be used (%s): decoding again", place, error)
    arrays = {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}
    for name, source in parts.items():
        _decode_into(arrays[name], source, f"decoding {name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.sweep_leftovers(place.parent)
        files.save_tree(place, {"place": place.name, "images": arrays})
        logging.info("decoded images are cached in %s", place)
    except OSError as error:
        if not (place / "tree.json").exists():  # else another process was faster
            logging.warning("cannot cache the images in %s (%s): they will be decoded again next time", place, error)
    return arrays


def cache_folder(path: str = "") -> Path:
    """The folder of all caches: `path`, by default $XDG_CACHE_HOME/alignax or ~/.cache/alignax."""
    if path:
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alignax"


def _cached_at(parts: Mapping[str, Files], size: int, cache: Path) -> Path:
    total = hashlib.sha256(f"{_DECODER} {PIL.__version__} {size}".encode())
    for name, source in parts.items():
        for index, file in enumerate(source.names):
            status = os.stat(source.path(index))
            total.update(os.fsencode(f"\n{name}/{file}\0{status.st_size} {status.st_mtime_ns}"))  # not all are UTF-8
        # Two sets of raw images may agree in names and sizes, and in times too if they come from archives.
        for index in np.linspace(0, len(source) - 1, _SAMPLED).astype(int):
            with paths.open_regular(source.path(int(index))) as file:
                total.update(file.read(_SAMPLE))
    return cache / f"images-{total.hexdigest()[:16]}"


def _read_cache(place: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The cached images, memory-mapped.

    Raises:
      ValueError: they are damaged, or of other files.
      OSError, KeyError, TypeError, AttributeError: the same, as the parts of the tree that are wrong raise it.
    """
    tree: Any = files.load_tree(place)
    arrays: dict[str, np.ndarray] = tree["images"]
    if tree["place"] != place.name or {name: array.shape for name, array in arrays.items()} != shapes:
        raise ValueError("they belong to other files")
    if any(array.dtype != np.uint8 for array in arrays.values()):
        raise ValueError("they are not images of 8 bits")
    return arrays


def _decode_into(out: np.ndarray, source: Files, title: str) -> None:
    size = out.shape[1]

    def work(chunk: range) -> None:
        for index in chunk:
            out[index] = evaluation_view(source[index], size, as_stored=True)

    in_chunks(len(source), work, title)


def class_list(classes: str) -> tuple[str, ...]:
    """Read the class folders of "imagenet100" or of a text file, one per line."""
    if classes == "imagenet100":
        return lists.read(Path(__file__).with_name("imagenet100_wnids.txt"))
    return lists.read(paths.file(classes, "data.classes"))


def _check_classes(folder: Path, names: Sequence[str], *, complete: bool) -> None:
    """Raise MissingInput if class folders are missing, or unknown ones are present where `complete`."""
    present = set(folders.subfolders(folder))
    missing = [name for name in names if name not in present]
    if missing:
        raise MissingInput(f"{folder} lacks {len(missing)} of {len(names)} class folders: {_some(missing)}")
    unknown = sorted(present - set(names))
    if complete and unknown:
        raise MissingInput(
            f"{folder} has class folders that the training images lack: {_some(unknown)}; set data.classes to choose"
        )


def _check_apart(parts: Mapping[str, Path], names: Sequence[str]) -> None:
    """Raise InputError for a class folder that two splits share through links: training would see what tests it."""
    owners: dict[str, str] = {}
    for split, folder in parts.items():
        for name in names:
            other = owners.setdefault(os.path.realpath(folder / name), split)
            if other != split:
                reason = f"is, through a link, a folder of {parts[other]} too"
                raise InputError(reason, file=folder / name, remedy="give each split images of its own")


def _list_images(folder: Path, names: Sequence[str]) -> Part:
    listing, counts = folders.class_images(folder, names)
    if listing.notes:
        logging.warning("links in %s: %s", folder, _some(listing.notes))
    return Files(folder, listing.names), np.repeat(np.arange(len(names), dtype=np.int32), counts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
