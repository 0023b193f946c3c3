"""Stability and infidelity against the published definitions, recomputed draw by draw and image by image in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustgrad_jax import sensitivity
from robustgrad_jax.gradients import Ball, Draws

SAMPLES = 7


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def logits_of(weights, x):
    return jnp.tanh(x.reshape(len(x), -1) @ weights)


def gradient_of(weights, x, y):
    return jax.grad(lambda x: jnp.take_along_axis(logits_of(weights, x), y[:, None], 1).sum())(x)


def score(weights, image, label):
    return np.tanh(image.ravel() @ weights)[label]


def attribution(weights, image, label):
    """The gradient of tanh by hand."""
    return ((1 - score(weights, image, label) ** 2) * weights[:, label]).reshape(image.shape)


@pytest.fixture(scope="module")
def case():
    """weights, x (4, 3, 4, 2) with zeros in it, y."""
    rng = np.random.default_rng(0)
    weights, x = 0.3 * rng.normal(size=(24, 5)), rng.normal(size=(4, 3, 4, 2))
    x[1, 0] = 0
    return weights, x, rng.integers(0, 5, 4)


def options(slots=None, radius=0.2, **more):
    draws = Draws(jax.random.key(2), jnp.arange(4) + 3 if slots is None else slots)
    return {"ball": Ball(radius), "draws": draws, "samples": SAMPLES} | more


def moves(x, noise, key, slots, radius):
    """x' − x of every draw: (samples, n, h, w, c)."""
    draw = lambda j: sensitivity.perturbation(Draws(key, slots), j, jnp.asarray(x), Ball(radius), noise)
    return np.stack([np.asarray(draw(j)) for j in range(SAMPLES)])


def brute_force(case, noise, radius=0.2, same_prediction=False):
    weights, x, y = case
    drawn = moves(x, noise, jax.random.key(2), jnp.arange(4) + 3, radius)
    found = {name: np.zeros(4) for name in sensitivity.MEASURES}
    for n, (image, label) in enumerate(zip(x, y, strict=True)):
        e = attribution(weights, image, label)
        rows = []
        for change in drawn[:, n]:
            moved = image + change
            e_moved = attribution(weights, moved, label)
            distance = np.sqrt(((e_moved - e) ** 2).sum())
            relative = np.sqrt((((e - e_moved) / np.where(e == 0, 1e-6, e)) ** 2).sum())
            relative /= max(np.sqrt(((change / np.where(image == 0, 1e-6, image)) ** 2).sum()), 1e-6)
            if same_prediction and (moved.ravel() @ weights).argmax() != (image.ravel() @ weights).argmax():
                relative = -np.inf
            rows.append((distance / np.sqrt((e**2).sum()), distance / np.sqrt((change**2).sum()), relative))
        ratios, lipschitz, relative = np.array(rows).T
        found["max_sensitivity"][n], found["average_sensitivity"][n] = ratios.max(), ratios.mean()
        found["local_lipschitz"][n], found["relative_input_stability"][n] = lipschitz.max(), relative.max()
    return found


@pytest.mark.parametrize(("noise", "chunk"), [("uniform", 1), ("gaussian", 3), ("uniform", 50)])
def test_stability_equals_the_definitions(case, noise, chunk):
    weights, x, y = case
    attribution_fn = Partial(gradient_of, jnp.asarray(weights))
    found = sensitivity.stability(attribution_fn, jnp.asarray(x), y, **options(noise=noise, chunk=chunk))
    expected = brute_force(case, noise)
    assert list(found) == list(sensitivity.MEASURES)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", sensitivity.MEASURES)
def test_every_measure_alone(case, name):
    weights, x, y = case
    found = getattr(sensitivity, name)(Partial(gradient_of, jnp.asarray(weights)), jnp.asarray(x), y, **options())
    np.testing.assert_allclose(found, brute_force(case, "uniform")[name], rtol=1e-7)


