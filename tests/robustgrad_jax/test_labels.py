"""A class that does not exist has no attribution and no stability: it is refused, or NaN where it cannot be read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustgrad_jax import attacks, attributions, metrics, sensitivity
from robustgrad_jax.gradients import Ball, Draws


def _network(weights, x):
    return jax.nn.softplus(x.reshape(len(x), -1) @ weights[0]) @ weights[1]


draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
X = draw(3, 12, 12, 1)
LOGITS = Partial(_network, (draw(144, 8), draw(8, 10)))
GRADIENT = Partial(attributions.gradient, LOGITS)
BALL, DRAWS = Ball(0.1), Draws(jax.random.key(0), jnp.arange(3))
MAPS = jnp.asarray(np.random.default_rng(1).random((3, 12, 12)), jnp.float32)
FRAME = attacks.target_frame((12, 12), 2)

# of (x, y): a number or an array for each image
FUNCTIONS = {
    "gradient": lambda x, y: GRADIENT(x, y),
    "integrated_gradients": lambda x, y: attributions.integrated_gradients(LOGITS, x, y, steps=2),
    "max_sensitivity": lambda x, y: sensitivity.max_sensitivity(GRADIENT, x, y, BALL, DRAWS, samples=1),
    "local_lipschitz": lambda x, y: sensitivity.local_lipschitz(GRADIENT, x, y, BALL, DRAWS, samples=1),
    "infidelity": lambda x, y: sensitivity.infidelity(LOGITS, x, x, y, BALL, DRAWS, samples=1),
    "insertion": lambda x, y: metrics.area(metrics.insertion_curve(LOGITS, x, y, MAPS, 2)),
    "deletion": lambda x, y: metrics.area(metrics.deletion_curve(LOGITS, x, y, MAPS, 2)),
    "aam": lambda x, y: attacks.manipulate(LOGITS, GRADIENT, x, y, FRAME, BALL, steps=1, compiled_loop=True),
}
# What they give for the wrong image is the clean one, whose attribution is NaN before and after.
SIGNED = {
    "top_k": lambda x, y: attacks.top_k(LOGITS, GRADIENT, x, y, BALL, k=3, steps=1, compiled_loop=True),
    "mass_center": lambda x, y: attacks.mass_center(LOGITS, GRADIENT, x, y, BALL, DRAWS, steps=1, compiled_loop=True),
    "pgd": lambda x, y: attacks.pgd(
        None, GRADIENT, x, y, BALL, DRAWS, steps=1, keep_prediction=False, compiled_loop=True
    ),
}


@pytest.mark.parametrize("wrong", [-1, 10])
@pytest.mark.parametrize("name", [*FUNCTIONS, *SIGNED])
def test_a_class_that_does_not_exist_is_refused(name, wrong):
    with pytest.raises(ValueError, match=r"y holds classes -?\d+ to \d+, but there are 10 logits"):
        (FUNCTIONS | SIGNED)[name](X, np.array([7, 8, wrong]))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("wrong", [-1, 10])
def test_under_jit_it_gives_nan_for_its_image_alone(name, wrong):
    own = jax.jit(FUNCTIONS[name])
    right, mixed = own(X, jnp.array([7, 8, 9])), own(X, jnp.array([7, 8, wrong]))
    assert np.isfinite(right).all() and np.array_equal(right[:2], mixed[:2])
    assert np.isnan(mixed[2]).all() or (name == "grad_cam" and np.isnan(mixed[2]).any())


@pytest.mark.parametrize("name", SIGNED)
def test_under_jit_an_attack_on_it_is_no_stability(name):
    y = jnp.array([7, 8, 10])
    moved = jax.jit(SIGNED[name])(X, y)
    compare = jax.jit(lambda a, b, y: metrics.cosine(GRADIENT(a, y), GRADIENT(b, y)))
    assert np.isfinite(compare(X, moved, y)[:2]).all() and np.isnan(compare(X, moved, y)[2])


def test_training_steps_have_the_same_gradients_for_classes_that_exist():
    y = jnp.array([0, 5, 9])
    logits, pullback = jax.vjp(LOGITS, X)
    (expected,) = pullback(jax.nn.one_hot(y, 10, dtype=logits.dtype))
    assert np.array_equal(GRADIENT(X, y), expected)
