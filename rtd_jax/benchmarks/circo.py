"""CIRCO (Baldrati et al., ICCV 2023, https://arxiv.org/abs/2303.15247), in the layout of its release.

    ROOT/annotations/{val,test}.json                                     queries
    ROOT/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json    the gallery: 123,403 images
    ROOT/COCO2017_unlabeled/unlabeled2017/*.jpg

mAP at 5, 10, 25, 50 over several ground truths, recall on the first target, and mAP at 10 over the queries of every
semantic aspect that the file names, "cardinality", "negation" and others. `test` has no ground truth: its answers go to
the test server, a JSON file of 50 image ids per query.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from launch.reading import jsons, paths, records
from launch.reading.records import Record
from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.missing import present
from rtd_jax.benchmarks.task import (
    RetrievalTask,
    check_images,
    check_submission,
    distinct,
    padded,
    read_queries,
    row,
    rows,
    targets,
)

SPLITS = ("val", "test")
KS = (5, 10, 25, 50)
ASPECTS = "semantic_aspects"


def load(root: str | Path, split: str = "val", *, skip_missing: bool = False) -> RetrievalTask:
    """A split of CIRCO.

    Args:
      root: the folder of the release.
      split: a name in `SPLITS`.
      skip_missing: leave out images that are missing, and the queries whose reference or target they are.

    Raises:
      ValueError: an unknown split; a file, entry or field that is not as the release has it, by name.
      FileNotFoundError: a missing file.
    """
    if split not in SPLITS:
        raise ValueError(f"CIRCO has no split {split!r}; valid splits: {', '.join(SPLITS)}")
    root = paths.path(root, "root")
    coco = root / "COCO2017_unlabeled"
    info = coco / "annotations" / "image_info_unlabeled2017.json"
    listed = jsons.records(info, under="images")
    ids = distinct(listed, "id", int)
    images = [
        paths.inside(coco / "unlabeled2017", entry.values.get("file_name"), listed=info, place=entry.place,
                     field="file_name")
        for entry in listed
    ]  # fmt: skip
    check_images(images, [str(entry.place) for entry in listed], info)
    index = {number: place for place, number in enumerate(ids)}
    queries = read_queries(root / "annotations" / f"{split}.json")
    numbers = distinct(queries, "id", int)
    reference = np.array([row(query, "reference_img_id", int, index) for query in queries], np.int32)
    texts = [(records.text(query, "relative_caption"),) for query in queries]
    target, truths, aspects = None, [], []
    if split == "val":
        aspects = [_aspects(query) for query in queries]
        truths = [rows(query, "gt_img_ids", int, index) for query in queries]
        target = targets(
            queries, "target_img_id", int, index, reference=reference, among=truths, candidates="'gt_img_ids'"
        )
    own = [reference] if target is None else [reference, target]
    there = present("circo", images, own, listed=info, skip=skip_missing, served=target is None)
    ids, reference, score = there.of_images(ids), there.rows(reference), None
    if target is not None:
        target = there.rows(target)
        score = partial(_score, target=target, truths=padded(there.lists(truths)), aspects=there.of_queries(aspects))
    submission = partial(_submission, queries_ids=numbers, ids=ids)
    texts = {"": there.of_queries(texts)}
    return RetrievalTask("circo", there.of_images(images), ids, reference, texts, score, submission, target,
                         **there.counts)  # fmt: skip


def _aspects(query: Record) -> list[str]:
    """The semantic aspects of a query; none in a file without them."""
    return records.items(query, ASPECTS, str, distinct=True) if ASPECTS in query.values else []


def _score(queries, gallery, *, target, truths, aspects) -> dict[str, float]:
    ranking = retrieval.top_k(queries, gallery, max(KS)).rows
    precision = metrics.mean_average_precision_at(ranking, truths, KS)
    recall = metrics.recall_at(ranking, target, KS)
    found = {f"map_at_{k}": precision[k] for k in KS} | {f"recall_at_{k}": recall[k] for k in KS}
    for aspect in sorted({name for names in aspects for name in names}):
        of_aspect = [place for place, names in enumerate(aspects) if aspect in names]
        precision = metrics.mean_average_precision_at(ranking[of_aspect], truths[of_aspect], (10,))
        found[f"map_at_10_{aspect}"] = precision[10]
    return found


def _submission(queries, gallery, *, queries_ids, ids) -> dict[str, Any]:
    """The file that the test server takes, checked."""
    ranking = retrieval.top_k(queries, gallery, max(KS)).rows
    answers = {str(query): [ids[row] for row in ranked] for query, ranked in zip(queries_ids, ranking, strict=True)}
    check_submission(answers, ids, max(KS), "CIRCO")
    return {"circo.json": answers}
