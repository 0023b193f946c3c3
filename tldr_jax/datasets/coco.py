"""Image-caption pairs of COCO for the modality gap: from the annotations' JSON file and its images, or through TFDS."""

from pathlib import Path

import numpy as np

from launch.data import tfds_sets
from launch.data.folder import Files
from launch.data.splits import Rows
from launch.reading import InputError, MissingInput, jsons, paths, records
from launch.reading.records import Record
from tldr_jax.datasets.captions import GapPairs, draw

_NEEDED = (
    "the annotations' JSON file (annotations/captions_val2014.json) and the folder of its images (val2014) are needed; "
    "or set gap.source='coco_tfds'"
)


def check_files(path: str | Path, folder: str | Path) -> tuple[Path, Path]:
    """Paths of the annotations' file and of the images' folder, which must exist."""
    if not (str(path) and str(folder)):
        raise MissingInput(f"is empty; {_NEEDED}", field="gap.images" if str(path) else "gap.path")
    return paths.file(path, "gap.path", remedy=_NEEDED), paths.folder(folder, "gap.images", remedy=_NEEDED)


def from_json(path: str | Path, folder: str | Path, *, n: int, seed: int) -> GapPairs:
    """A random n of the captions of an annotations file, as published, with their images, which may repeat.

    Args:
      path: for example annotations/captions_val2014.json.
      folder: of its images, for example val2014.
      n: pairs.
      seed: of the draw.

    Raises:
      MissingInput: no such file or folder, or a drawn image is missing.
      InputError: not COCO's JSON, an id twice, a caption of an unknown image, an image outside the folder.
      ValueError: fewer captions than n.
    """
    path, folder = check_files(path, folder)
    top = Record(path, "", jsons.read(path, top=dict))
    images: dict[int, Record] = {}
    for image in top.children("images"):
        if images.setdefault(records.field(image, "id", int), image) is not image:
            raise image.error("occurs twice", "id")
    captions: list[tuple[int, str]] = []
    for annotation in top.children("annotations"):
        image = records.field(annotation, "image_id", int)
        if image not in images:
            raise annotation.error("no image has this id", "image_id")
        captions.append((image, records.text(annotation, "caption")))
    chosen = [captions[row] for row in draw(len(captions), n, seed, path)]
    files = []
    for image, _ in chosen:
        name = records.field(images[image], "file_name", str)
        files.append(paths.inside(folder, name, listed=path, place=images[image].place, field="file_name"))
    paths.check_present(list(dict.fromkeys(files)), listed=path, remedy="set gap.images to their folder")
    names = [str(file.relative_to(folder)) for file in files]
    return GapPairs(Files(folder, names), [caption for _, caption in chosen])


def from_tfds(path: str, split: str, *, n: int, seed: int) -> GapPairs:
    """A random n of the images of a split of `coco_captions/2014`, each with one of its captions.

    Drawing captions, as `from_json` does, would read all records for theirs.

    Args:
      path: TFDS data folder; "" for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      split: train, val, test or restval.
      n: pairs.
      seed: of the draw.

    Raises:
      FileNotFoundError: not prepared there in the required version and format.
      ValueError: an unknown split, an unreadable record, or fewer images than n.
    """
    records = tfds_sets.Records(tfds_sets.prepared("coco_captions/2014", path), split)
    rows = draw(len(records), n, seed, records.directory)
    images = Rows(records, rows)
    texts = tfds_sets.scan(records, lambda record: list(map(_text, record["captions"]["text"])), rows=rows.tolist())
    for row, captions in zip(rows, texts, strict=True):
        if not captions or not all(captions):
            where = f"record {row} of split {split!r}"
            raise InputError("has no caption, or one that is blank or not UTF-8", file=records.directory, place=where)
    return GapPairs(images, _one_each(texts, seed))


def _text(data: bytes) -> str:
    """A caption; "" if it is not UTF-8."""
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        return ""


def _one_each(captions: list[list[str]], seed: int) -> list[str]:
    """One caption per image, drawn at random."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 0xC0C0))))
    return [texts[int(k * len(texts))] for texts, k in zip(captions, generator.random(len(captions)), strict=True)]
