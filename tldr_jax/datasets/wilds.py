"""Waterbirds and CelebA as WILDS lays them out: a folder of images beside a metadata.csv with split 0, 1 or 2.

Waterbirds: ROOT/metadata.csv with img_filename, y (0 landbird, 1 waterbird), place (0 land, 1 water), split. CelebA:
the same with y 1 for blond and place 1 for male, images in ROOT/img_align_celeba; or WILDS' own list_attr_celeba.csv
(columns Blond_Hair and Male) and list_eval_partition.csv.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.data.folder import EXTENSIONS, Files
from tldr_jax.datasets.grouped import SPLITS, Grouped, Groups, Part

WATERBIRDS = Groups(("landbird", "waterbird"), ("land", "water"))
CELEBA = Groups(("not blond", "blond"), ("female", "male"))
_KINDS = {"waterbirds": (WATERBIRDS, ""), "celeba": (CELEBA, "img_align_celeba")}  # groups, folder of images in ROOT


def load(name: str, path: str | Path) -> Grouped:
    """Read the metadata and check rows against image files; images are decoded when they are indexed.

    Args:
      name: waterbirds or celeba.
      path: ROOT.

    Raises:
      FileNotFoundError: the folder, the metadata, the image folder or an image that a row names is missing.
      ValueError: a column, label, place or split is missing or wrong (with its line), or an image is named twice or
        by no row.
    """
    groups, folder = _KINDS[name]
    if not path:
        raise FileNotFoundError(f"{name} has no default folder: set data.path to the one that holds metadata.csv")
    root = Path(path).expanduser()
    metadata, attributes = root / "metadata.csv", root / "list_attr_celeba.csv"
    if metadata.is_file():
        rows, file = _metadata(metadata), metadata
    elif name == "celeba" and attributes.is_file():
        rows, file = _attributes(attributes, root / "list_eval_partition.csv"), attributes
    else:
        raise FileNotFoundError(f"no metadata.csv in {root}: data.path is the folder of {name} in WILDS' layout")
    images = root / folder
    _check_files(images, [row.file for row in rows], [row.line for row in rows], file)
    parts = {}
    for number, split in enumerate(SPLITS):
        own = [row for row in rows if row.split == number]
        if not own:
            raise ValueError(f"{file}: no row has split {number} ({split})")
        labels = [np.array(values, np.int32) for values in zip(*((row.label, row.place) for row in own), strict=True)]
        parts[split] = Part(Files(images, [row.file for row in own]), *labels)
    return Grouped(parts, groups, f"{name} from {root}")


@dataclass(frozen=True)
class _Row:
    line: int
    file: str
    label: int
    place: int
    split: int


def _metadata(path: Path) -> list[_Row]:
    rows = []
    for line, row in _read(path, ("img_filename", "y", "place", "split")):
        label, place = (_one_of(row, key, {"0": 0, "1": 1}, path, line) for key in ("y", "place"))
        split = _one_of(row, "split", {"0": 0, "1": 1, "2": 2}, path, line)
        rows.append(_Row(line, os.path.normpath(row["img_filename"]), label, place, split))
    return rows


def _attributes(path: Path, partition: Path) -> list[_Row]:
    """Rows of CelebA's own two files: attributes are 1 and -1 (or 0), images are joined by their name."""
    if not partition.is_file():
        raise FileNotFoundError(f"{path.parent} has {path.name} but no {partition.name}, with the splits")
    splits = {
        row["image_id"]: _one_of(row, "partition", {"0": 0, "1": 1, "2": 2}, partition, line)
        for line, row in _read(partition, ("image_id", "partition"))
    }
    rows, signs = [], {"1": 1, "-1": 0, "0": 0}
    for line, row in _read(path, ("image_id", "Blond_Hair", "Male")):
        if row["image_id"] not in splits:
            raise ValueError(f"{partition}: no row for {row['image_id']}, which is on line {line} of {path.name}")
        blond, male = (_one_of(row, key, signs, path, line) for key in ("Blond_Hair", "Male"))
        rows.append(_Row(line, row["image_id"], blond, male, splits[row["image_id"]]))
    return rows


def _read(path: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows by column, with their lines."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = reader.fieldnames or []
        if missing := [name for name in required if name not in columns]:
            raise ValueError(f"{path}: no column {', '.join(missing)}; its columns: {', '.join(columns) or 'none'}")
        rows = [(reader.line_num, row) for row in reader]
    for line, row in rows:
        if short := [name for name in required if not row[name]]:
            raise ValueError(f"{path}, line {line}: no value in {', '.join(short)}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _one_of(row: dict[str, str], key: str, known: dict[str, int], path: Path, line: int) -> int:
    if row[key].strip() not in known:
        raise ValueError(f"{path}, line {line}: {key}={row[key]!r} is not one of {', '.join(known)}")
    return known[row[key].strip()]


def _check_files(folder: Path, named: Sequence[str], lines: Sequence[int], metadata: Path) -> None:
    """Refuse rows without an image and images without a row."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}, where the images of {metadata} should be")
    first: dict[str, int] = {}
    for file, line in zip(named, lines, strict=True):
        if file in first:
            raise ValueError(f"{metadata}, line {line}: {file} is on line {first[file]} already")
        first[file] = line
    there = {
        os.path.relpath(os.path.join(base, file), folder)
        for base, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(EXTENSIONS)
    }
    if missing := [file for file in first if file not in there]:
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{metadata}, line {first[missing[0]]}: no image {folder / missing[0]}{more}")
    if unknown := sorted(there - first.keys()):
        more = f", and {len(unknown) - 1} more have none" if len(unknown) > 1 else ""
        raise ValueError(f"{folder / unknown[0]} has no row in {metadata}{more}: remove what does not belong there")
