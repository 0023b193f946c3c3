"""CIRCO (Baldrati et al., ICCV 2023, https://arxiv.org/abs/2303.15247), in the layout of its release.

    ROOT/annotations/{val,test}.json                                     queries
    ROOT/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json    the gallery: 123,403 images
    ROOT/COCO2017_unlabeled/unlabeled2017/*.jpg

mAP at 5, 10, 25, 50 over several ground truths, and recall on the first target. `test` has no ground truth: its answers
go to the test server, a JSON file of 50 image ids per query.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.task import RetrievalTask, check_files, check_submission, fields, load_json, rows

SPLITS = ("val", "test")
KS = (5, 10, 25, 50)


def load(root: str | Path, split: str = "val") -> RetrievalTask:
    """A split of CIRCO.

    Raises:
      ValueError: an unknown split, a query without a field, an image that the gallery lacks.
      FileNotFoundError: a missing file.
    """
    if split not in SPLITS:
        raise ValueError(f"CIRCO has no split {split!r}; valid splits: {', '.join(SPLITS)}")
    root = Path(root).expanduser()
    coco = root / "COCO2017_unlabeled"
    info_path = coco / "annotations" / "image_info_unlabeled2017.json"
    info = [fields(entry, ("id", "file_name"), str(info_path)) for entry in load_json(info_path)["images"]]
    ids = [int(number) for number, _ in info]
    images = [coco / "unlabeled2017" / name for _, name in info]
    check_files(images, str(info_path))
    index = {number: row for row, number in enumerate(ids)}
    queries_path = root / "annotations" / f"{split}.json"
    where = str(queries_path)
    names = ("id", "reference_img_id", "relative_caption")
    names += ("target_img_id", "gt_img_ids") if split == "val" else ()
    table = [fields(entry, names, where) for entry in load_json(queries_path)]
    reference = rows([int(row[1]) for row in table], index, where)
    score = target = None
    if split == "val":
        target = rows([int(row[3]) for row in table], index, where)
        truths = [[int(number) for number in row[4]] for row in table]
        padded = np.full((len(truths), max(map(len, truths), default=0)), -1, np.int32)
        for place, numbers in enumerate(truths):
            padded[place, : len(numbers)] = rows(numbers, index, where)
        score = partial(_score, target=target, truths=padded)
    submission = partial(_submission, queries_ids=[row[0] for row in table], ids=ids)
    return RetrievalTask("circo", images, ids, reference, {"": [(row[2],) for row in table]}, score, submission, target)


def _score(queries, gallery, *, target, truths) -> dict[str, float]:
    ranking = retrieval.top_k(queries, gallery, max(KS)).rows
    precision = metrics.mean_average_precision_at(ranking, truths, KS)
    recall = metrics.recall_at(ranking, target, KS)
    return {f"map_at_{k}": precision[k] for k in KS} | {f"recall_at_{k}": recall[k] for k in KS}


def _submission(queries, gallery, *, queries_ids, ids) -> dict[str, Any]:
    """The file that the test server takes, checked."""
    ranking = retrieval.top_k(queries, gallery, max(KS)).rows
    answers = {str(query): [ids[row] for row in ranked] for query, ranked in zip(queries_ids, ranking, strict=True)}
    check_submission(answers, ids, max(KS), "CIRCO")
    if len(answers) != len(queries_ids):
        raise ValueError(f"CIRCO: {len(queries_ids)} queries have {len(answers)} different ids")
    return {"circo.json": answers}
