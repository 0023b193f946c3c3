"""Where images with captions come from: Scenes, or a file of image names and captions."""

import csv
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clip_jax.training.pairs import CaptionedImages, ZeroShot
from launch.data import images as image_files
from launch.data import order, scenes
from launch.data.scenes import world


class ReadRows(Protocol):
    """The rows of a file with their lines, from 1."""

    def __call__(self, path: Path, /) -> Iterator[tuple[int, dict[str, Any]]]: ...


def scenes_zero_shot(attributes: np.ndarray) -> ZeroShot:
    """Classes of images of Scenes: the five attributes, family and ground.

    Args:
      attributes: int (n, 5), of the images.
    """
    values = world.ATTRIBUTES | {"family": world.FAMILIES, "ground": world.GROUNDS}
    labels = dict(zip(world.ATTRIBUTES, attributes.T, strict=True))
    labels |= {"family": world.family(attributes), "ground": world.ground(attributes)}
    return {name: ([scenes.prompts(name, v) for v in values[name]], labels[name]) for name in values}


def hold_out(pairs: CaptionedImages, count: int, *, seed: int) -> tuple[CaptionedImages, CaptionedImages]:
    """`count` images drawn by seed, and the others; both in the order of `pairs`."""
    rows = order.permutation(len(pairs), seed=seed, epoch=0)
    return _select(pairs, np.sort(rows[:count])), _select(pairs, np.sort(rows[count:]))


def check_captions(path: str | Path, images: str | Path = "") -> None:
    """Raise what `read_captions` would raise without reading the file."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{str(path)!r} is not a file of captions: give one that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"no captions file {path}")
    if images and not Path(images).expanduser().is_dir():
        raise FileNotFoundError(f"data.images={str(images)!r}: no such folder")


def read_captions(
    path: str | Path, images: str | Path = "", *, image_column: str = "image", caption_column: str = "caption"
) -> CaptionedImages:
    """The images of a file with one (image, caption) per row; rows of the same image are joined.

    Args:
      path: JSON lines (.jsonl; a caption may be a list of texts), comma- or tab-separated values with a header (.csv,
        .tsv).
      images: the folder that image names are relative to; "" for the folder of `path`.
      image_column: column or key with the name of the image's file.
      caption_column: column or key with its caption.

    Raises:
      FileNotFoundError: the file, the folder or an image does not exist; the first is named.
      ValueError: an unknown ending, an empty file, a missing column, or a row without image or caption; the line is
        named.
    """
    check_captions(path, images)
    path = Path(path).expanduser()
    folder = Path(images).expanduser() if images else path.parent
    captions: dict[str, list[str]] = {}
    for line, row in _READERS[path.suffix.lower()](path):
        if missing := [column for column in (image_column, caption_column) if column not in row]:
            columns = ", ".join(map(repr, row))
            raise ValueError(
                f"{path}, line {line}: no column {missing[0]!r} among {columns}; set data.image_column and "
                "data.caption_column"
            )
        image, texts = row[image_column], row[caption_column]
        texts = texts if isinstance(texts, list) else [texts]
        if not isinstance(image, str) or not image or not texts:
            raise ValueError(f"{path}, line {line}: {image_column}={image!r}, {caption_column}={texts!r}: one is empty")
        if bad := [text for text in texts if not isinstance(text, str) or not text.strip()]:
            raise ValueError(f"{path}, line {line}: the caption {bad[0]!r} of {image} is not a text")
        captions.setdefault(image, []).extend(texts)
    if not captions:
        raise ValueError(f"{path} is empty: it has no row with an image and a caption")
    files = [folder / name for name in captions]
    _check_files(files, path)
    return CaptionedImages(files, list(captions.values()))


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {line} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {line} is not a JSON object but a {type(row).__name__}")
            yield line, row


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: the header has {len(reader.fieldnames or ())} columns, this row "
                    f"has {'more' if None in row else 'fewer'}; quote captions that contain the separator"
                )
            yield reader.line_num, row


_READERS: dict[str, ReadRows] = {".jsonl": _json_rows, ".csv": _table_rows, ".tsv": _table_rows}


def _check_files(files: list[Path], listed: Path) -> None:
    with ThreadPoolExecutor(2 * image_files.decoding_threads()) as pool:  # file systems of clusters answer slowly
        exist = list(pool.map(Path.is_file, files))
    missing = [file for file, exists in zip(files, exist, strict=True) if not exists]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"no image file {missing[0]}{more}, named in {listed}; set data.images to their folder")


def _select(pairs: CaptionedImages, rows: np.ndarray) -> CaptionedImages:
    images: list[Any] = [pairs.images[row] for row in rows]
    captions: list[Any] = [pairs.captions[row] for row in rows]
    return CaptionedImages(images, captions)
