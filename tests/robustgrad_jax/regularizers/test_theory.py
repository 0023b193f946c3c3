"""What Joo et al. 2023 prove: which distance of gradients survives a rescaling, and what bounds the other one."""

import jax
import jax.numpy as jnp
import numpy as np

from robustgrad_jax import models
from robustgrad_jax.measures import evaluation
from robustgrad_jax.measures.evaluation import Compare
from robustgrad_jax.regularizers import alignment

N, SIDE, CLASSES = 6, 8, 4
LAYERS = ("conv11", "conv12", "conv21", "conv22", "fc1", "fc2")  # in order


def jit(f, **options):
    # Tests run once what they compile: little optimisation is the faster bargain.
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0}, **options)


def network(activation, seed):
    """A random LeNet in float64, biases included: (model, variables)."""
    model = models.create("lenet", num_classes=CLASSES, activation=activation)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)))
    draw = lambda s: jnp.asarray(1.4 * rng.normal(size=s.shape) / np.sqrt(max(1, np.prod(s.shape[:-1]))))
    return model, jax.tree.map(draw, shapes)


def images(seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(N, SIDE, SIDE, 1))), jnp.asarray(rng.integers(0, CLASSES, N))


def rescaled(variables, scale):
    """Weights times `scale`, biases times scale^depth: a ReLU network's logits are then scaled by scale^6."""
    layers = ((i, name, variables["params"][name]) for i, name in enumerate(LAYERS, 1))
    return {"params": {name: {"kernel": scale * v["kernel"], "bias": scale**i * v["bias"]} for i, name, v in layers}}


def distances(model, variables, x, y, noise):
    """Logits (n, k), and the two distances that regularisation uses."""
    logits_fn = lambda variables, x: (model.apply(variables, x)[0], None)
    l2, cosine, logits, _ = alignment.gradient_alignment(logits_fn, variables, x, y, noise)
    return logits, l2, cosine


def test_only_the_cosine_distance_survives_rescaling():
    """f → c f has the same normalised attributions; the ℓ2 distance is multiplied by c², the cosine distance stays."""
    with jax.enable_x64(True):
        x, y = images(0)
        noise = 0.1 * images(1)[0]
        scale, factor = 0.5, 0.5 ** len(LAYERS)
        found = {}
        for activation in ("relu", "softplus"):
            model, variables = network(activation, 0)
            measure = jit(lambda v, model=model: distances(model, v, x, y, noise))
            found[activation] = measure(variables), measure(rescaled(variables, scale))
        (logits, l2, cosine), (small_logits, small_l2, small_cosine) = found["relu"]
        assert l2 > 1e-3 and cosine > 1e-3
        np.testing.assert_allclose(small_logits, factor * logits, rtol=1e-9)
        np.testing.assert_allclose(small_l2, factor**2 * l2, rtol=1e-9)
        np.testing.assert_allclose(small_cosine, cosine, rtol=1e-9)
        # softplus is not homogeneous: there the same weights give another function, and another cosine distance
        (_, _, cosine), (_, _, small_cosine) = found["softplus"]
        assert abs(small_cosine - cosine) > 0.05 * cosine


def study(model, variables, x, y, radius, draw):
    """The upper-bound study's values for one gaussian draw of scale `radius`, per image."""
    prepare = lambda batch: (batch["x"], batch["y"])
    measure = evaluation.upper_bound(model, prepare, std=[1.0], radius=255 * radius, compare=Compare(()), seed=draw)
    return measure(variables, {"x": x, "y": y, "slot": jnp.arange(N)}, 0)


def test_hessian_over_gradient_bounds_the_cosine_distance():
    """With small noise z, ∇g(x + z) = ∇g(x) + Hz: the angle θ between the two has sin θ ≤ ‖Hz‖/‖∇g(x + z)‖.

    As (1 − cos θ)/2 ≤ sin²θ/2 up to a right angle, twice the cosine distance is at most the square of the ratio; for
    small angles four times, and that is attained where Hz is perpendicular to the gradient.
    """
    with jax.enable_x64(True):
        ratios, bounds = [], []
        measure = jit(study, static_argnums=(0, 4, 5))
        model, _ = network("softplus", 0)
        for seed in range(4):
            x, y = images(10 + seed)
            _, variables = network("softplus", seed)
            found = measure(model, variables, x, y, 1e-4, 0)
            bounds.append(found["bound"])
            ratios.append(4 * found["cosine_distance"] / found["bound"] ** 2)
        bounds, ratios = np.concatenate(bounds), np.concatenate(ratios)
        assert bounds.min() > 1e-6 and bounds.max() < 0.1  # the noise is small for every one of them
        assert ratios.max() < 1 + 2 * bounds.max()
        assert ratios.max() > 0.8  # so a smaller multiple of the ratio would be no bound


def test_the_hessian_alone_bounds_nothing():
    """Scaling the logits down shrinks ‖Hz‖ at will; the gradients' angle stays what it was, and so does the ratio."""
    with jax.enable_x64(True):
        x, y = images(0)
        model, variables = network("softplus", 0)
        last = jax.tree.map(lambda a: 1e-3 * a, variables["params"]["fc2"])
        small = {"params": variables["params"] | {"fc2": last}}
        measure = jit(lambda v: study(model, v, x, y, 1e-2, 0))
        before, after = measure(variables), measure(small)
        np.testing.assert_allclose(after["hessian_product_norm"], 1e-3 * before["hessian_product_norm"], rtol=1e-6)
        np.testing.assert_allclose(after["cosine_distance"], before["cosine_distance"], rtol=1e-6)
        np.testing.assert_allclose(after["bound"], before["bound"], rtol=1e-3)
        assert (after["hessian_product_norm"] ** 2 < after["cosine_distance"]).any()
