"""The table of regularisers: every name trains, weights can be mapped, unused terms cost nothing; the noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from launch.stages import SettingError, numbers
from robustgrad_jax import models, regularizers
from robustgrad_jax.gradients import Draws

STD = (0.2, 0.4, 0.3)
N, SHAPE = 4, (8, 8, 3)


@pytest.fixture(scope="module")
def problem():
    model = models.create("lenet", num_classes=5)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(N, *SHAPE)), jnp.float32)
    params = model.init(jax.random.key(0), x)["params"]
    logits_fn = lambda params, x: (model.apply({"params": params}, x)[0], {"aux": x.mean()})
    return logits_fn, params, x, jnp.asarray(rng.integers(0, 5, N))


def create(name, **changes):
    """A regulariser of a large radius: penalties well above rounding."""
    fields = {field.name for field in dataclasses.fields(regularizers.kind(name)[0])}
    return regularizers.create(name, **({"radius": 255.0} if "radius" in fields else {}), **changes)


def objective(problem, name, **changes):
    """params -> the penalty under a fixed key."""
    logits_fn, params, x, y = problem
    penalty, draws = create(name, **changes), Draws(jax.random.key(7), jnp.arange(N))
    return lambda params: penalty(logits_fn, params, x, y, draws, std=STD)


@pytest.mark.parametrize("name", regularizers.NAMES)
def test_value_gradient_and_clean_pass(problem, name):
    logits_fn, params, x, _ = problem
    fn = objective(problem, name)

    def value(params):
        value, logits, aux, parts = fn(params)
        return value, (logits, aux, parts)

    (value, (logits, aux, parts)), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    clean, clean_aux = logits_fn(params, x)
    np.testing.assert_allclose(logits, clean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(aux["aux"], clean_aux["aux"], rtol=1e-5)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))))
    if name == "none":
        assert value == 0 and norm == 0 and not parts
    else:
        assert value > 0 and np.isfinite(norm) and norm > 0 and all(v > 0 for v in parts.values())


@pytest.mark.parametrize(
    "name, weight",
    [("l2", "l2_weight"), ("cosine", "cosine_weight"), ("hessian", "weight"), ("iga", "weight"), ("atex", "weight"),
     ("ig_norm", "weight"), ("curvature", "weight")],
)  # fmt: skip
def test_weights_scale_their_term_and_can_be_mapped(problem, name, weight):
    _, params, _, _ = problem
    weights = jnp.array([0.0, 0.5, 2.0])
    mapped = jax.jit(jax.vmap(lambda w: jax.grad(lambda p: objective(problem, name, **{weight: w})(p)[0])(params)))
    one = jax.jit(jax.grad(lambda p: objective(problem, name, **{weight: 1.0})(p)[0]))(params)
    for many, single in zip(jax.tree.leaves(mapped(weights)), jax.tree.leaves(one), strict=True):
        scale = float(jnp.abs(single).max())
        for i, w in enumerate(weights):
            np.testing.assert_allclose(many[i], w * single, atol=2e-4 * scale + 1e-12)


def test_l2_cosine_is_the_weighted_sum_of_its_terms(problem):
    _, params, _, _ = problem
    value, _, _, parts = objective(problem, "l2_cosine", l2_weight=0.3, cosine_weight=0.7)(params)
    l2 = objective(problem, "l2", l2_weight=0.3)(params)[0]
    cosine = objective(problem, "cosine", cosine_weight=0.7)(params)[0]
    np.testing.assert_allclose(value, l2 + cosine, rtol=1e-5)
    np.testing.assert_allclose(value, 0.3 * parts["l2"] + 0.7 * parts["cosine"], rtol=1e-5)


def flops(problem, name, **changes):
    logits_fn, params, x, y = problem
    fn = objective(problem, name, **changes)

    def loss(params):
        value, logits, _, _ = fn(params)
        return value - jax.nn.log_softmax(logits)[jnp.arange(N), y].mean()

    return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]


def test_terms_that_are_not_used_cost_nothing(problem):
    logits_fn, params, x, y = problem
    plain = jax.jit(jax.grad(lambda p: -jax.nn.log_softmax(logits_fn(p, x)[0])[jnp.arange(N), y].mean()))
    assert flops(problem, "none") == plain.lower(params).compile().cost_analysis()["flops"]
    # A constant source gradient: its own second derivatives must be gone from the program.
    assert flops(problem, "l2_cosine") < 0.9 * flops(problem, "l2_cosine", detach_source=False)


def test_unknown_names_list_the_alternatives(problem):
    with pytest.raises(ValueError, match=r"unknown regularizer 'l3'.*'none', 'l2', 'cosine', 'l2_cosine', 'hessian'"):
        regularizers.create("l3")
    with pytest.raises(ValueError, match=r"noise='salt'.*'uniform', 'gaussian', 'gradient', 'gradient_sign'"):
        regularizers.create("l2", noise="salt")
    with pytest.raises(ValueError, match=r"unknown noise 'salt'.*'uniform', 'gaussian', 'gradient', 'gradient_sign'"):
        draw("salt", jnp.arange(64))
    with pytest.raises(ValueError, match=r"variant='fd'.*'difference', 'jvp'"):
        regularizers.create("l2", variant="fd")
    with pytest.raises(ValueError, match=r"unknown variant 'fd'.*'difference', 'jvp'"):
        regularizers.gradient_alignment(*problem, jnp.zeros((N, *SHAPE)), variant="fd")


@pytest.mark.parametrize("name", regularizers.NAMES)
def test_numbers_that_cannot_be_used_are_named(name):
    for number in numbers(regularizers.create(name)):
        if number not in regularizers.kind(name)[1]:
            with pytest.raises(SettingError, match=rf"^{number}=-1\.0: must be a number, (at least|above) 0"):
                regularizers.create(name, **{number: -1.0})


def draw(kind, slots, shape=(64, 8, 8, 3), radius=(0.1, 0.2, 0.3)):
    return regularizers.draw_noise(kind, jax.random.key(1), slots, shape, jnp.asarray(radius))


def test_uniform_and_gaussian_noise_have_their_distributions():
    for kind, law in (("uniform", stats.uniform(-1, 2)), ("gaussian", stats.norm())):
        noise = np.asarray(draw(kind, jnp.arange(64)))
        for channel, radius in enumerate((0.1, 0.2, 0.3)):
            values = noise[..., channel].ravel() / radius
            assert stats.kstest(values, law.cdf).pvalue > 1e-3
        assert np.abs(np.corrcoef(noise.reshape(64, -1))[0, 1:]).max() < 0.4  # images are drawn independently


def test_noise_follows_the_slot_and_nothing_else():
    whole = draw("uniform", jnp.arange(64))
    part = draw("uniform", jnp.arange(40, 56), (16, 8, 8, 3))
    np.testing.assert_array_equal(whole[40:56], part)


@pytest.mark.parametrize("kind", ["gradient", "gradient_sign"])
def test_gradient_noise_has_the_radius_as_its_norm(kind):
    gradient = jax.random.normal(jax.random.key(0), (5, 8, 8, 3))
    noise = regularizers.draw_noise(kind, jax.random.key(1), jnp.arange(5), gradient.shape, 0.5)(gradient)
    np.testing.assert_allclose(jnp.sqrt((noise**2).sum((1, 2, 3))), 0.5, rtol=1e-5)
    wanted = np.sign(gradient) if kind == "gradient_sign" else np.asarray(gradient)
    cosine = (noise * wanted).sum((1, 2, 3)) / np.sqrt((wanted**2).sum((1, 2, 3))) / 0.5
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
