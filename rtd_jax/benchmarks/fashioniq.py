"""FashionIQ (Wu et al., CVPR 2021, https://arxiv.org/abs/1905.12794), in the layout of its release.

    ROOT/captions/cap.{dress,shirt,toptee}.val.json        queries: candidate, target, two captions
    ROOT/image_splits/split.{dress,shirt,toptee}.val.json  the gallery of each category
    ROOT/images/NAME.{png,jpg}

Recall at 10 and 50 in each category and their mean. The two captions are joined by " and " in both orders, and the two
query features averaged.
"""

from functools import partial
from pathlib import Path

import numpy as np

from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.task import RetrievalTask, check_files, fields, load_json, rows

CATEGORIES = ("dress", "shirt", "toptee")
KS = (10, 50)


def load(root: str | Path, split: str = "val") -> list[RetrievalTask]:
    """The three categories.

    Raises:
      ValueError: another split than val, a query without a field or two captions, an image that the gallery lacks.
      FileNotFoundError: a missing file.
    """
    if split != "val":
        raise ValueError(f"FashionIQ has no public ground truth for {split!r}; the only valid split is 'val'")
    return [load_category(root, category) for category in CATEGORIES]


def load_category(root: str | Path, category: str) -> RetrievalTask:
    """One of `CATEGORIES`, its validation split; raises as `load`."""
    root = Path(root).expanduser()
    names_path = root / "image_splits" / f"split.{category}.val.json"
    names = load_json(names_path)
    endings = ("png", "jpg", "jpeg")
    choices = [[root / "images" / f"{name}.{end}" for end in endings] for name in names]
    images = [next(filter(Path.is_file, paths), paths[0]) for paths in choices]
    check_files(images, str(names_path))
    index = {name: row for row, name in enumerate(names)}
    captions_path = root / "captions" / f"cap.{category}.val.json"
    where = str(captions_path)
    table = [fields(entry, ("candidate", "target", "captions"), where) for entry in load_json(captions_path)]
    for candidate, _, texts in table:
        if len(texts) != 2:
            raise ValueError(f"{where}: the query of {candidate!r} has {len(texts)} captions, not two")
    reference = rows([row[0] for row in table], index, where)
    target = rows([row[1] for row in table], index, where)
    texts = [tuple(text.strip(".?, ") for text in row[2]) for row in table]
    score = partial(_score, target=target)
    return RetrievalTask(f"fashioniq/{category}", images, names, reference, {"": texts}, score, target=target)


def _score(queries: np.ndarray, gallery: np.ndarray, *, target: np.ndarray) -> dict[str, float]:
    recall = metrics.recall_at(retrieval.top_k(queries, gallery, max(KS)).rows, target, KS)
    return {f"recall_at_{k}": recall[k] for k in KS}
