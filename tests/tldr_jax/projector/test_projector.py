"""The closed form against its normal equations, scikit-learn's Ridge, finite shards, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from tldr_jax import heads, projector
from tldr_jax.projector import mlp as mlp_projector

N, D, F = 90, 12, 7


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) @ np.diag(np.geomspace(1, 0.05, D)) + 0.3
    y = np.maximum(x @ rng.normal(size=(D, F)) + 0.1 * rng.normal(size=(N, F)), 0)
    return x, y, rng.normal(size=(3, D))


def lagrange(x, y, gap, ridge):
    """The minimiser of ‖XW − Y‖² + λ‖W‖² subject to G W = 0, from the linear system of its Lagrangian."""
    m = len(gap)
    system = np.block([[x.T @ x + ridge * np.eye(x.shape[1]), gap.T], [gap, np.zeros((m, m))]])
    return np.linalg.solve(system, np.concatenate([x.T @ y, np.zeros((m, y.shape[1]))]))[: x.shape[1]]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 50.0])
def test_the_constrained_minimum(data, rows, ridge):
    x, y, gap = data
    found = projector.fit(x, y, gap[:rows], ridge=ridge, relu=False)
    expected = lagrange(x, y, gap[:rows], ridge)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.bias, (y - x @ expected).mean(0), rtol=1e-9, atol=1e-11)
    assert np.abs(gap[:rows] @ found.weight).max() < 1e-10
    assert found.weight.dtype == np.float64


def test_without_a_gap_it_is_scikit_learns_ridge(data):
    x, y, _ = data
    found = projector.fit(x, y, None, ridge=2.0, relu=False)
    theirs = Ridge(alpha=2.0, fit_intercept=False, solver="svd").fit(x, y)
    np.testing.assert_allclose(found.weight, theirs.coef_.T, rtol=1e-10, atol=1e-12)


def test_the_constraint_holds_where_the_gram_matrix_is_ill_conditioned():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 40)) * np.geomspace(1, 1e-5, 40)
    y, gap = rng.normal(size=(200, 5)), rng.normal(size=(2, 40))
    found = projector.fit(x, y, gap, ridge=1e-9, relu=False)
    scale = np.linalg.norm(gap) * np.linalg.norm(found.weight)
    assert np.linalg.norm(gap @ found.weight) < 1e-12 * scale
    relaxed = projector.fit(x, y, None, ridge=1e-9, relu=False)
    assert np.linalg.norm(gap @ relaxed.weight) > 1e-3 * np.linalg.norm(gap) * np.linalg.norm(relaxed.weight)


def test_gap_rows_count_through_the_space_they_span(data):
    x, y, gap = data
    once = projector.fit(x, y, gap[:2], ridge=1.0, relu=False)
    mixed = np.concatenate([gap[:2], gap[:1] - 3 * gap[1:2], 1e-3 * gap[1:2]])
    again = projector.fit(x, y, mixed, ridge=1.0, relu=False)
    np.testing.assert_allclose(again.weight, once.weight, rtol=1e-9, atol=1e-12)


def test_shards_and_hosts_add_up(data):
    x, y, gap = data
    whole = projector.fit(x, y, gap, ridge=1.0, relu=True)
    shards = [(x[a:b].astype(np.float32), y[a:b].astype(np.float32)) for a, b in [(0, 50), (50, 51), (51, N)]]
    there = projector.moments_of(iter(shards[:2])) + projector.moments_of(iter(shards[2:]))
    assert there.count == N
    found = projector.solve(there, gap, ridge=1.0, relu=True)
    single = projector.fit(x.astype(np.float32), y.astype(np.float32), gap, ridge=1.0, relu=True)
    np.testing.assert_allclose(found.weight, single.weight, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.weight, whole.weight, rtol=1e-3, atol=1e-5)


def test_rows_are_converted_in_blocks(data, monkeypatch):
    x, y, gap = data
    whole = projector.fit(x, y, gap, ridge=1.0, relu=True)
    monkeypatch.setattr(projector.linear, "_ROWS", 16)
    np.testing.assert_allclose(projector.fit(x, y, gap, ridge=1.0, relu=True).weight, whole.weight, rtol=1e-10)


def test_apply_on_images_and_on_tables_of_texts(data):
    x, y, gap = data
    found = projector.fit(x, y, gap, ridge=1.0, relu=True)
    with jax.enable_x64(True):
        expected = np.maximum(x @ found.weight + found.bias, 0)
        np.testing.assert_allclose(projector.apply(found, x), expected, rtol=1e-12)
        table = projector.apply(found, x.reshape(9, 10, D))
        np.testing.assert_array_equal(table, np.asarray(projector.apply(found, x)).reshape(9, 10, F))
        # what the constraint is for: a shift along the gap changes nothing
        np.testing.assert_allclose(projector.apply(found, x + 5 * gap[0]), expected, atol=1e-12)
    with pytest.raises(ValueError, match="width 12, got"):
        projector.apply(found, x[:, 1:])


def test_diagnostics_equal_scikit_learn(data):
    x, y, gap = data
    found = projector.fit(x, y, None, ridge=1.0, relu=True)
    rng = np.random.default_rng(2)
    head = heads.Head(rng.normal(size=(F, 3)), rng.normal(size=3))
    projected, labels = np.maximum(x @ found.weight + found.bias, 0), rng.integers(0, 3, N)
    named = dict(image_embeddings=x, features=y, labels=labels, head=head)
    report = projector.diagnostics(found, gap, **named)
    score = lambda f: np.mean(np.argmax(f @ head.kernel + head.bias, 1) == labels)
    expected = {
        "gap_norm": np.linalg.norm(gap @ found.weight),
        "gap_norm_relative": np.linalg.norm(gap @ found.weight) / np.linalg.norm(gap) / np.linalg.norm(found.weight),
        "nmse": 1 - r2_score(y, projected, multioutput="variance_weighted"),
        "accuracy": score(y),
        "accuracy_projected": score(projected),
        "accuracy_retained": score(projected) / score(y),
    }
    assert report == pytest.approx(expected, rel=1e-5)
    assert not {"gap_norm", "gap_norm_relative"} & set(projector.diagnostics(found, None, **named))


def test_stack_keeps_every_projector(data):
    x, y, gap = data
    parts = [projector.fit(x, y, gap, ridge=ridge, relu=True) for ridge in (0.1, 1.0)]
    stacked = projector.stack(parts)
    assert stacked.weight.shape == (2, D, F) and stacked.relu
    for index, part in enumerate(parts):
        np.testing.assert_array_equal(stacked.weight[index], part.weight)
    for others in ([], [parts[0], parts[0].replace(relu=False)], [parts[0], parts[0].replace(bias=np.zeros(3))]):
        with pytest.raises(ValueError, match=r"no projector|projector 1 differs"):
            projector.stack(others)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(image_embeddings=np.ones((N, 1)) * np.arange(12)), "singular with ridge=0: set a larger ridge"),
        (dict(image_embeddings=np.ones((N - 1, D))), "shard 0: .* of the same images"),
        (dict(features=np.full((N, F), np.inf)), "shard 0: the feature of image 0 is not finite"),
        (dict(gap=np.ones((1, D + 1))), r"must be \(m, 12\)"),
        (dict(gap=np.full((1, D), np.nan)), "not finite"),
        (dict(gap=np.zeros((2, D))), "the gap is zero: pass None"),
        (dict(gap=np.eye(D)), "span all 12 dimensions"),
        (dict(ridge=-1.0), "at least 0, not -1"),
        (dict(ridge=float("nan")), "at least 0, not nan"),
    ],
)
def test_what_cannot_be_solved_is_said(data, change, message):
    x, y, gap = data
    given = dict(image_embeddings=x, features=y, gap=gap, ridge=0.0) | change
    with pytest.raises(ValueError, match=message):
        projector.fit(**given, relu=True)


def test_fewer_images_than_dimensions_need_a_ridge(data):
    x, y, _ = data
    with pytest.raises(ValueError, match="Gram matrix of 8 embeddings of width 12 is singular"):
        projector.fit(x[:8], y[:8], None, ridge=0.0, relu=False)
    projector.fit(x[:8], y[:8], None, ridge=1.0, relu=False)


def test_bad_shards_are_named(data):
    x, y, _ = data
    with pytest.raises(ValueError, match="shard 1: moments of widths"):
        projector.moments_of([(x, y), (x[:, 1:], y)])
    with pytest.raises(ValueError, match="no images"):
        projector.moments_of([])


def test_the_network_fits_and_does_not_see_the_gap(data):
    x, y, gap = data
    settings = dict(relu=True, hidden=32, steps=400, batch_size=32, learning_rate=1e-2)
    free = mlp_projector.fit(x, y, None, **settings)
    bound = mlp_projector.fit(x, y, gap[:1], **settings)
    moved = jnp.asarray(x + 4 * gap[0], jnp.float32)
    still = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(bound(moved), bound(still), atol=1e-4)
    assert np.abs(free(moved) - free(still)).max() > 0.1
    assert float(np.min(free(still))) >= 0
    errors = {name: np.sum((np.asarray(p(still)) - y) ** 2) for name, p in (("free", free), ("bound", bound))}
    spread = np.sum((y - y.mean(0)) ** 2)
    assert errors["free"] < 0.05 * spread and errors["bound"] < spread
