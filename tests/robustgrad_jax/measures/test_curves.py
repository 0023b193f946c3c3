"""Insertion, deletion and their areas against loops over images, pixels and levels in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustgrad_jax import metrics
from robustgrad_jax.measures import curves


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def logits_of(weights, x):
    return jnp.tanh(x.reshape(len(x), -1) @ weights)


def probability(weights, image, label):
    logits = np.tanh(image.ravel() @ weights)
    chances = np.exp(logits - logits.max())
    return chances[label] / chances.sum()


@pytest.fixture(scope="module")
def case():
    """weights, x (4, 4, 6, 3), y, heat maps (4, 4, 6), the second with ties and the third of zeros."""
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(72, 5)), rng.normal(size=(4, 4, 6, 3))
    heatmap = rng.uniform(size=(4, 4, 6))
    heatmap[1] = np.round(3 * heatmap[1]) / 3
    heatmap[2] = 0
    return weights, x, rng.integers(0, 5, 4), heatmap


def brute_force(weights, x, y, heatmap, steps, *, keep):
    """Level by level and image by image; Python's sort is stable, so of ties the first pixel comes first."""
    curve = np.zeros((steps, len(x)))
    for n, (image, scores) in enumerate(zip(x, heatmap, strict=True)):
        pixels = sorted(np.ndindex(*scores.shape), key=lambda p, scores=scores: -scores[p])
        for level in range(steps):
            top = pixels[: int(level / steps * len(pixels) + 1e-9)]
            left = np.zeros_like(image) if keep else image.copy()
            for p in top:
                left[p] = image[p] if keep else 0
            curve[level, n] = probability(weights, left, y[n])
    return curve


@pytest.mark.parametrize("steps", [20, 7, 24])
@pytest.mark.parametrize("chunk", [5, 100])
def test_insertion_and_deletion_equal_loops(case, steps, chunk):
    weights, x, y, heatmap = case
    logits_fn = Partial(logits_of, jnp.asarray(weights))
    inserted = metrics.insertion_curve(logits_fn, x, y, heatmap, steps=steps, chunk=chunk)
    deleted = metrics.deletion_curve(logits_fn, x, y, heatmap, steps=steps, chunk=chunk)
    assert inserted.shape == (steps, 4)
    np.testing.assert_allclose(inserted, brute_force(*case, steps, keep=True), rtol=1e-10)
    np.testing.assert_allclose(deleted, brute_force(*case, steps, keep=False), rtol=1e-10)


def test_deletion_is_pixel_flipping(case):
    """Quantus' definition after Bach et al. 2015: flip `features` more pixels to the baseline, predict, go on."""
    weights, x, y, heatmap = case
    features, pixels = 4, 24
    expected = np.zeros((pixels // features, len(x)))
    for n, image in enumerate(x):
        order = np.argsort(-heatmap[n].ravel(), kind="stable")
        flipped = image.reshape(pixels, 3).copy()
        for step in range(pixels // features):
            flipped[order[step * features : (step + 1) * features]] = 0
            expected[step, n] = probability(weights, flipped, y[n])
    deleted = curves.deletion_curve(Partial(logits_of, weights), x, y, heatmap, steps=pixels // features)
    np.testing.assert_allclose(deleted[1:], expected[:-1], rtol=1e-10)


def test_adversarial_insertion_inserts_clean_pixels_in_the_attacked_order(case):
    weights, x, y, heatmap = case
    attacked = np.random.default_rng(1).uniform(size=heatmap.shape)
    curve = curves.adversarial_insertion_curve(Partial(logits_of, weights), x, y, attacked, steps=8)
    np.testing.assert_allclose(curve, brute_force(weights, x, y, attacked, 8, keep=True), rtol=1e-10)


def test_area_is_the_trapezoidal_rule(case):
    curve = np.random.default_rng(0).uniform(size=(20, 4))
    levels = np.arange(20) / 20
    np.testing.assert_allclose(metrics.area(curve), np.trapezoid(curve, levels, axis=0) / levels[-1], rtol=1e-12)
    np.testing.assert_allclose(metrics.area(jnp.full((3, 2), 0.4)), 0.4)


def test_maps_that_are_not_finite_have_no_curve(case):
    weights, x, y, heatmap = case
    broken = heatmap.copy()
    broken[0, 1, 2], broken[3, 0, 0] = np.nan, np.inf
    for function in (curves.insertion_curve, curves.deletion_curve):
        found, whole = (function(Partial(logits_of, weights), x, y, h) for h in (broken, heatmap))
        assert np.all(np.isnan(found[:, [0, 3]]))
        np.testing.assert_array_equal(found[:, 1:3], whole[:, 1:3])


def test_plain_functions_and_functions_of_traced_weights(case):
    weights, x, y, heatmap = case
    expected = curves.insertion_curve(Partial(logits_of, weights), x, y, heatmap)
    found = curves.insertion_curve(lambda x: logits_of(weights, x), x, y, heatmap)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    run = jax.jit(lambda weights, x: curves.insertion_curve(lambda x: logits_of(weights, x), x, y, heatmap))
    for _ in range(2):
        np.testing.assert_allclose(run(jnp.asarray(weights), x), expected, rtol=1e-12)
    np.testing.assert_allclose(run(jnp.zeros_like(weights), x), 0.2, rtol=1e-12)


def test_refusals_name_the_shapes(case):
    weights, x, y, heatmap = case
    logits_fn = Partial(logits_of, weights)
    with pytest.raises(ValueError, match=r"got \(4, 4, 6, 3\) and \(4, 6, 4\)"):
        curves.insertion_curve(logits_fn, x, y, heatmap.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"4 images need as many labels \(n,\), got shape \(3,\)"):
        curves.deletion_curve(logits_fn, x, y[:3], heatmap)
    with pytest.raises(ValueError, match="at least one level, got steps=0"):
        curves.insertion_curve(logits_fn, x, y, heatmap, steps=0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        curves.insertion_curve(logits_fn, x, y, heatmap, chunk=0)
    with pytest.raises(ValueError, match=r"at least two levels, got shape \(1, 4\)"):
        curves.area(np.zeros((1, 4)))
