"""FashionIQ (Wu et al., CVPR 2021, https://arxiv.org/abs/1905.12794), in the layout of its release.

    ROOT/captions/cap.{dress,shirt,toptee}.val.json        queries: candidate, target, two captions
    ROOT/image_splits/split.{dress,shirt,toptee}.val.json  the gallery of each category
    ROOT/images/NAME.{png,jpg}

Recall at 10 and 50 in each category and their mean. The two captions are joined by " and " in both orders, and the two
query features averaged.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from launch.reading import InputError, jsons, paths, records
from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.missing import present
from rtd_jax.benchmarks.task import RetrievalTask, read_queries, row

CATEGORIES = ("dress", "shirt", "toptee")
KS = (10, 50)


def load(root: str | Path, split: str = "val", *, skip_missing: bool = False) -> list[RetrievalTask]:
    """The three categories.

    Args:
      root: the folder of the release.
      split: "val".
      skip_missing: leave out images that are missing, and the queries whose candidate or target they are.

    Raises:
      ValueError: another split than val; a file, entry or field that is not as the release has it, by name.
      FileNotFoundError: a missing file.
    """
    if split != "val":
        raise ValueError(f"FashionIQ has no public ground truth for {split!r}; the only valid split is 'val'")
    return [load_category(root, category, skip_missing=skip_missing) for category in CATEGORIES]


def load_category(root: str | Path, category: str, *, skip_missing: bool = False) -> RetrievalTask:
    """One of `CATEGORIES`, its validation split; see `load`."""
    root = paths.path(root, "root")
    listed = root / "image_splits" / f"split.{category}.val.json"
    names = jsons.read(listed, top=list)
    images = [_file(root / "images", name, listed, i) for i, name in enumerate(names)]
    index: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in index:
            raise InputError(f"is {jsons.entry(index[name])} already", file=listed, place=jsons.entry(i), value=name)
        index[name] = i
    queries = read_queries(root / "captions" / f"cap.{category}.val.json")
    reference = np.array([row(query, "candidate", str, index) for query in queries], np.int32)
    target = np.array([row(query, "target", str, index) for query in queries], np.int32)
    if len(same := np.flatnonzero(reference == target)):
        first = queries[same[0]].error("is the candidate", "target")
        logging.warning("%d of %d queries ask for their own image; the first: %s", len(same), len(queries), first)
    captions = [records.items(query, "captions", str, length=2) for query in queries]
    texts = [tuple(text.strip(".?, ") for text in pair) for pair in captions]
    for query, pair in zip(queries, texts, strict=True):
        if not any(pair):
            raise query.error("must be two texts, not both blank", "captions")
    name = f"fashioniq/{category}"
    there = present(name, images, [reference, target], listed=listed, skip=skip_missing)
    reference, target, texts = there.rows(reference), there.rows(target), {"": there.of_queries(texts)}
    score = partial(_score, target=target)
    return RetrievalTask(name, there.of_images(images), there.of_images(names), reference, texts, score, target=target,
                         **there.counts)  # fmt: skip


def _file(folder: Path, name: Any, listed: Path, i: int) -> Path:
    """The file of an image, whose name comes without its ending."""
    if not isinstance(name, str) or not name.strip():
        raise InputError("must be the name of an image", file=listed, place=jsons.entry(i), value=name)
    endings = ("png", "jpg", "jpeg")
    files = [paths.inside(folder, f"{name}.{end}", listed=listed, place=jsons.entry(i)) for end in endings]
    return next(filter(os.path.isfile, files), files[0])


def _score(queries: np.ndarray, gallery: np.ndarray, *, target: np.ndarray) -> dict[str, float]:
    recall = metrics.recall_at(retrieval.top_k(queries, gallery, max(KS)).rows, target, KS)
    return {f"recall_at_{k}": recall[k] for k in KS}
