"""Attributions: closed forms, derivatives against finite differences, the same numbers in every chunk and loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from robustgrad_jax import attributions, metrics, models

N, SIDE, CLASSES = 2, 8, 4
Y = np.array([3, 1])
OPTIONS = {
    "integrated_gradients": {"steps": 3, "chunk": 2},
    "smoothgrad": {"key": jax.random.key(5), "samples": 2},
    "expected_gradients": {"key": jax.random.key(6), "samples": 2},
    "grad_cam": {"layer": "pool1", "resize": True},
}


def jit(f):
    # Tests run once what they compile: little optimisation is the faster bargain.
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def case():
    """A LeNet of softplus with lively weights, two images, and the options of every attribution."""
    with jax.enable_x64(True):
        model = models.create("lenet", num_classes=CLASSES)
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)))
        # fan-in scaling, so that every layer's curvature is felt
        draw = lambda s: jnp.asarray(1.5 * rng.normal(size=s.shape) / np.sqrt(max(1, np.prod(s.shape[:-1]))))
        variables = jax.tree.map(draw, shapes)
        x = jnp.asarray(rng.normal(size=(N, SIDE, SIDE, 1)))
        references = jnp.asarray(rng.normal(size=(3, SIDE, SIDE, 1)))
        expected = OPTIONS["expected_gradients"] | {"references": references}
        yield model, variables, x, OPTIONS | {"expected_gradients": expected}


def cubic(x):
    """Logits (n, 2): Σ x³ and Σ x."""
    flat = x.reshape(len(x), -1)
    return jnp.stack([jnp.sum(flat**3, 1), jnp.sum(flat, 1)], 1)


# all of them


def test_names():
    assert set(OPTIONS) < set(attributions.NAMES)
    assert all(callable(getattr(attributions, name)) for name in attributions.NAMES)
    assert attributions.heatmap is metrics.heatmap


# at the zero image, where the published path begins, the maxima of a constant map tie: there is no derivative
@pytest.mark.parametrize("name", [name for name in attributions.NAMES if name != "integrated_gradients_published"])
def test_shape_derivatives_and_classes(case, name):
    """x's shape; differentiable in weights and input as finite differences say; one call for all classes."""
    model, variables, x, options = case
    rng = np.random.default_rng(1)
    weights = rng.normal(size=x.shape)
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), (variables, x))

    def moved(t):
        at_variables, at_x = jax.tree.map(lambda a, d: a + t * d, (variables, x), direction)
        found = attributions.create(name, model, at_variables, **options.get(name, {}))(at_x, Y)
        assert found.shape == x.shape
        return jnp.sum(weights * found)

    both = jit(lambda t: (moved(t), jax.grad(moved)(t)))
    eps = 1e-6
    (after, _), (before, _), (_, derivative) = both(eps), both(-eps), both(0.0)
    assert abs(derivative) > 1e-4
    np.testing.assert_allclose(derivative, (after - before) / (2 * eps), rtol=1e-4)

    attribution_fn = attributions.create(name, model, variables, **options.get(name, {}))
    classes = jnp.stack([jnp.full(N, c) for c in range(CLASSES)])
    every, asked = jit(lambda x: (jax.vmap(lambda y: attribution_fn(x, y))(classes), attribution_fn(x, Y)))(x)
    assert every.shape == (CLASSES, *x.shape)
    np.testing.assert_allclose(asked, every[Y, np.arange(N)], rtol=1e-9, atol=1e-12)
    assert np.abs(every[0] - every[1]).max() > 1e-6


def test_deconvnet_does_not_move_with_its_input(case):
    model, variables, x, _ = case
    gradient = jit(jax.grad(lambda x: jnp.sum(attributions.deconvnet(model, variables, x, Y) ** 2)))(x)
    assert not np.any(gradient)


# paths and noise


