"""SpuCoAnimals (Joshi et al. 2023, arXiv 2306.11957): birds on land or water, dogs indoors or outdoors.

Layout, as its package unpacks it: ROOT/spuco_birds/SPLIT/{landbirds,waterbirds}/{land,water}/*.jpg and
ROOT/spuco_dogs/SPLIT/{small_dogs,big_dogs}/{indoor,outdoor}/*.jpg, SPLIT train, val and test.
"""

from pathlib import Path

import numpy as np

from launch.data.folder import EXTENSIONS, Files
from tldr_jax.datasets.grouped import Grouped, Part

CLASSES = ("landbird", "waterbird", "small dog", "big dog")
SPURIOUS = ("land", "water", "indoor", "outdoor")
_ALLOWED = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), bool))  # birds have land and water, dogs the others
_FOLDERS = tuple(name.replace(" ", "_") + "s" for name in CLASSES)
_LAYOUT = (
    "Expected: ROOT/spuco_birds/SPLIT/{landbirds,waterbirds}/{land,water}/*.jpg and "
    "ROOT/spuco_dogs/SPLIT/{small_dogs,big_dogs}/{indoor,outdoor}/*.jpg, SPLIT train, val, test"
)


def load(path: str | Path) -> Grouped:
    """Lists the images of the eight groups; they are decoded when they are asked for.

    Raises:
      FileNotFoundError: no path, or a group's folder is missing or has no image; it is named.
      ValueError: a folder of no class or no background beside those of the groups, which would be passed over.
    """
    if not path:
        raise FileNotFoundError(f"spuco_animals has no default place: set data.path. {_LAYOUT}")
    root = Path(path).expanduser()
    parts = {split: _part(root, split) for split in ("train", "val", "test")}
    return Grouped(parts, CLASSES, SPURIOUS, _ALLOWED, f"SpuCoAnimals from {root}")


def _part(root: Path, split: str) -> Part:
    files, classes, spurious = [], [], []
    for label, value in np.argwhere(_ALLOWED):
        kind, animal = Path("spuco_birds" if label < 2 else "spuco_dogs") / split, _FOLDERS[label]
        folder = kind / animal / SPURIOUS[value]
        found = sorted(p.name for p in (root / folder).glob("*") if p.suffix.lower() in EXTENSIONS)
        if not found:
            raise FileNotFoundError(f"no images in {root / folder}. {_LAYOUT}")
        _check_folders(root / kind, {_FOLDERS[i] for i in np.flatnonzero(_ALLOWED[:, value])})
        _check_folders(root / kind / animal, {SPURIOUS[i] for i in np.flatnonzero(_ALLOWED[label])})
        files += [str(folder / name) for name in found]
        classes += [label] * len(found)
        spurious += [value] * len(found)
    return Part(Files(root, files), np.array(classes, np.int32), np.array(spurious, np.int32))


def _check_folders(folder: Path, known: set[str]) -> None:
    unknown = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in known)
    if unknown:
        raise ValueError(f"{folder} has {unknown[0]!r}, which is none of {', '.join(sorted(known))}")
