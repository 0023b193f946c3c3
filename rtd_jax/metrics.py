"""Recall and mean average precision of rankings. Plain NumPy on integers, independent of how rankings are made.

A ranking is an integer array (q, n): row i names the gallery rows for query i, best first. Where
galleries differ in size, -1 fills the ends. Every value is a mean over the queries in percent, 0 to 100.
"""

from collections.abc import Sequence

import numpy as np

PADDING = -1


def recall_at(ranking: np.ndarray, target: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Percentage of the queries whose target is among the first k.

    Args:
      ranking: int (q, n).
      target: int (q,), gallery rows.
      ks: how many of the first places count.

    Returns:
      {k: percentage}.

    Raises:
      ValueError: no queries, a k below 1 or above n, a row that a ranking names twice, padding in front of a row, or
        a target below 0.
    """
    ranking, target = _ranking(ranking, ks), _targets(target, len(ranking))
    places = _places(ranking, target)
    return {int(k): float(100 * (places < k).mean()) for k in ks}


def mean_average_precision_at(ranking: np.ndarray, ground_truths: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """mAP@k over several right answers per query (Baldrati et al. 2023, arXiv 2303.15247, section 5, CIRCO).

        AP@k = 1 / min(k, |ground truths|) · sum of (right answers up to p) / p over the places p ≤ k of right answers

    Args:
      ranking: int (q, n).
      ground_truths: int (q, m), gallery rows; -1 fills the rows of queries with fewer.
      ks: how many of the first places count.

    Returns:
      {k: percentage}.

    Raises:
      ValueError: as `recall_at`; a query without ground truth, or with one twice.
    """
    ranking, truths = _ranking(ranking, ks), _rows("ground_truths", ground_truths, len(ranking))
    counts = (truths != PADDING).sum(1)
    if len(bad := np.flatnonzero(counts == 0)):
        raise ValueError(f"query {bad[0]} has no ground truth")
    _no_repeats("ground_truths", truths)
    deepest = max(ks)
    first = ranking[:, :deepest]
    hits = ((first[:, :, None] == truths[:, None]) & (first != PADDING)[:, :, None]).any(2)
    precision = np.cumsum(hits, 1) / np.arange(1, deepest + 1)
    gains = np.cumsum(precision * hits, 1)
    return {int(k): float(100 * (gains[:, k - 1] / np.minimum(counts, k)).mean()) for k in ks}


def subset_recall_at(
    ranking: np.ndarray, target: np.ndarray, members: np.ndarray, ks: Sequence[int]
) -> dict[int, float]:
    """Recall among a few images per query: the ranking with everything else left out (Liu et al. 2021, CIRR).

    Args:
      ranking: int (q, n); it must name each query's target. A ranking of the members alone is enough, see
        `rtd_jax.retrieval.rank_members`.
      target: int (q,), gallery rows, each of them one of its query's members.
      members: int (q, m), gallery rows without the reference; -1 fills the rows of queries with fewer.
      ks: how many of the first places count.

    Returns:
      {k: percentage}.

    Raises:
      ValueError: as `recall_at`; a target that is no member, or that its ranking does not reach.
    """
    ranking = _ranking(ranking, (1,))
    target, members = _targets(target, len(ranking)), _rows("members", members, len(ranking))
    _check_ks(ks, members.shape[1], "members")
    _no_repeats("members", members)
    if len(bad := np.flatnonzero((members != target[:, None]).all(1))):
        raise ValueError(f"the target {target[bad[0]]} of query {bad[0]} is not among its members")
    places = _places(ranking, target)
    if len(bad := np.flatnonzero(places == ranking.shape[1])):
        raise ValueError(
            f"the ranking of query {bad[0]} does not reach its target {target[bad[0]]}: rank the whole gallery, or the "
            "members alone (rtd_jax.retrieval.rank_members)"
        )
    before = np.arange(ranking.shape[1]) < places[:, None]
    # column by column: (q, n, m) at once is large where whole galleries are ranked
    ahead = np.zeros(len(ranking), np.int64)
    for column in _real_columns(members):
        ahead += ((ranking == column[:, None]) & before).sum(1)
    return {int(k): float(100 * (ahead < k).mean()) for k in ks}


def _real_columns(members: np.ndarray) -> np.ndarray:
    """Columns of `members`, with a row that is in no ranking in place of padding."""
    return np.where(members == PADDING, PADDING - 1, members).T


def _places(ranking: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The place of each target in its ranking, from 0; n for a target that is not in it."""
    hits = ranking == target[:, None]
    return np.where(hits.any(1), hits.argmax(1), ranking.shape[1])


def _ranking(ranking: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    ranking = _rows("ranking", ranking)
    if not len(ranking):
        raise ValueError("there are no queries")
    _check_ks(ks, ranking.shape[1], "places")
    padding = ranking == PADDING
    if len(bad := np.flatnonzero((padding[:, :-1] & ~padding[:, 1:]).any(1))):
        raise ValueError(f"the ranking of query {bad[0]} has padding ({PADDING}) in front of a row")
    _no_repeats("ranking", ranking)
    return ranking


def _check_ks(ks: Sequence[int], most: int, of: str) -> None:
    if len(bad := [k for k in ks if not 1 <= k <= most]) or not len(ks):
        raise ValueError(f"ks={tuple(ks)}: {bad[0] if bad else 'none'} is not from 1 to {most}, the number of {of}")


def _targets(target: np.ndarray, queries: int) -> np.ndarray:
    target = np.asarray(target)
    if target.shape != (queries,) or not np.issubdtype(target.dtype, np.integer):
        raise ValueError(f"target must be integers of shape ({queries},), got {target.dtype} {target.shape}")
    if len(bad := np.flatnonzero(target < 0)):
        raise ValueError(f"the target of query {bad[0]} is {target[bad[0]]}, not a row of the gallery")
    return target


def _rows(name: str, rows: np.ndarray, queries: int | None = None) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer) or queries not in (None, len(rows)):
        shape = f"({'queries' if queries is None else queries}, n)"
        raise ValueError(f"{name} must be integers of shape {shape}, got {rows.dtype} {rows.shape}")
    if len(bad := np.flatnonzero((rows < PADDING).any(1))):
        raise ValueError(f"{name} of query {bad[0]} holds {rows[bad[0]].min()}, not a row of the gallery")
    return rows


def _no_repeats(name: str, rows: np.ndarray) -> None:
    ordered = np.sort(rows, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING)
    if len(bad := np.argwhere(repeated)):
        query, column = bad[0]
        raise ValueError(f"{name} of query {query} names gallery row {ordered[query, column + 1]} more than once")