@pytest.mark.parametrize("rule, error", [("gausslegendre", 1e-12), ("midpoint", 3e-3), ("right", 0.2)])
def test_integrated_gradients_closed_form(rule, error):
    """(x − b) ∫ 3 (b + α (x − b))² dα = x³ − b³; Gauss-Legendre is exact for polynomials, the others nearly."""
    rng = np.random.default_rng(0)
    x, b = rng.uniform(0.5, 1, (2, 3, 2, 2, 1))
    with jax.enable_x64(True):
        x, b = jnp.asarray(x), jnp.asarray(b)
        found = attributions.integrated_gradients(cubic, x, np.zeros(3, int), steps=9, baseline=b, rule=rule, chunk=4)
    np.testing.assert_allclose(found, x**3 - b**3, rtol=0, atol=error)
    assert np.abs(found - (x**3 - b**3)).max() > error / 100 or rule == "gausslegendre"


@pytest.mark.parametrize("chunk", [1, 2, 10])
def test_integrated_gradients_as_published_in_closed_form(chunk):
    """1/4 · Σ 3 (k x / 4)², k = 0 … 4: both ends of the path, and no factor x."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (3, 2, 2, 1)), jnp.float32)
    fn = lambda x: attributions.integrated_gradients_published(cubic, x, np.zeros(3, int), steps=4, chunk=chunk)
    np.testing.assert_allclose(fn(x), 3 * (1 + 4 + 9 + 16) / 64 * x**2, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(fn(x)))(x), 6 * 30 / 64 * x, rtol=1e-5)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        attributions.integrated_gradients_published(cubic, x, np.zeros(3, int), steps=0)


def test_integrated_gradients_add_up(case):
    model, variables, x, _ = case
    logits_fn = lambda x: model.apply(variables, x)[0]
    found = jit(lambda x: attributions.integrated_gradients(logits_fn, x, Y, steps=40, chunk=40))(x)
    difference = (logits_fn(x) - logits_fn(0 * x))[np.arange(N), Y]
    np.testing.assert_allclose(found.sum((1, 2, 3)), difference, rtol=1e-2)


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "expected_gradients"])
def test_chunks_and_loops_do_not_change_the_numbers(name):
    rng = np.random.default_rng(0)
    x, references = (rng.normal(size=(n, 3, 3, 1)).astype(np.float32) for n in (2, 4))
    count = {"steps" if name == "integrated_gradients" else "samples": 7}
    drawn = {"smoothgrad": {"key": jax.random.key(0)}}
    drawn["expected_gradients"] = drawn["smoothgrad"] | {"references": references}

    def both(**options):
        f = lambda x: getattr(attributions, name)(cubic, x, np.zeros(2, int), **count, **drawn.get(name, {}), **options)
        return jit(lambda x: (f(x), jax.grad(lambda x: jnp.sum(f(x) ** 2))(x)))(x)

    wanted = both(chunk=7)
    assert all(np.abs(w).max() > 0.1 for w in wanted)
    for chunk, unroll in ((3, False), (3, True), (1, False), (100, False)):
        found = both(chunk=chunk, unroll=unroll)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("unroll", [False, True])
def test_chunks_bound_the_memory(case, unroll):
    model, variables, x, _ = case

    def memory(chunk):
        attribution_fn = attributions.create(
            "integrated_gradients", model, variables, steps=12, chunk=chunk, unroll=unroll
        )
        return jit(attribution_fn).lower(x, Y).compile().memory_analysis().temp_size_in_bytes

    assert memory(2) < 0.5 * memory(12)


def test_smoothgrad_noise_level_and_slots():
    """The mean of 3 (x + z)² is 3 x² + 3 σ², σ a share of each image's own range."""
    x = np.stack([np.linspace(-1, 1, 16), np.linspace(0, 8, 16)]).reshape(2, 4, 4, 1).astype(np.float32)
    y, key = np.zeros(2, int), jax.random.key(1)
    f = lambda x, y, **o: attributions.smoothgrad(cubic, x, y, key=key, level=0.25, **o)
    found = jit(lambda x: f(x, y, samples=4000, chunk=4000))(x)
    sigma = 0.25 * np.array([2.0, 8.0])[:, None, None, None]
    # four standard errors of the mean of 3 (x + z)²
    error = 4 * 3 * np.sqrt(4 * x**2 * sigma**2 + 2 * sigma**4) / np.sqrt(4000)
    assert (np.abs(found - 3 * x**2 - 3 * sigma**2) < error).mean() > 0.98
    assert np.abs(found - 3 * x**2 - 3 * sigma**2).max() > 0
    pair = f(x, y, slots=np.array([7, 2]), samples=3)
    alone = f(x[1:], y[1:], slots=np.array([2]), samples=3)
    np.testing.assert_allclose(pair[1:], alone, rtol=1e-5)
    assert np.abs(f(x[1:], y[1:], slots=np.array([3]), samples=3) - alone).max() > 0.1


