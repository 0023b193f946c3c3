"""SpuCoAnimals (Joshi et al. 2023, arXiv 2306.11957): birds on land or water, dogs indoors or outdoors.

Layout, as its package unpacks it: ROOT/spuco_birds/SPLIT/{landbirds,waterbirds}/{land,water}/*.jpg and
ROOT/spuco_dogs/SPLIT/{small_dogs,big_dogs}/{indoor,outdoor}/*.jpg, SPLIT train, val and test.
"""

from pathlib import Path

import numpy as np
from absl import logging

from launch.data.folder import Files
from launch.reading import InputError, MissingInput, folders, paths
from tldr_jax.datasets.grouped import SPLITS, Grouped, Groups, Part

GROUPS = Groups(
    ("landbird", "waterbird", "small dog", "big dog"),
    ("land", "water", "indoor", "outdoor"),
    ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)),  # birds on land or water, dogs in- or outdoors
)
_ANIMALS = tuple(name.replace(" ", "_") + "s" for name in GROUPS.classes)
_LAYOUT = (
    "Expected: ROOT/spuco_birds/SPLIT/{landbirds,waterbirds}/{land,water}/*.jpg and "
    "ROOT/spuco_dogs/SPLIT/{small_dogs,big_dogs}/{indoor,outdoor}/*.jpg, SPLIT train, val, test"
)


def load(path: str | Path) -> Grouped:
    """List the images of the eight groups; they are decoded when they are indexed.

    Raises:
      MissingInput: no path, or a group's folder is missing or has no image; the error names it.
      InputError: an unknown folder beside those of the groups, whose images would be ignored; an image that is in two
        groups or splits through links.
    """
    if not path:
        raise MissingInput(f"spuco_animals has no default folder: set data.path. {_LAYOUT}")
    root = paths.folder(path, "data.path", remedy=_LAYOUT)
    groups = np.argwhere(GROUPS.allowed)
    inside = [
        f"{_kind(split, label)}/{_ANIMALS[label]}/{GROUPS.spurious[v]}" for split in SPLITS for label, v in groups
    ]
    try:
        listing, counts = folders.class_images(root, inside)
    except MissingInput as error:
        raise MissingInput(error.reason, file=error.file, remedy=_LAYOUT) from error
    for note in listing.notes:
        logging.warning("%s", note)
    for split in SPLITS:
        for label, value in groups:
            kind = root / _kind(split, label)
            _check_folders(kind, {_ANIMALS[i] for i in np.flatnonzero(GROUPS.allowed[:, value])})
            _check_folders(kind / _ANIMALS[label], {GROUPS.spurious[i] for i in np.flatnonzero(GROUPS.allowed[label])})
    labels = np.repeat(np.tile(groups, (len(SPLITS), 1)), counts, axis=0).astype(np.int32)
    ends = np.cumsum(np.reshape(counts, (len(SPLITS), -1)).sum(1)).tolist()
    parts = {
        split: Part(Files(root, list(listing.names[start:end])), *labels[start:end].T.copy())
        for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False)
    }
    return Grouped(parts, GROUPS, f"SpuCoAnimals from {root}")


def _kind(split: str, label: int) -> str:
    return f"{'spuco_birds' if label < 2 else 'spuco_dogs'}/{split}"


def _check_folders(folder: Path, known: set[str]) -> None:
    unknown = [name for name in folders.subfolders(folder) if name not in known]
    if unknown:
        raise InputError(f"has the unknown folder {unknown[0]!r}; valid names: {', '.join(sorted(known))}", file=folder)
