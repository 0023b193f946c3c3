"""SpuCoAnimals (Joshi et al. 2023, arXiv 2306.11957): birds on land or water, dogs indoors or outdoors.

Layout, as its package unpacks it: ROOT/spuco_birds/SPLIT/{landbirds,waterbirds}/{land,water}/*.jpg and
ROOT/spuco_dogs/SPLIT/{small_dogs,big_dogs}/{indoor,outdoor}/*.jpg, SPLIT train, val and test.
"""

from pathlib import Path

import numpy as np

from launch.data.folder import EXTENSIONS, Files
from tldr_jax.datasets.grouped import SPLITS, Grouped, Groups, Part

GROUPS = Groups(
    ("landbird", "waterbird", "small dog", "big dog"),
    ("land", "water", "indoor", "outdoor"),
    ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)),  # birds on land or water, dogs in- or outdoors
)
_FOLDERS = tuple(name.replace(" ", "_") + "s" for name in GROUPS.classes)
_LAYOUT = (
    "Expected: ROOT/spuco_birds/SPLIT/{landbirds,waterbirds}/{land,water}/*.jpg and "
    "ROOT/spuco_dogs/SPLIT/{small_dogs,big_dogs}/{indoor,outdoor}/*.jpg, SPLIT train, val, test"
)


def load(path: str | Path) -> Grouped:
    """List the images of the eight groups; they are decoded when they are indexed.

    Raises:
      FileNotFoundError: no path, or a group's folder is missing or has no image; it is named.
      ValueError: an unknown folder beside those of the groups, whose images would be ignored.
    """
    if not path:
        raise FileNotFoundError(f"spuco_animals has no default folder: set data.path. {_LAYOUT}")
    root = Path(path).expanduser()
    return Grouped({split: _part(root, split) for split in SPLITS}, GROUPS, f"SpuCoAnimals from {root}")


def _part(root: Path, split: str) -> Part:
    files, classes, spurious = [], [], []
    for label, value in np.argwhere(GROUPS.allowed):
        kind, animal = Path("spuco_birds" if label < 2 else "spuco_dogs") / split, _FOLDERS[label]
        folder = kind / animal / GROUPS.spurious[value]
        names = sorted(p.name for p in (root / folder).glob("*") if p.suffix.lower() in EXTENSIONS)
        if not names:
            raise FileNotFoundError(f"no images in {root / folder}. {_LAYOUT}")
        _check_folders(root / kind, {_FOLDERS[i] for i in np.flatnonzero(GROUPS.allowed[:, value])})
        _check_folders(root / kind / animal, {GROUPS.spurious[i] for i in np.flatnonzero(GROUPS.allowed[label])})
        files += [str(folder / name) for name in names]
        classes += [label] * len(names)
        spurious += [value] * len(names)
    return Part(Files(root, files), np.array(classes, np.int32), np.array(spurious, np.int32))


def _check_folders(folder: Path, known: set[str]) -> None:
    unknown = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in known)
    if unknown:
        raise ValueError(f"{folder} has the unknown folder {unknown[0]!r}; valid names: {', '.join(sorted(known))}")
