"""CIRR (Liu et al., ICCV 2021, https://arxiv.org/abs/2108.04024), in the layout of its release.

    ROOT/cirr/captions/cap.rc2.{val,test1}.json        queries
    ROOT/cirr/image_splits/split.rc2.{val,test1}.json  name -> path below ROOT
    ROOT/dev/…, ROOT/test1/…                           images

The reference leaves the gallery of its query. Recall at 1, 5, 10, 50; recall at 1, 2, 3 among the group of six similar
images, less the reference. `test1` has no ground truth: its answers go to the test server, two JSON files.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.task import RetrievalTask, check_files, check_submission, fields, load_json, rows

SPLITS = ("val", "test1")
KS, SUBSET_KS = (1, 5, 10, 50), (1, 2, 3)
SUBMITTED, SUBSET_SUBMITTED = 50, 3


def load(root: str | Path, split: str = "val") -> RetrievalTask:
    """A split of CIRR.

    Raises:
      ValueError: an unknown split, a query without a field, an image that the split lacks.
      FileNotFoundError: a missing file.
    """
    if split not in SPLITS:
        raise ValueError(f"CIRR has no split {split!r} to evaluate on; valid splits: {', '.join(SPLITS)}")
    root = Path(root).expanduser()
    names_path = root / "cirr" / "image_splits" / f"split.rc2.{split}.json"
    captions_path = root / "cirr" / "captions" / f"cap.rc2.{split}.json"
    files = load_json(names_path)
    if not isinstance(files, dict):
        raise ValueError(f"{names_path} must hold an object of names and paths, not a {type(files).__name__}")
    images = [root / path for path in files.values()]
    check_files(images, str(names_path))
    index = {name: row for row, name in enumerate(files)}
    where = str(captions_path)
    names = ("pairid", "reference", "caption", "img_set") + (("target_hard",) if split == "val" else ())
    table = [fields(entry, names, where) for entry in load_json(captions_path)]
    pairs, references, texts, groups = ([row[i] for row in table] for i in range(4))
    reference = rows(references, index, where)
    members = [
        [name for name in fields(group, ("members",), where)[0] if name != reference_name]
        for group, reference_name in zip(groups, references, strict=True)
    ]
    width = max(map(len, members), default=0)
    subset = np.full((len(members), width), -1, np.int32)
    for place, group in enumerate(members):
        subset[place, : len(group)] = rows(group, index, where)
    score = target = None
    if split == "val":
        target = rows([row[4] for row in table], index, where)
        score = partial(_score, reference=reference, target=target, members=subset)
    submission = partial(_submission, pairs=pairs, names=list(files), reference=reference, members=subset)
    texts = {"": [(text,) for text in texts]}
    return RetrievalTask("cirr", images, list(files), reference, texts, score, submission, target)


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
        if len(answers) != len(pairs):
            raise ValueError(f"CIRR {metric}: {len(pairs)} queries have {len(answers)} different pair ids")
        files[f"cirr_{metric}.json"] = {"version": "rc2", "metric": metric, **answers}
    return files