def test_relative_input_stability_over_draws_with_the_same_prediction(case):
    weights, x, y = case
    attribution_fn, logits_fn = Partial(gradient_of, jnp.asarray(weights)), Partial(logits_of, jnp.asarray(weights))
    run = lambda logits_fn: sensitivity.relative_input_stability(
        attribution_fn, jnp.asarray(x), y, logits_fn=logits_fn, **options(radius=1.0)
    )
    expected = brute_force(case, "uniform", 1.0, same_prediction=True)["relative_input_stability"]
    everywhere = brute_force(case, "uniform", 1.0)["relative_input_stability"]
    assert np.all(np.isfinite(expected)) and np.any(expected < everywhere)
    np.testing.assert_allclose(run(logits_fn), expected, rtol=1e-7)
    fickle = lambda moved: jnp.stack([jnp.full(len(moved), 0.5), jnp.any(moved != x[2], (1, 2, 3)) * 1.0], 1)
    np.testing.assert_array_equal(np.isnan(run(fickle)), [False, False, True, False])


def test_an_example_s_draws_do_not_depend_on_its_batch(case):
    weights, x, y = case
    attribution_fn, order = Partial(gradient_of, jnp.asarray(weights)), np.array([2, 0])
    whole = sensitivity.stability(attribution_fn, jnp.asarray(x), y, **options())
    some = sensitivity.stability(attribution_fn, jnp.asarray(x[order]), y[order], **options(slots=order + 3))
    for name in sensitivity.MEASURES:
        np.testing.assert_allclose(some[name], whole[name][order], rtol=1e-9)


def test_zero_and_broken_attributions(case):
    _, x, y = case
    x = jnp.asarray(x)
    clean_is_zero = lambda moved, labels: jnp.where(jnp.all(moved == x), 0.0, jnp.ones_like(moved))
    found = sensitivity.stability(clean_is_zero, x, y, **options())
    np.testing.assert_allclose(found["max_sensitivity"], np.sqrt(24))  # the norm itself, as in captum
    for value in sensitivity.stability(lambda x, y: 0 * x, x, y, **options()).values():
        np.testing.assert_array_equal(value, 0)
    broken = lambda moved, labels: moved.at[1].set(jnp.nan)
    for value in sensitivity.stability(broken, x, y, **options()).values():
        np.testing.assert_array_equal(np.isnan(value), [False, True, False, False])


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_equals_the_definition(case, normalize):
    weights, x, y = case
    phi = np.random.default_rng(1).normal(size=x.shape)
    phi[3] = 0
    drawn = moves(x, "gaussian", jax.random.key(2), jnp.arange(4) + 3, 0.2)
    expected = np.zeros(4)
    for n, (image, label) in enumerate(zip(x, y, strict=True)):
        products = np.array([(change * phi[n]).sum() for change in drawn[:, n]])
        drops = np.array([score(weights, image, label) - score(weights, image - i, label) for i in drawn[:, n]])
        scale = (products * drops).mean() / (products**2).mean() if normalize and phi[n].any() else 1
        expected[n] = ((scale * products - drops) ** 2).mean()
    logits_fn, more = Partial(logits_of, jnp.asarray(weights)), options(chunk=2, normalize=normalize)
    run = lambda scale: sensitivity.infidelity(logits_fn, scale * phi, jnp.asarray(x), y, **more)
    np.testing.assert_allclose(run(1), expected, rtol=1e-9)
    assert np.allclose(run(10), expected, rtol=1e-9) == normalize


def test_refusals(case):
    weights, x, y = case
    attribution_fn, x = Partial(gradient_of, jnp.asarray(weights)), jnp.asarray(x)
    with pytest.raises(
        ValueError, match="unknown measure 'mean' of stability; valid names: 'max_sensitivity', 'average"
    ):
        sensitivity.stability(attribution_fn, x, y, measures=["mean"], **options())
    with pytest.raises(ValueError, match="unknown noise 'gradient'; valid names: 'uniform', 'gaussian'"):
        sensitivity.max_sensitivity(attribution_fn, x, y, **options(noise="gradient"))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        sensitivity.max_sensitivity(attribution_fn, x, y, **options(samples=0))
    with pytest.raises(ValueError, match=r"as many labels and slots \(n,\), got shapes \(4,\) and \(3,\)"):
        sensitivity.max_sensitivity(attribution_fn, x, y, **options(slots=jnp.arange(3)))
    with pytest.raises(ValueError, match=r"an attribution of x's shape \(4, 3, 4, 2\), got \(4, 3, 4\)"):
        sensitivity.infidelity(Partial(logits_of, weights), x[..., 0], x, y, **options())
    with pytest.raises(ValueError, match="a Ball without value_range"):
        sensitivity.max_sensitivity(attribution_fn, x, y, **options() | {"ball": Ball(0.2, value_range=(-1, 1))})
