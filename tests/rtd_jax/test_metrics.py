"""Metrics on rankings written by hand, and against loops over the definitions on random ones."""

import numpy as np
import pytest

from rtd_jax import metrics

RANKING = np.array([[4, 2, 0, 1, 3], [0, 1, 2, 3, 4], [3, 4, 1, 0, 2], [1, 0, 4, 2, -1]])


def test_recall_by_hand():
    # places 2, 1, 5, and not there at all
    assert metrics.recall_at(RANKING, np.array([2, 0, 2, 3]), (1, 2, 4, 5)) == {1: 25.0, 2: 50.0, 4: 50.0, 5: 75.0}


def test_mean_average_precision_by_hand():
    truths = np.array([[2, 1, -1], [4, -1, -1], [3, 4, 1], [9, 1, -1]])
    found = metrics.mean_average_precision_at(RANKING, truths, (1, 3, 5))
    # right answers at places 2 and 4; 5; 1, 2 and 3; 1 (the other is in no ranking)
    at = {
        1: [0, 0, 1, 1],
        3: [(1 / 2) / 2, 0, (1 + 1 + 1) / 3, 1 / 2],
        5: [(1 / 2 + 2 / 4) / 2, 1 / 5, 1, 1 / 2],
    }
    assert found == {k: pytest.approx(100 * np.mean(values)) for k, values in at.items()}


def test_more_right_answers_than_places():
    """AP@k is divided by k where there are more than k right answers."""
    found = metrics.mean_average_precision_at(np.array([[5, 6, 7]]), np.array([[7, 6, 5, 8]]), (2, 3))
    assert found == {2: 100.0, 3: 100.0}


def test_subset_recall_by_hand():
    members = np.array([[0, 1, 3], [4, 3, -1], [0, 2, 3], [2, 4, 0]])
    # order among the members: 0 1 3; 3 4; 3 0 2; 0 4 2
    found = metrics.subset_recall_at(RANKING, np.array([1, 3, 2, 0]), members, (1, 2, 3))
    assert found == {1: 50.0, 2: 75.0, 3: 100.0}


def test_subset_recall_takes_a_ranking_of_the_members_alone():
    rows = np.array([[7, 3, 5], [2, 9, -1]])
    found = metrics.subset_recall_at(rows, np.array([3, 2]), np.array([[3, 5, 7], [2, 9, -1]]), (1, 2))
    assert found == {1: 50.0, 2: 100.0}


def average_precision(ranking, truths, k):
    hits, total = 0, 0.0
    for place, row in enumerate(ranking[:k], 1):
        if row in truths:
            hits += 1
            total += hits / place
    return total / min(k, len(truths))


def test_against_loops_on_random_rankings():
    rng = np.random.default_rng(0)
    ranking = rng.permuted(np.tile(np.arange(30), (40, 1)), axis=1)
    counts = rng.integers(1, 9, 40)
    truths = rng.permuted(np.tile(np.arange(30), (40, 1)), axis=1)[:, :8]
    truths = np.where(np.arange(8) < counts[:, None], truths, -1)
    ks, pairs = (1, 5, 10, 25, 30), list(zip(ranking, truths, strict=True))
    expected = {k: 100 * np.mean([average_precision(r, [t for t in row if t >= 0], k) for r, row in pairs]) for k in ks}
    assert metrics.mean_average_precision_at(ranking, truths, ks) == pytest.approx(expected)
    assert metrics.mean_average_precision_at(ranking[:, :10], truths, (1, 5, 10)) == pytest.approx(
        {k: expected[k] for k in (1, 5, 10)}
    )
    first = truths[:, 0]
    recall = {k: 100 * np.mean([t in r[:k] for r, t in zip(ranking, first, strict=True)]) for k in ks}
    assert metrics.recall_at(ranking, first, ks) == pytest.approx(recall)
    subset = {
        k: 100 * np.mean([t in [r for r in rank if r in row][:k] for (rank, row), t in zip(pairs, first, strict=True)])
        for k in (1, 2, 3)
    }
    assert metrics.subset_recall_at(ranking, first, truths, (1, 2, 3)) == pytest.approx(subset)


TARGET = np.array([0, 0, 0, 0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.recall_at(RANKING, TARGET, (6,)), "6 is not from 1 to 5, the number of places"),
        (lambda: metrics.recall_at(RANKING, TARGET, (0, 1)), "0 is not from 1 to 5"),
        (lambda: metrics.recall_at(RANKING, TARGET, ()), "none is not from 1"),
        (lambda: metrics.recall_at(RANKING[:0], TARGET[:0], (1,)), "no queries"),
        (lambda: metrics.recall_at(RANKING, TARGET[:2], (1,)), r"target must be integers of shape \(4,\)"),
        (lambda: metrics.recall_at(RANKING, TARGET - 1, (1,)), "target of query 0 is -1"),
        (lambda: metrics.recall_at(RANKING / 2, TARGET, (1,)), "ranking must be integers .* float64"),
        (lambda: metrics.recall_at(np.array([[3, 1], [2, 2]]), TARGET[:2], (1,)), "query 1 names gallery row 2 more"),
        (lambda: metrics.recall_at(np.array([[3, 1], [-1, 2]]), TARGET[:2], (1,)), "query 1 has padding"),
        (lambda: metrics.recall_at(RANKING - 1, TARGET, (1,)), "query 3 holds -2"),
        (lambda: metrics.mean_average_precision_at(RANKING, TARGET[:, None] - [[1]], (1,)), "query 0 has no ground"),
        (lambda: metrics.mean_average_precision_at(RANKING, np.ones((4, 2), int), (1,)), "names gallery row 1 more"),
        (lambda: metrics.mean_average_precision_at(RANKING, np.ones((3, 2), int), (1,)), r"shape \(4, n\)"),
        (lambda: metrics.subset_recall_at(RANKING, TARGET, RANKING[:, :3], (1,)), "target 0 of query 2 is not among"),
        (lambda: metrics.subset_recall_at(RANKING, TARGET, RANKING[:, :4], (5,)), "number of members"),
        (lambda: metrics.subset_recall_at(RANKING[:, :2], TARGET, RANKING[:, :4], (1,)), "query 0 does not reach"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
