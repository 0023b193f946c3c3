"""GeneCIS (Vaze et al., CVPR 2023, https://arxiv.org/abs/2306.07969), with the templates of its release.

    ROOT/{focus,change}_{attribute,object}.json  queries, each with a gallery of its own: the target and 9 to 14 others
    IMAGES.visual_genome/ID.jpg                  Visual Genome's images, for the two tasks of attributes
    IMAGES.coco/000000ID.jpg                     COCO's val2017, for the two tasks of objects

Recall at 1, 2, 3 in the query's gallery. Our reading: an object with attributes is cropped by its box, enlarged by 0.7
of its width and height in all, and padded to a square; the condition, a word or two, becomes the modification "has
CONDITION", since "a photo of $ that CONDITION" would not be English.
"""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.task import RetrievalTask, check_files, fields, load_json, rows

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
KS = (1, 2, 3)
DILATION = 0.7  # of a box's width and height, in all


def load(root: str | Path, *, images: Mapping[str, str]) -> list[RetrievalTask]:
    """The four tasks.

    Args:
      root: the folder of the templates.
      images: the folders "visual_genome" and "coco".

    Raises:
      ValueError: a query without a field.
      FileNotFoundError: a missing file.
    """
    return [load_task(root, name, images[images_of(name)]) for name in TASKS]


def images_of(task: str) -> str:
    """Whose images a task is about: "visual_genome" or "coco"."""
    return "visual_genome" if "attribute" in task else "coco"


class Crops(Sequence):
    """Images that are read and cropped on access: a sequence of uint8 arrays (h, w, 3)."""

    def __init__(self, keys: Sequence[tuple[Path, tuple[float, ...] | None]]):
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
      ValueError: the file is not an image; it is named.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is not an image: {error}") from error
    if box is None:
        return np.asarray(image)
    x, y, w, h = box
    left, top = max(x - DILATION / 2 * w, 0), max(y - DILATION / 2 * h, 0)
    right, bottom = min(x + (1 + DILATION / 2) * w, image.width), min(y + (1 + DILATION / 2) * h, image.height)
    image = image.crop((int(left), int(top), max(int(right), int(left) + 1), max(int(bottom), int(top) + 1)))
    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square)


def load_task(root: str | Path, name: str, images: str | Path) -> RetrievalTask:
    """One of `TASKS`; raises as `load`.

    Args:
      root: the folder of the templates.
      name: of the task.
      images: the folder of `images_of(name)`.
    """
    path = Path(root).expanduser() / f"{name}.json"
    where = str(path)
    table = [fields(entry, ("reference", "target", "gallery", "condition"), where) for entry in load_json(path)]
    key = partial(_key, folder=Path(images).expanduser(), where=where)
    queries = [[key(image) for image in (row[0], row[1], *row[2])] for row in table]  # reference, target, the others
    index = {image: i for i, image in enumerate(dict.fromkeys(image for query in queries for image in query))}
    check_files(list(dict.fromkeys(image for image, _ in index)), where)
    members = np.full((len(queries), max((len(query) - 1 for query in queries), default=0)), -1, np.int32)
    for place, query in enumerate(queries):
        gallery = list(dict.fromkeys(query[1:]))  # the target may be among the others once more
        members[place, : len(gallery)] = rows(gallery, index, where)
    reference = rows([query[0] for query in queries], index, where)
    texts = [(f"has {row[3].strip()}",) for row in table]
    score = partial(_score, target=members[:, 0], members=members)
    crops = Crops(list(index))
    return RetrievalTask(
        f"genecis/{name}", crops, range(len(index)), reference, {"": texts}, score, target=members[:, 0]
    )


def _key(image: Mapping, *, folder: Path, where: str) -> tuple[Path, tuple[float, ...] | None]:
    """File and box of an image in the templates; COCO's images have no box."""
    if "val_image_id" in image:
        return folder / f"{int(image['val_image_id']):012d}.jpg", None
    number, box = fields(image, ("image_id", "instance_bbox"), where)
    return folder / f"{number}.jpg", tuple(map(float, box))


def _score(queries, gallery, *, target, members) -> dict[str, float]:
    recall = metrics.recall_at(retrieval.rank_members(queries, gallery, members).rows, target, KS)
    return {f"recall_at_{k}": recall[k] for k in KS}
