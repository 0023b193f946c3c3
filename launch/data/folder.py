"""A folder of images sorted into class folders, as torchvision's ImageFolder lays it out."""

import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from launch.data import images

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LAYOUT = "Expected layout: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg, or ROOT/val for ROOT/test."

Part = tuple["Files", np.ndarray]


class Files(Sequence):
    """Image files as PIL images of mode RGB."""

    def __init__(self, root: Path, names: list[str]):
        # One array of strings: a list of a million is slow to pickle for the worker processes.
        self.root, self.names = str(root), np.array(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index) -> Image.Image:
        path = os.path.join(self.root, self.names[index])
        return images.decode(path, name=path)


def load(path: str | Path, *, classes: str = "") -> tuple[Part, Part | None, Part, tuple[str, ...], str]:
    """Lists a folder of images.

    Args:
      path: ROOT. The test split is ROOT/test, or ROOT/val without it; with both, ROOT/val is for validation.
      classes: "" for all class folders by name, "imagenet100", or a text file of class folders to keep, one a
        line; their order is the order of the labels.

    Returns:
      (train, val or None, test, class names, note); a part is (source of PIL images, labels int32 (n,)).

    Raises:
      FileNotFoundError: folder, class list or class folder missing, or a class without images.
      ValueError: a class list that is empty or repeats a name.
    """
    if not path:
        raise FileNotFoundError(f"image_folder has no default place: set config.path. {LAYOUT}")
    root = Path(path).expanduser()
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in parts or len(parts) == 1:
        found = ", ".join(parts) or ("nothing of it" if root.is_dir() else "no such folder")
        raise FileNotFoundError(f"{root} is not a folder of images by split and class (found: {found}). {LAYOUT}")
    names = class_list(classes) if classes else _subfolders(parts["train"])
    if not names:
        raise FileNotFoundError(f"no class folders in {parts['train']}. {LAYOUT}")
    for folder in parts.values():
        _check_classes(folder, names, complete=not classes)
    read = {name: _list_images(folder, names) for name, folder in parts.items()}
    if "test" not in read:
        return read["train"], None, read["val"], names, f"images in {root} (test: its val)"
    return read["train"], read.get("val"), read["test"], names, f"images in {root}"


def class_list(classes: str) -> tuple[str, ...]:
    """The class folders named by "imagenet100" or by a text file, one a line."""
    if classes == "imagenet100":
        text = importlib.resources.files("launch.data").joinpath("imagenet100_wnids.txt").read_text()
    elif Path(classes).expanduser().is_file():
        text = Path(classes).expanduser().read_text()
    else:
        raise FileNotFoundError(f"config.classes={classes!r} is neither 'imagenet100' nor a text file of class folders")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise ValueError(f"config.classes={classes!r} must name at least one class folder, and each once")
    return names


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))


def _check_classes(folder: Path, names: Sequence[str], *, complete: bool):
    there = set(_subfolders(folder))
    missing = [name for name in names if name not in there]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(names)} class folders: {_some(missing)}")
    unknown = sorted(there - set(names))
    if complete and unknown:
        raise FileNotFoundError(
            f"{folder} has class folders that the training images lack: {_some(unknown)}; set config.classes to choose"
        )


def _list_images(folder: Path, names: Sequence[str]) -> Part:
    files, labels = [], []
    for label, name in enumerate(names):
        inside = sorted(
            os.path.relpath(os.path.join(base, file), folder)
            for base, _, found in os.walk(folder / name, followlinks=True)
            for file in found
            if file.lower().endswith(EXTENSIONS)
        )
        if not inside:
            raise FileNotFoundError(f"no images in {folder / name} ({' '.join(EXTENSIONS)})")
        files += inside
        labels += [label] * len(inside)
    return Files(folder, files), np.array(labels, np.int32)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