def test_expected_gradients_in_expectation():
    """References and places on the path are evenly drawn; the maps add up to g(x) − mean g(r)."""
    rng = np.random.default_rng(0)
    x, references = (rng.normal(size=(n, 2, 2, 1)).astype(np.float32) for n in (2, 3))
    index, alpha = attributions.draw_paths(jax.random.key(0), jnp.arange(2), jnp.arange(3000), 3)
    assert index.shape == alpha.shape == (3000, 2)
    np.testing.assert_allclose(np.bincount(index.ravel(), minlength=3) / index.size, 1 / 3, atol=0.03)
    np.testing.assert_allclose(np.histogram(alpha, 4, (0, 1))[0] / alpha.size, 1 / 4, atol=0.03)
    f = lambda x: attributions.expected_gradients(
        cubic, x, np.zeros(2, int), references=references, key=jax.random.key(0), samples=3000, chunk=3000
    )
    r, a = references[rng.integers(0, 3, 30_000)][:, None], rng.uniform(size=(30_000, 2, 1, 1, 1))
    error = 4 * np.std((x - r) * 3 * (r + a * (x - r)) ** 2, axis=0) / np.sqrt(3000)  # four standard errors of the mean
    difference = np.abs(jit(f)(x) - (x**3 - (references**3).mean(0)))
    assert (difference < error).all() and difference.max() < 1


# inside the network


class Bypass(nn.Module):
    """Logit k = Σ a_k·maps + Σ x² with maps = (x, -2x): known gradients, and a path around the layer."""

    def __call__(self, x):
        maps = x * jnp.array([1.0, -2.0])
        weights = jnp.array([[1.0, 0.5], [-1.0, 3.0]])
        logits = jnp.sum(maps, (1, 2)) @ weights.T + jnp.sum(x**2, (1, 2, 3))[:, None]
        return logits, {"maps": maps, "unused": jnp.sin(x), "logits": logits}


def test_grad_cam_closed_form():
    """The gradient is the layer's alone: the path around it does not count."""
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 1)).astype(np.float32)
    found = attributions.grad_cam(Bypass(), {}, x, np.array([0, 1]), layer="maps")
    assert found.shape == (2, 3, 3, 1)
    # gradients (1, 0.5) and (-1, 3) on maps (x, -2x): x - x for class 0, -x - 6x for class 1
    np.testing.assert_allclose(found[0], 0, atol=1e-6)
    np.testing.assert_allclose(found[1], np.maximum(-7 * x[1], 0), rtol=1e-5)


