"""GeneCIS (Vaze et al., CVPR 2023, https://arxiv.org/abs/2306.07969), with the templates of its release.

    ROOT/{focus,change}_{attribute,object}.json  queries, each with its own gallery: the target and 9 to 14 others
    IMAGES.visual_genome/ID.jpg                  Visual Genome's images, for the two tasks of attributes
    IMAGES.coco/000000ID.jpg                     COCO's val2017, for the two tasks of objects

Recall at 1, 2, 3 in the query's gallery. As published, an object with attributes is cropped by its box, which is
enlarged by 0.7 of its width to the left and of its height upwards, and padded to a square; the condition, a word or
two, is the modification: "a photo of $ that cardboard".
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from launch.reading import InputError, paths, records
from launch.reading import images as decoder
from launch.reading.records import Record
from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.missing import present
from rtd_jax.benchmarks.task import RetrievalTask, padded, read_queries

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
KS = (1, 2, 3)
DILATION = 0.7  # of a box's width and height
Key = tuple[Path, tuple[float, ...] | None]  # an image's file and a box in it


def load(
    root: str | Path, *, images: Mapping[str, str], tasks: Sequence[str] = TASKS, skip_missing: bool = False
) -> list[RetrievalTask]:
    """Some tasks, or all four.

    Args:
      root: the folder of the templates.
      images: the folders "visual_genome" and "coco", of which a task needs one.
      tasks: names in `TASKS`.
      skip_missing: leave out images that are missing, and the queries whose reference or target they are, or that have
        no other image but the target left.

    Raises:
      ValueError: a file, entry or field that is not as the release has it, by name.
      FileNotFoundError: a missing file.
    """
    return [load_task(root, name, images[images_of(name)], skip_missing=skip_missing) for name in tasks]


def images_of(task: str) -> str:
    """Whose images a task is about: "visual_genome" or "coco"."""
    return "visual_genome" if "attribute" in task else "coco"


class Crops(Sequence):
    """Images that are read and cropped on access: a sequence of uint8 arrays (h, w, 3)."""

    def __init__(self, keys: Sequence[Key]):
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Crops(self.keys[place])
        path, box = self.keys[place]
        return read(path, box)


def read(path: Path, box: Sequence[float] | None) -> np.ndarray:
    """An image, or the surroundings of a box (x, y, w, h) in it on a black square: uint8 (h, w, 3).

    Raises:
      ValueError: the file is not an image, or the box is outside it; it is named.
    """
    image = decoder.decode(path, alpha="white")
    if box is None:
        return np.asarray(image)
    x, y, w, h = box
    if x >= image.width or y >= image.height or x + w <= 0 or y + h <= 0:
        raise InputError(
            f"has {image.width} x {image.height} pixels, none in the box (x, y, w, h)", file=path, value=box
        )
    left, top = max(x - DILATION * w, 0), max(y - DILATION * h, 0)
    right, bottom = left + (1 + DILATION) * w, top + (1 + DILATION) * h  # where the image cuts it, it moves inwards
    left, top = min(round(left), image.width - 1), min(round(top), image.height - 1)
    right, bottom = round(min(right, image.width)), round(min(bottom, image.height))
    image = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square)


def load_task(root: str | Path, name: str, images: str | Path, *, skip_missing: bool = False) -> RetrievalTask:
    """One of `TASKS`; see `load`.

    Args:
      root: the folder of the templates.
      name: of the task.
      images: the folder of `images_of(name)`.
      skip_missing: see `load`.
    """
    path, folder = paths.path(root, "root") / f"{name}.json", paths.path(images, "images")
    queries = read_queries(path)
    references = [_key(query.child("reference"), folder) for query in queries]
    # The target is the first of its gallery; it may be among the others once more.
    galleries = [
        list(
            dict.fromkeys(
                _key(image, folder) for image in (query.child("target"), *query.children("gallery", at_least=1))
            )
        )
        for query in queries
    ]
    for query, gallery in zip(queries, galleries, strict=True):
        if len(gallery) < 2:
            raise query.error("must have an image besides the target: without one, every answer is right", "gallery")
    pairs = zip(references, galleries, strict=True)
    index = {key: i for i, key in enumerate(dict.fromkeys(key for one, others in pairs for key in (one, *others)))}
    own = [[index[key] for key in gallery] for gallery in galleries]
    reference = np.array([index[key] for key in references], np.int32)
    target = np.array([gallery[0] for gallery in own], np.int32)
    texts = [(records.text(query, "condition"),) for query in queries]
    files = [image for image, _ in index]
    name = f"genecis/{name}"
    there = present(name, files, [reference, target], listed=path, skip=skip_missing, alone=own)
    members, reference, target = padded(there.lists(own)), there.rows(reference), there.rows(target)
    score = partial(_score, target=target, members=members)
    crops = Crops(there.of_images(list(index)))
    texts = {"": there.of_queries(texts)}
    return RetrievalTask(name, crops, range(len(crops)), reference, texts, score, target=target, **there.counts)


def _key(image: Record, folder: Path) -> Key:
    """File and box of an image in the templates; COCO's images have no box."""
    if "val_image_id" in image.values:
        return folder / f"{_number(image, 'val_image_id'):012d}.jpg", None
    number = _number(image, "image_id")
    x, y, w, h = records.items(image, "instance_bbox", float, length=4)
    if w <= 0 or h <= 0:
        raise image.error("must be a box (x, y, width, height) with a positive width and height", "instance_bbox")
    return folder / f"{number}.jpg", (x, y, w, h)


def _number(image: Record, name: str) -> int:
    """An image's number, an integer or its digits."""
    value = image.values.get(name)
    if isinstance(value, str) and value.isdecimal() and len(value) <= 12:
        return int(value)
    return records.number(image, name, int, least=0, most=10**12 - 1)


def _score(queries, gallery, *, target, members) -> dict[str, float]:
    recall = metrics.recall_at(retrieval.rank_members(queries, gallery, members).rows, target, KS)
    return {f"recall_at_{k}": recall[k] for k in KS}
