"""RTD's loss against loops over its formula; those of φ networks against theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtd_jax import losses

TAU = 0.07


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_the_formula(queries, targets, temperature):
    """Every anchor, every other vector, one at a time."""
    every = [*unit(queries), *unit(targets)]
    m, total = len(queries), 0.0
    for a, anchor in enumerate(every):
        positive = np.exp(anchor @ every[(a + m) % (2 * m)] / temperature)
        others = sum(np.exp(anchor @ other / temperature) for b, other in enumerate(every) if b != a)
        total -= np.log(positive / others)
    return total / (2 * m)


@pytest.mark.parametrize("m", [1, 2, 7])
@pytest.mark.parametrize("temperature", [TAU, 1.0])
def test_target_anchored_is_the_formula(m, temperature):
    queries, targets = 5 * vectors(m, 6), vectors(m, 6, seed=1)
    found = losses.target_anchored(queries, targets, temperature)
    assert found.shape == () and found == pytest.approx(by_the_formula(queries, targets, temperature), rel=1e-12)


def test_one_pair_alone_has_nothing_to_tell_apart():
    assert losses.target_anchored(vectors(1, 4), vectors(1, 4, seed=1), TAU) == pytest.approx(0, abs=1e-12)


def test_groups_keep_their_negatives_to_themselves():
    queries, targets = vectors(3, 4, 6), vectors(3, 4, 6, seed=1)
    expected = np.mean([by_the_formula(q, t, TAU) for q, t in zip(queries, targets, strict=True)])
    assert losses.target_anchored(queries, targets, TAU) == pytest.approx(expected, rel=1e-12)
    together = losses.target_anchored(queries.reshape(12, 6), targets.reshape(12, 6), TAU)
    assert together > expected + 0.1  # more negatives


def test_exponentials_cannot_overflow():
    """exp(1 / 0.001) is infinite in every precision that there is."""
    x = vectors(4, 3).astype(np.float32)
    value, gradient = jax.value_and_grad(losses.target_anchored)(x, x, 1e-3)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # cosines of 1 with the own target, at most c < 1 with others: all but exp(-(1 - c) / τ) of the sum is the positive
    assert value == pytest.approx(0, abs=1e-3)


def test_the_gradient_is_that_of_finite_differences():
    queries, targets = vectors(3, 4), vectors(3, 4, seed=1)
    gradient = jax.grad(losses.target_anchored, argnums=(0, 1))(queries, targets, 0.3)
    direction, h = vectors(2, 3, 4, seed=2), 1e-6
    at = lambda s: by_the_formula(queries + s * direction[0], targets + s * direction[1], 0.3)
    along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    assert along == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-7)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((4,), (4,)), ((2, 3, 4), (2, 3, 5))])
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="must have one shape"):
        losses.target_anchored(*(jnp.ones(shape) for shape in shapes), TAU)


def test_groups_with_an_axis_are_refused():
    with pytest.raises(ValueError, match="groups keep their negatives"):
        losses.target_anchored(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)), TAU, axis_name="data")


def test_accuracy():
    targets = np.eye(4)
    queries = 3 * np.eye(4)[[2, 1, 3, 3]] + 0.1 * np.eye(4)  # the first and the third are nearest to others' targets
    assert losses.accuracy(queries, targets) == 0.5
    # in groups of two, the first one's rival is in the other group
    assert losses.accuracy(queries.reshape(2, 2, 4), targets.reshape(2, 2, 4)) == 0.75


def test_lincir():
    a, b = vectors(5, 6), vectors(5, 6, seed=1)
    expected = sum((a[i, j] - b[i, j]) ** 2 for i in range(5) for j in range(6)) / 30
    assert losses.lincir(a, b) == pytest.approx(expected, rel=1e-12)


def cross_entropy(logits):
    return np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])


def test_pic2word():
    images, texts, scale = vectors(5, 6), vectors(5, 6, seed=1), np.log(20.0)
    logits = 20 * unit(images) @ unit(texts).T
    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    assert losses.pic2word(images, texts, scale) == pytest.approx(expected, rel=1e-12)


def mean_distance(a, b):
    return np.mean([1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])


def test_searle_inversion():
    images, texts, phrases, concepts = (vectors(5, 6, seed=i) for i in range(4))
    expected = 1.0 * mean_distance(images, texts) + 0.5 * mean_distance(phrases, concepts)
    assert losses.searle_inversion(images, texts, phrases, concepts) == pytest.approx(expected, rel=1e-12)
    weighted = losses.searle_inversion(images, texts, phrases, concepts, content_weight=2.0, concept_weight=0.0)
    assert weighted == pytest.approx(2 * mean_distance(images, texts), rel=1e-12)


def test_searle_distillation():
    predicted, optimized, phrases, concepts = (vectors(5, 6, seed=i) for i in range(4))
    expected = by_the_formula(predicted, optimized, 0.25) + 0.75 * mean_distance(phrases, concepts)
    assert losses.searle_distillation(predicted, optimized, phrases, concepts) == pytest.approx(expected, rel=1e-12)
