"""Waterbirds and CelebA as WILDS lays them out: a folder of images beside a metadata.csv with split 0, 1 or 2.

Waterbirds: ROOT/metadata.csv with img_filename, y (0 landbird, 1 waterbird), place (0 land, 1 water), split. CelebA:
the same with y 1 for blond and place 1 for male, images in ROOT/img_align_celeba; or WILDS' own list_attr_celeba.csv
(columns Blond_Hair and Male) and list_eval_partition.csv.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from launch.data.folder import Files
from launch.reading import InputError, MissingInput, folders, paths, records, tables
from launch.reading.records import Record
from tldr_jax.datasets.grouped import SPLITS, Grouped, Groups, Part

WATERBIRDS = Groups(("landbird", "waterbird"), ("land", "water"))
CELEBA = Groups(("not blond", "blond"), ("female", "male"))
_KINDS = {"waterbirds": (WATERBIRDS, ""), "celeba": (CELEBA, "img_align_celeba")}  # groups, folder of images in ROOT
_BITS, _SIGNS = {"0": 0, "1": 1}, {"1": 1, "-1": 0, "0": 0}
_SPLIT_NUMBERS = {"0": 0, "1": 1, "2": 2}


def load(name: str, path: str | Path) -> Grouped:
    """Read the metadata and check rows against image files; images are decoded when they are indexed.

    Args:
      name: waterbirds or celeba.
      path: ROOT.

    Raises:
      MissingInput: the folder, the metadata, the image folder or an image that a row names is missing.
      InputError: a column, label, place or split is missing or wrong (with its line), an image lies outside the folder,
        is named twice or by no row.
    """
    groups, folder = _KINDS[name]
    if not path:
        raise MissingInput(f"{name} has no default folder: set data.path to the one that holds metadata.csv")
    root = paths.folder(path, "data.path")
    images = root / folder
    metadata, attributes = root / "metadata.csv", root / "list_attr_celeba.csv"
    if metadata.is_file():
        rows, file = _metadata(metadata, images), metadata
    elif name == "celeba" and attributes.is_file():
        rows, file = _attributes(attributes, root / "list_eval_partition.csv", images), attributes
    else:
        raise MissingInput(f"no metadata.csv in {root}: data.path is the folder of {name} in WILDS' layout")
    if not rows:
        raise InputError("has no rows", file=file)
    _check_files(images, rows, file)
    parts = {}
    for number, split in enumerate(SPLITS):
        rows_of_split = [row for row in rows.values() if row.split == number]
        if not rows_of_split:
            raise InputError(f"no row has split {number} ({split})", file=file)
        labels = [
            np.array(values, np.int32)
            for values in zip(*((row.label, row.place) for row in rows_of_split), strict=True)
        ]
        parts[split] = Part(Files(images, [row.file for row in rows_of_split]), *labels)
    return Grouped(parts, groups, f"{name} from {root}")


@dataclass(frozen=True)
class _Row:
    line: int | str
    file: str
    label: int
    place: int
    split: int


_Rows = dict[str, _Row]  # by the image's name, relative to the folder of images


def _metadata(path: Path, images: Path) -> _Rows:
    rows: _Rows = {}
    for record in tables.records(path, ("img_filename", "y", "place", "split"), skip_spaces=True):
        label, place = (records.one_of(record, name, _BITS) for name in ("y", "place"))
        _add(rows, record, "img_filename", images, label, place, records.one_of(record, "split", _SPLIT_NUMBERS))
    return rows


def _attributes(path: Path, partition: Path, images: Path) -> _Rows:
    """Rows of CelebA's own two files: attributes are 1 and -1 (or 0), images are joined by their name."""
    if not partition.is_file():
        raise MissingInput(f"{path.parent} has {path.name} but no {partition.name}, with the splits")
    splits: dict[str, int] = {}
    for record in tables.records(partition, ("image_id", "partition"), skip_spaces=True):
        image = records.text(record, "image_id")
        if image in splits:
            raise record.error("is on an earlier line already", "image_id")
        splits[image] = records.one_of(record, "partition", _SPLIT_NUMBERS)
    rows: _Rows = {}
    for record in tables.records(path, ("image_id", "Blond_Hair", "Male"), skip_spaces=True):
        image = records.text(record, "image_id")
        if image not in splits:
            where = f"which is on line {record.place} of {path.name}"
            raise InputError(f"no row for {image}, {where}", file=partition)
        blond, male = (records.one_of(record, name, _SIGNS) for name in ("Blond_Hair", "Male"))
        _add(rows, record, "image_id", images, blond, male, splits[image])
    return rows


def _add(rows: _Rows, record: Record, column: str, images: Path, label: int, place: int, split: int) -> None:
    """Add a row, unless one has the same image."""
    line, named = record.place, record.values[column].strip()
    file = paths.inside(images, named, listed=record.file, place=line, field=column).relative_to(images).as_posix()
    if file in rows:
        raise InputError(f"{file} is on line {rows[file].line} already", file=record.file, place=line)
    rows[file] = _Row(line, file, label, place, split)


def _check_files(folder: Path, rows: _Rows, metadata: Path) -> None:
    """Refuse rows without an image and images without a row."""
    if not folder.is_dir():
        raise MissingInput(f"no folder {folder}, where the images of {metadata} should be")
    listing = folders.images(folder)
    for note in listing.notes:
        logging.warning("%s", note)
    there = set(listing.names)
    if missing := [row for file, row in rows.items() if file not in there]:
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise MissingInput(f"no image {folder / missing[0].file}{more}", file=metadata, place=missing[0].line)
    if unknown := sorted(there - rows.keys()):
        more = f", and {len(unknown) - 1} more have none" if len(unknown) > 1 else ""
        reason = f"has no row in {metadata}{more}"
        raise InputError(reason, file=folder / unknown[0], remedy="remove what does not belong there")
