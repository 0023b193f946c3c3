"""Where images with captions come from: Scenes, or a file of image names and captions."""

from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.training.pairs import CaptionedImages, ZeroShot
from launch.data import order, scenes
from launch.data.scenes import world
from launch.reading import InputError, forms, paths, records

ENDINGS = (".jsonl", ".csv", ".tsv")  # of files of captions


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


def read_captions(
    path: str | Path, images: str | Path = "", *, image_column: str = "image", caption_column: str = "caption"
) -> CaptionedImages:
    """The images of a file with one (image, caption) per row; rows of the same image are joined.

    Args:
      path: JSON Lines (.jsonl; a caption may be a list of texts), comma- or tab-separated values with a header (.csv,
        .tsv).
      images: the folder that image names are relative to; "" for the folder of `path`.
      image_column: column or key with the name of the image's file.
      caption_column: column or key with its caption.

    Raises:
      MissingInput: the file, the folder or an image does not exist; the error names the first.
      InputError: an unknown ending, no row, a missing column, a row without image or caption, or an image outside the
        folder; the error names the line.
    """
    path = paths.file(path, "data.path", endings=ENDINGS)
    folder = paths.folder(images, "data.images") if images else path.parent
    captions: dict[Path, list[str]] = {}
    for record in forms.records(path, (image_column, caption_column), endings=ENDINGS):
        name = record.values[image_column]
        file = paths.inside(folder, name, listed=path, place=record.place, field=image_column)
        captions.setdefault(file, []).extend(records.texts(record, caption_column))
    if not captions:
        raise InputError("is empty: it has no row with an image and a caption", file=path)
    paths.check_present(captions, listed=path, remedy="set data.images to their folder")
    return CaptionedImages(list(captions), list(captions.values()))


def _select(pairs: CaptionedImages, rows: np.ndarray) -> CaptionedImages:
    images: list[Any] = [pairs.images[row] for row in rows]
    captions: list[Any] = [pairs.captions[row] for row in rows]
    return CaptionedImages(images, captions)
