"""Scenes' composed retrieval: the reference rendered afresh, its own gallery image a distractor, targets held out."""

from functools import partial

import numpy as np

from launch.data import scenes
from rtd_jax import metrics, retrieval
from rtd_jax.benchmarks.task import RetrievalTask

KS = (1, 5, 10)


def load(seed: int, *, gallery: int = 1500, queries: int = 1000) -> RetrievalTask:
    """One draw of the benchmark, worded in phrasings that training has seen ("") and in others ("unseen")."""
    drawn = scenes.retrieval(seed, gallery=gallery, queries=queries)
    names = {"seen": "", "unseen": "unseen"}
    texts = {names[name]: [(text,) for text in column] for name, column in drawn.modifications.items()}
    return RetrievalTask(
        "scenes",
        drawn.gallery_images,
        range(len(drawn.gallery_images)),
        drawn.reference,
        texts,
        partial(_score, target=drawn.target, edits=drawn.edits),
        target=drawn.target,
        query_images=drawn.query_images,
        oracle=drawn.target_captions,
        text_only="a photo of an object that {}",
    )


def _score(queries: np.ndarray, gallery: np.ndarray, *, target: np.ndarray, edits: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5, 10 of all queries, and at 1 of those that edit one attribute and of those that edit two."""
    ranking = retrieval.top_k(queries, gallery, max(KS)).rows
    recall = metrics.recall_at(ranking, target, KS)
    by_edits = {n: metrics.recall_at(ranking[edits == n], target[edits == n], (1,))[1] for n in (1, 2)}
    return {f"recall_at_{k}": recall[k] for k in KS} | {f"recall_at_1_edits_{n}": by_edits[n] for n in (1, 2)}