def test_grad_cam_layers(case):
    model, variables, x, _ = case
    cam = lambda **options: attributions.grad_cam(model, variables, x, Y, **options)
    with pytest.raises(ValueError, match=r"unknown layer 'conv3'; valid names: .*conv11.*pool2"):
        cam(layer="conv3")
    with pytest.raises(ValueError, match=r"no spatial axes in layer 'fc1'; valid names: .*conv11.*pool2"):
        cam(layer="fc1")
    with pytest.raises(ValueError, match="logits are not computed from out\\['unused'\\]"):
        attributions.grad_cam(Bypass(), {}, x, np.array([0, 1]), layer="unused")
    with pytest.raises(ValueError, match="unknown layer"):  # without computing anything
        jax.eval_shape(attributions.create("grad_cam", model, variables, layer="conv3"), x, Y)


def test_modified_backward_passes_need_an_activation():
    for name in ("guided_backprop", "deconvnet"):
        with pytest.raises(TypeError, match="Bypass has no field `activation`"):
            getattr(attributions, name)(Bypass(), {}, np.zeros((1, 2, 2, 1), np.float32), np.array([0]))


# bad input


def test_create_refuses(case):
    model, variables, *_ = case
    create = lambda name, **options: attributions.create(name, model, variables, **options)
    with pytest.raises(ValueError, match=r"unknown attribution 'lime'.*gradient.*grad_cam"):
        create("lime")
    with pytest.raises(ValueError, match="smoothgrad has no option sigma; valid options: key, noise, samples"):
        create("smoothgrad", sigma=1.0)
    with pytest.raises(ValueError, match="gradient has no option steps; valid options: none"):
        create("gradient", steps=3)
    with pytest.raises(ValueError, match="grad_cam needs the option layer"):
        create("grad_cam")


@pytest.mark.parametrize(
    "y", [np.zeros(3, int), np.zeros(2), np.zeros((2, 1), int), np.array([0, 2]), np.array([-1, 0])], ids=str
)
@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "guided_backprop", "grad_cam"])
def test_classes_that_do_not_fit(name, y):
    """Above all a class that does not exist, whose map would be silently zero."""
    x = np.ones((2, 4, 4, 1), np.float32)
    message = "there are 2 logits" if y.shape == (2,) and y.dtype == int else "y must be integers"
    model = models.create("lenet", num_classes=2)
    variables = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), jax.eval_shape(model.init, jax.random.key(0), x[:1]))
    options = {"grad_cam": {"layer": "pool1"}, "integrated_gradients": {"steps": 2}}.get(name, {})
    with pytest.raises(ValueError, match=message):
        attributions.create(name, model, variables, **options)(x, y)


def test_options_that_do_not_fit():
    x, y = np.ones((2, 3, 3, 1), np.float32), np.zeros(2, int)
    with pytest.raises(TypeError, match="floating point, got uint8"):
        attributions.gradient(cubic, x.astype(np.uint8), y)
    with pytest.raises(ValueError, match=r"logits must be \(n, classes\), got shape \(2,\)"):
        attributions.gradient(lambda x: cubic(x)[:, 0], x, y)
    integrated = lambda **options: attributions.integrated_gradients(cubic, x, y, **options)
    with pytest.raises(ValueError, match=r"unknown rule 'simpson' .* 'gausslegendre', 'midpoint', 'right'"):
        integrated(rule="simpson")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        integrated(steps=0)
    with pytest.raises(ValueError, match="got 50 and chunk=0"):
        integrated(chunk=0)
    with pytest.raises(ValueError, match=r"baseline of shape \(5, 2, 3, 3, 1\)"):
        integrated(baseline=np.zeros((5, *x.shape)))
    smooth = lambda **options: attributions.smoothgrad(cubic, x, y, **options)
    for both in ({}, {"key": jax.random.key(0), "noise": np.zeros((1, *x.shape))}):
        with pytest.raises(ValueError, match="exactly one of key"):
            smooth(**both)
    with pytest.raises(ValueError, match="noise must be"):
        smooth(noise=np.zeros(x.shape))
    with pytest.raises(ValueError, match="references must be"):
        attributions.expected_gradients(cubic, x, y, references=np.zeros((0, 3, 3, 1)), key=jax.random.key(0))
