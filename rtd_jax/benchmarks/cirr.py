"""CIRR (Liu et al., ICCV 2021, https://arxiv.org/abs/2108.04024), in the layout of its release.

    ROOT/cirr/captions/cap.rc2.{val,test1}.json        queries
    ROOT/cirr/image_splits/split.rc2.{val,test1}.json  name -> path below ROOT
    ROOT/dev/…, ROOT/test1/…                           images

The reference leaves the gallery of its query. Recall at 1, 5, 10, 50; recall at 1, 2, 3 among the group of six similar
images, less the reference. `test1` has no ground truth: its answers go to the test server, two JSON files. One of its
captions is blank, and the server wants an answer to that query too.
"""

from collections.abc import Mapping
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

SPLITS = ("val", "test1")
KS, SUBSET_KS = (1, 5, 10, 50), (1, 2, 3)
SUBMITTED, SUBSET_SUBMITTED = 50, 3


def load(root: str | Path, split: str = "val", *, skip_missing: bool = False) -> RetrievalTask:
    """A split of CIRR.

    Args:
      root: the folder of the release.
      split: a name in `SPLITS`.
      skip_missing: leave out images that are missing, and the queries whose reference or target they are.

    Raises:
      ValueError: an unknown split; a file, entry or field that is not as the release has it, by name.
      FileNotFoundError: a missing file.
    """
    if split not in SPLITS:
        raise ValueError(f"CIRR has no split {split!r} to evaluate on; valid splits: {', '.join(SPLITS)}")
    root = paths.path(root, "root")
    listed = root / "cirr" / "image_splits" / f"split.rc2.{split}.json"
    files = jsons.read(listed, top=dict)
    images = [paths.inside(root, file, listed=listed, field=name) for name, file in files.items()]
    check_images(images, [repr(name) for name in files], listed)
    index = {name: place for place, name in enumerate(files)}
    queries = read_queries(root / "cirr" / "captions" / f"cap.rc2.{split}.json")
    pairs = distinct(queries, "pairid", int)
    reference = np.array([row(query, "reference", str, index) for query in queries], np.int32)
    texts = [(records.field(query, "caption", str).strip(),) for query in queries]
    members = [_members(query, of_reference, index) for query, of_reference in zip(queries, reference, strict=True)]
    target = None
    if split == "val":
        target = targets(
            queries,
            "target_hard",
            str,
            index,
            reference=reference,
            among=members,
            candidates="the members of 'img_set'",
        )
    own = [reference] if target is None else [reference, target]
    there = present("cirr", images, own, listed=listed, skip=skip_missing, served=target is None)
    names, similar, reference = there.of_images(list(files)), padded(there.lists(members)), there.rows(reference)
    score = None
    if target is not None:
        target = there.rows(target)
        score = partial(_score, reference=reference, target=target, members=similar)
    submission = partial(_submission, pairs=pairs, names=names, reference=reference, members=similar)
    texts = {"": there.of_queries(texts)}
    return RetrievalTask("cirr", there.of_images(images), names, reference, texts, score, submission, target,
                         **there.counts)  # fmt: skip


def _members(query: Record, reference: int, index: Mapping[str, int]) -> list[int]:
    """The gallery rows of the images that are similar to the reference, without it."""
    group = query.child("img_set")
    members = rows(group, "members", str, index)
    if reference not in members:
        raise group.error(f"must contain the reference, {query.values['reference']!r}", "members")
    if len(members) < 3:
        raise group.error("must contain two images besides the reference: of one, every answer is right", "members")
    return [member for member in members if member != reference]


def _score(queries, gallery, *, reference, target, members) -> dict[str, float]:
    ranking = retrieval.top_k(queries, gallery, max(KS), exclude=reference).rows
    recall = metrics.recall_at(ranking, target, KS)
    ranking = retrieval.rank_members(queries, gallery, members).rows
    among = metrics.subset_recall_at(ranking, target, members, SUBSET_KS)
    return {f"recall_at_{k}": recall[k] for k in KS} | {f"subset_recall_at_{k}": among[k] for k in SUBSET_KS}


def _submission(queries, gallery, *, pairs, names, reference, members) -> dict[str, Any]:
    """The two files for the test server, checked."""
    ranking = retrieval.top_k(queries, gallery, SUBMITTED, exclude=reference).rows
    among = retrieval.rank_members(queries, gallery, members).rows[:, :SUBSET_SUBMITTED]
    files = {}
    for metric, ranked, length in (("recall", ranking, SUBMITTED), ("recall_subset", among, SUBSET_SUBMITTED)):
        answered = [[names[row] for row in query if row >= 0] for query in ranked]  # small groups are filled with -1
        answers = dict(zip(map(str, pairs), answered, strict=True))
        check_submission(answers, names, length, f"CIRR {metric}")
        files[f"cirr_{metric}.json"] = {"version": "rc2", "metric": metric, **answers}
    return files
