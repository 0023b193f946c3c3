"""Chunked and sharded search against one stable argsort over all scores, ties and exclusions included."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtd_jax import retrieval
from rtd_jax.retrieval import nearest
from tests.commands import finish, start

WIDTH = 8


def whole_numbers(n, seed=0, high=3):
    """Vectors whose inner products are exact, with many ties."""
    return np.random.default_rng(seed).integers(-high, high + 1, (n, WIDTH)).astype(np.float32)


def by_argsort(queries, gallery, k, exclude=None):
    """Rows and scores; the lower row first among equals."""
    scores = queries @ gallery.T
    for i, rows in enumerate([] if exclude is None else exclude.reshape(len(queries), -1)):
        scores[i, rows[rows >= 0]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


def check(found, expected):
    rows, scores = expected
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.rows.dtype == np.int32 and found.scores.dtype == np.float32


# (gallery rows, k, chunk): one chunk, chunks that divide the gallery and not, k of everything, more k than a chunk has,
# and sizes at which whole blocks are compared first
SIZES = [(300, 10, 1000), (300, 10, 100), (301, 7, 64), (77, 77, 16), (90, 50, 20), (3000, 5, 1024), (2000, 1, 2000)]


@pytest.mark.parametrize("rows, k, chunk", SIZES)
def test_equal_to_argsort(rows, k, chunk):
    queries, gallery = whole_numbers(9), whole_numbers(rows, seed=1)
    check(retrieval.top_k(queries, gallery, k, chunk=chunk), by_argsort(queries, gallery, k))


def test_a_gallery_of_equals_comes_in_its_order():
    """Every score the same, zero with either sign among them."""
    gallery = np.ones((2000, WIDTH), np.float32)
    gallery[::2] *= -1
    found = retrieval.top_k(np.zeros((2, WIDTH), np.float32), gallery, 40, chunk=700)
    np.testing.assert_array_equal(found.rows, np.tile(np.arange(40), (2, 1)))


def test_rare_best_rows_are_found_in_one_block():
    """The ten best rows lie side by side: fewer blocks than k hold them all."""
    gallery = whole_numbers(4000, high=1)
    gallery[1000:1010] = 9
    queries = np.ones((3, WIDTH), np.float32)
    check(retrieval.top_k(queries, gallery, 10, chunk=4000), by_argsort(queries, gallery, 10))


@pytest.mark.parametrize("shape", [(9,), (9, 4)])
def test_excluded_rows(shape):
    queries, gallery = whole_numbers(9), whole_numbers(300, seed=1)
    best = by_argsort(queries, gallery, 4)[0]
    exclude = best[:, 0] if len(shape) == 1 else np.where([1, 1, 0, 1], best, -1)
    found = retrieval.top_k(queries, gallery, 10, exclude=exclude, chunk=100)
    check(found, by_argsort(queries, gallery, 10, exclude))
    everything = retrieval.top_k(queries, gallery, 300 - (1 if len(shape) == 1 else 3), exclude=exclude)
    assert not (everything.rows[:, :, None] == exclude.reshape(9, 1, -1)).any()


def test_a_row_excluded_twice_counts_once():
    queries, gallery = whole_numbers(2), whole_numbers(4, seed=1)
    exclude = np.array([[1, 1], [2, -1]])
    check(retrieval.top_k(queries, gallery, 3, exclude=exclude), by_argsort(queries, gallery, 3, exclude))


def test_a_gallery_on_the_device():
    queries, gallery = whole_numbers(9), whole_numbers(301, seed=1)
    found = retrieval.top_k(queries, jnp.asarray(gallery), 10, chunk=64)
    check(found, by_argsort(queries, gallery, 10))


@pytest.mark.parametrize("recall_target", [None, 0.99])
@pytest.mark.parametrize("rows, k, chunk", [(40, 40, 16), (300, 300, 1000), (3000, 5, 1024), (2000, 1, 2000)])
@pytest.mark.parametrize("least", [-np.inf, -3e38])  # the second overflows in the sum
def test_a_score_of_minus_infinity_is_a_row(rows, k, chunk, least, recall_target):
    """All rows but two in the middle, so that ties of them fill the lists, and whole blocks have nothing else."""
    queries, gallery = np.abs(whole_numbers(9)) + 1, whole_numbers(rows, seed=1)
    gallery[np.arange(rows) // 2 != rows // 4] = least
    with np.errstate(over="ignore"):
        check(
            retrieval.top_k(queries, gallery, k, chunk=chunk, recall_target=recall_target),
            by_argsort(queries, gallery, k),
        )


def test_a_gallery_mapped_from_a_file(tmp_path):
    gallery = whole_numbers(500, seed=1)
    np.save(tmp_path / "gallery.npy", gallery.astype(np.float16))
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    queries = whole_numbers(3)
    check(retrieval.top_k(queries, mapped, 10, chunk=128), by_argsort(queries, gallery, 10))


def test_more_queries_than_are_held_at_once(monkeypatch):
    monkeypatch.setitem(nearest._QUERIES, "cpu", 4)
    queries, gallery = whole_numbers(9), whole_numbers(200, seed=1)
    check(retrieval.top_k(queries, gallery, 6, chunk=64), by_argsort(queries, gallery, 6))


def test_cosine():
    queries, gallery = whole_numbers(5) + 0.5, whole_numbers(300, seed=1) + 0.25
    found = retrieval.top_k(queries, gallery, 300, cosine=True, chunk=100)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = unit(queries.astype(np.float64)) @ unit(gallery.astype(np.float64)).T
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(scores, found.rows, 1), found.scores, atol=1e-6)


def test_bfloat16_rounds_the_factors_and_not_the_sums():
    queries, gallery = np.full((1, 301), 1.0 + 2**-12, np.float32), np.ones((2, 301), np.float32)
    assert retrieval.top_k(queries, gallery, 1).scores[0, 0] == pytest.approx(301 * (1 + 2**-12), rel=1e-6)
    assert retrieval.top_k(queries, gallery, 1, dtype="bfloat16").scores[0, 0] == 301  # which bfloat16 cannot hold
    noisy = np.random.default_rng(0).normal(size=(200, WIDTH)).astype(np.float32)
    coarse, fine = (retrieval.top_k(noisy[:3], noisy, 5, dtype=d) for d in ("bfloat16", "float32"))
    assert 0 < np.abs(coarse.scores - fine.scores).max() < 0.1


def test_approximately():
    queries, gallery = whole_numbers(9), whole_numbers(3000, seed=1, high=50)
    found = retrieval.top_k(queries, gallery, 10, recall_target=0.9, chunk=1000)
    exact = by_argsort(queries, gallery, 10)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows, exact, strict=True)]) >= 0.8


def test_members():
    queries, gallery = whole_numbers(40), whole_numbers(50, seed=1)
    members = np.random.default_rng(0).permuted(np.tile(np.arange(50), (40, 1)), axis=1)[:, :6]
    members[::3, 4:] = -1
    found = retrieval.rank_members(queries, gallery, members)
    for i, own in enumerate(members):
        own = np.sort(own[own >= 0])
        expected = own[np.argsort(-(gallery[own] @ queries[i]), kind="stable")]
        np.testing.assert_array_equal(found.rows[i], [*expected, *[-1] * (6 - len(own))])
    assert (found.scores == -np.inf).sum() == 28
    turned = retrieval.rank_members(-3 * queries - 0.1, gallery + 0.1, members, cosine=True)
    assert np.abs(turned.scores[turned.rows >= 0]).max() <= 1 + 1e-6


Q, G = np.ones((2, WIDTH), np.float32), np.ones((5, WIDTH), np.float32)
NAN = np.where(np.arange(5)[:, None] == 3, np.nan, G)
INF = np.where(np.arange(3000)[:, None] == 2007, np.inf, np.ones((3000, WIDTH))).astype(np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: retrieval.top_k(Q, G, 6), "k=6 must lie between 1 and the 5 rows of the gallery"),
        (lambda: retrieval.top_k(Q, G, 0), "k=0 must lie"),
        (lambda: retrieval.top_k(Q, G, 5, exclude=np.array([-1, 2])), "the 5 rows of the gallery, 4 of them left"),
        (lambda: retrieval.top_k(Q, G, 1, exclude=np.array([0, 5])), "exclude of query 1 names row 5, .* rows 0 to 4"),
        (lambda: retrieval.top_k(Q, G, 1, exclude=np.array([0])), "exclude must be integers with a row for each of 2"),
        (lambda: retrieval.top_k(Q, G[:0], 1), "the gallery is empty"),
        (lambda: retrieval.top_k(Q[:0], G, 1), "there are no queries"),
        (lambda: retrieval.top_k(Q, G[:, :3], 1), r"as wide as each other, got \(2, 8\) and \(5, 3\)"),
        (lambda: retrieval.top_k(Q, G, 1, dtype="int8"), "unknown dtype 'int8'; valid names: 'float32', 'bfloat16'"),
        (lambda: retrieval.top_k(Q, G, 1, chunk=0), "chunk=0 must be"),
        (lambda: retrieval.top_k(Q, G, 1, recall_target=1.0), "recall_target=1.0 must lie between"),
        (lambda: retrieval.top_k(Q, NAN, 2), "score of gallery row 3 for query 0 is NaN"),
        (lambda: retrieval.top_k(0 * Q, INF, 2), "score of gallery row 2007 for query 0 is NaN"),  # a negative one
        (lambda: retrieval.rank_members(Q, G, np.array([[1, 2], [-1, -1]])), "query 1 has no members"),
        (lambda: retrieval.rank_members(Q, NAN, np.array([[1, 2], [0, 3]])), "gallery row 3 for query 1 is NaN"),
        (lambda: retrieval.rank_members(Q, G, np.array([[1, 2], [0, 5]])), "members of query 1 names row 5"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def on_devices() -> dict[str, object]:
    """What `test_eight_devices` looks at, computed where there are eight."""
    out = {"devices": jax.device_count(), "equal": []}
    with pytest.raises(ValueError, match="score of gallery row 3 for query 0 is NaN"):
        retrieval.top_k(Q, NAN, 2)
    for rows, k, chunk in SIZES:
        queries, gallery = whole_numbers(9), whole_numbers(rows, seed=1)
        exclude = by_argsort(queries, gallery, 2)[0]
        expected = by_argsort(queries, gallery, k)
        for where in (gallery, jnp.asarray(gallery)):
            found = retrieval.top_k(queries, where, k, chunk=chunk)
            out["equal"].append(all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)))
        if k + 2 <= rows:
            found = retrieval.top_k(queries, gallery, k, chunk=chunk, exclude=exclude)
            expected = by_argsort(queries, gallery, k, exclude)
            out["equal"].append(all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)))
    return out


def test_eight_devices():
    found = json.loads(finish(start("-m", "tests.rtd_jax.retrieval.test_retrieval", devices=8)).splitlines()[-1])
    assert found["devices"] == 8 and len(found["equal"]) > 2 * len(SIZES) and all(found["equal"])


if __name__ == "__main__":
    print(json.dumps(on_devices()))
