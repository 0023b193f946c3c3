"""Attacks on attributions, on networks small enough to be recomputed; PyTorch's loops are in tests/parity."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from launch.networks import activations
from robustgrad_jax import attacks, callables, metrics, models
from robustgrad_jax.gradients import Ball, Draws

SHAPE = (6, 5, 2)
BALL = Ball(0.3)


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def logits_of(weights, x):
    hidden = activations.softplus(x.reshape(len(x), -1) @ weights[0], 3.0)
    return hidden @ weights[1]


def gradient_of(weights, x, y):
    return jax.grad(lambda x: jnp.take_along_axis(logits_of(weights, x), y[:, None], 1).sum())(x)


@pytest.fixture(scope="module")
def case(double_precision):
    """logits_fn, attribution_fn, x (5, 6, 5, 2), y: a network of two layers, labels as it predicts them."""
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(np.prod(SHAPE), 16)), rng.normal(size=(16, 4)))
    weights = jax.tree.map(jnp.asarray, weights)
    x = jnp.asarray(rng.normal(size=(5, *SHAPE)))
    logits_fn = Partial(logits_of, weights)
    return logits_fn, Partial(gradient_of, weights), x, logits_fn(x).argmax(-1)


def of_kind(name, case, ball=BALL, slots=None, **options):
    """The attack called `name`, everything but its images and options given."""
    logits_fn, attribution_fn, x, y = case
    draws = Draws(jax.random.key(3), jnp.arange(len(x)) if slots is None else slots)
    extra = {
        "manipulate": {"target_map": attacks.target_frame(SHAPE[:2], 1)},
        "top_k": {"k": 4},
        "mass_center": {"draws": draws},
        "pgd": {"draws": draws},
    }[name]
    return getattr(attacks, name)(logits_fn, attribution_fn, x, y, ball=ball, **extra | {"steps": 12} | options)


LOOPED = [name for name in attacks.NAMES if name != "random_sign"]


def test_target_frame():
    frame = np.asarray(attacks.target_frame((7, 9), 2))
    assert frame.shape == (7, 9)
    np.testing.assert_array_equal(frame[2:5, 2:7], 0)
    assert frame.sum() == 7 * 9 - 3 * 5
    for border in (0, 4):
        with pytest.raises(ValueError, match=f"border of {border} pixels does not fit an image of 8x9"):
            attacks.target_frame((8, 9), border)


@pytest.mark.parametrize("name", LOOPED)
def test_one_program_and_one_program_a_step_give_the_same_numbers(name, case):
    loop, steps, chosen = (of_kind(name, case, compiled_loop=how) for how in (True, False, None))
    assert np.abs(loop - case[2]).max() > 0.01
    np.testing.assert_allclose(loop, steps, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(chosen, steps)  # on CPU


@pytest.mark.parametrize("name", LOOPED)
def test_inside_jit_it_is_one_program(name, case):
    logits_fn, attribution_fn, x, y = case

    @jax.jit
    def inside(x, y):
        return of_kind(name, (logits_fn, attribution_fn, x, y))

    np.testing.assert_allclose(inside(x, y), of_kind(name, case, compiled_loop=True), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="compiled_loop=False is a loop on the host"):
        jax.jit(lambda x: of_kind(name, (logits_fn, attribution_fn, x, y), compiled_loop=False))(x)


@pytest.mark.parametrize("name", LOOPED)
def test_a_result_depends_on_the_image_and_its_slot_alone(name, case):
    logits_fn, attribution_fn, x, y = case
    order = jnp.array([3, 0, 4])
    slots = {"slots": order} if name in ("mass_center", "pgd") else {}
    some = of_kind(name, (logits_fn, attribution_fn, x[order], y[order]), **slots)
    np.testing.assert_allclose(some, of_kind(name, case)[order], rtol=0, atol=1e-9)
    if slots:
        other = of_kind(name, (logits_fn, attribution_fn, x[order], y[order]), slots=order + 1)
        assert np.abs(other - some).max() > 1e-3


@pytest.mark.parametrize("name", LOOPED)
def test_stays_in_the_ball_and_in_the_value_range(name, case):
    logits_fn, attribution_fn, x, y = case
    std = jnp.array([0.2, 0.4])
    free = of_kind(name, case, Ball(0.06, std))  # 0.3 and 0.15 in x's units
    assert np.all(np.abs(free - x) <= jnp.array([0.3, 0.15]) + 1e-12)
    assert np.abs(free - x)[..., 0].max() > 0.15
    np.testing.assert_allclose(free, of_kind(name, case, Ball([0.3, 0.15])), rtol=0, atol=1e-9)
    low, high = -0.5, jnp.array([0.4, 0.8])
    clipped = (logits_fn, attribution_fn, jnp.clip(x, low, high), y)
    held = of_kind(name, clipped, Ball(0.3, value_range=(low, high)))
    assert np.all(held >= low) and np.all(held <= high) and np.any(held == low)


@pytest.mark.parametrize("name", ["top_k", "mass_center", "pgd"])
def test_the_best_image_with_the_clean_prediction_is_returned(name, case):
    logits_fn, attribution_fn, x, y = case
    out = of_kind(name, case)
    np.testing.assert_array_equal(logits_fn(out).argmax(-1), y)
    importance = lambda x: (lambda a: a / a.sum((1, 2), keepdims=True))(np.abs(attribution_fn(x, y)).sum(-1))
    moved = np.any(out != x, axis=(1, 2, 3))  # an image at the border between classes may have no such neighbour
    assert moved.sum() >= 4
    before, after = importance(x)[moved], importance(out)[moved]
    if name == "top_k":
        largest = np.argsort(-before.reshape(len(before), -1))[:, :4]
        sums = [np.take_along_axis(m.reshape(len(m), -1), largest, 1).sum(1) for m in (before, after)]
        assert np.all(sums[1] < sums[0])
    elif name == "mass_center":
        grid = np.stack(np.mgrid[:6, :5])
        shift = ((after - before)[:, None] * grid).sum((2, 3))
        assert np.all(np.linalg.norm(shift, axis=1) > 0.05)
    else:
        cosines = [(a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(before, after, strict=True)]
        assert np.all(np.array(cosines) < 0.999)


def test_the_clean_image_where_no_step_keeps_the_prediction(case):
    _, attribution_fn, x, y = case
    others = [-jnp.ones(len(x))] * int(y.max())

    def moody(moved):  # class 0 at x only
        return jnp.stack([jnp.zeros(len(x)), jnp.abs(moved - x).sum((1, 2, 3)), *others], 1)

    failed = attacks.top_k(moody, attribution_fn, x, y, Ball(0.3), k=4, steps=3)
    np.testing.assert_array_equal(failed, x)
    unasked = attacks.top_k(None, attribution_fn, x, y, Ball(0.3), k=4, steps=3, keep_prediction=False)
    assert np.all(np.abs(unasked - x).max((1, 2, 3)) > 0.01)


def test_manipulation_nears_its_target_and_keeps_the_logits(case):
    logits_fn, attribution_fn, x, y = case
    target = attacks.target_frame(SHAPE[:2], 1)
    distance = lambda x: np.square(metrics.heatmap(attribution_fn(x, y)) - target).sum((1, 2))
    change = lambda moved: np.square(logits_fn(moved) - logits_fn(x)).mean()
    both, careless = (of_kind("manipulate", case, gamma=g, steps=40) for g in (0.5, 1.0))
    assert np.all(distance(careless) < distance(x))
    assert change(both) < 0.1 * change(careless)
    unused = attacks.manipulate(None, attribution_fn, x, y, target, Ball(0.3), steps=40, gamma=1.0)
    np.testing.assert_array_equal(unused, careless)


def test_manipulation_takes_its_start_and_a_target_for_every_image(case):
    x = case[2]
    target = attacks.target_frame(SHAPE[:2], 1)
    np.testing.assert_array_equal(
        of_kind("manipulate", case),
        of_kind("manipulate", case, target_map=jnp.tile(target, (5, 1, 1)), draws=Draws(start=jnp.zeros_like(x))),
    )
    elsewhere = of_kind(
        "manipulate", case, draws=Draws(start=jnp.full_like(x, 0.2)), steps=1
    )  # one step of 4 radii: to the border of the ball
    assert np.all(np.abs(elsewhere - x) <= 0.3 + 1e-12) and np.any(elsewhere != of_kind("manipulate", case, steps=1))


def test_zero_attributions_have_a_defined_result(case):
    logits_fn, _, x, y = case
    nothing = lambda x, y: 0 * x
    for name in LOOPED:
        assert np.all(np.isfinite(of_kind(name, (logits_fn, nothing, x, y), steps=2)))
    np.testing.assert_array_equal(of_kind("manipulate", (logits_fn, nothing, x, y), steps=2), x)


def test_attributions_that_are_not_finite_are_seen(case):
    logits_fn, attribution_fn, x, y = case
    broken = lambda x, y: attribution_fn(x, y).at[1].multiply(jnp.nan)
    out = of_kind("manipulate", (logits_fn, broken, x, y), steps=2)
    np.testing.assert_array_equal(metrics.finite(out), [True, False, True, True, True])
    np.testing.assert_allclose(out[2:], of_kind("manipulate", case, steps=2)[2:], rtol=0, atol=1e-9)


def test_spatial_attributions_are_attacked_too(case):
    logits_fn, attribution_fn, x, y = case
    summed = lambda x, y: jnp.abs(attribution_fn(x, y)).sum(-1)
    for name in LOOPED:
        there = of_kind(name, (logits_fn, summed, x, y), steps=3)
        np.testing.assert_allclose(there, of_kind(name, case, steps=3), rtol=0, atol=1e-9)


def test_random_signs(case):
    x = case[2]
    ball, key = Ball(0.1, [0.5, 0.25]), jax.random.key(0)
    moved = attacks.random_sign(x, ball, Draws(key, jnp.arange(5)))
    np.testing.assert_allclose(np.abs(moved - x), np.broadcast_to([0.2, 0.4], x.shape), atol=1e-12)
    assert 0.3 < np.mean(moved > x) < 0.7
    np.testing.assert_array_equal(attacks.random_sign(x[3:], ball, Draws(key, jnp.arange(3, 5))), moved[3:])


class TwoLayers(nn.Module):
    activation: Callable

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="out")(self.activation(nn.Dense(8, name="hidden")(x))), {}


def test_smoothed_puts_softplus_in_relu_s_place_and_compiles_once():
    relu, x = TwoLayers(jax.nn.relu), jax.random.normal(jax.random.key(0), (2, 5))
    variables = relu.init(jax.random.key(1), x)
    hidden, out = (variables["params"][name] for name in ("hidden", "out"))
    z = np.asarray(x @ hidden["kernel"] + hidden["bias"])
    layer = lambda h: h @ out["kernel"] + out["bias"]
    traces = []

    @jax.jit
    def run(logits_fn, x):
        traces.append(1)
        return logits_fn(x)

    for _ in range(2):
        smooth = run(attacks.smoothed_logits(relu, variables), x)
        np.testing.assert_allclose(smooth, layer(np.log1p(np.exp(20 * z)) / 20), rtol=1e-10)
        np.testing.assert_allclose(run(callables.logits_of(relu, variables), x), layer(np.maximum(z, 0)), rtol=1e-10)
    assert len(traces) == 2
    model = models.create("resnet18_cifar", num_classes=3, activation="relu")
    assert attacks.smoothed(model) == attacks.smoothed(model) != model
    trained = models.create("lenet", num_classes=3)
    assert attacks.smoothed(trained) is trained  # has second derivatives already
    with pytest.raises(ValueError, match="Dense has no field `activation`"):
        attacks.smoothed(nn.Dense(2))


def test_refusals_say_what_is_wrong(case):
    logits_fn, attribution_fn, x, y = case
    for options, message in (
        ({"gamma": 0.0}, r"gamma must lie in \(0, 1\], got 0.0"),
        ({"ball": Ball(0.0)}, "radius must be positive"),
        ({"ball": Ball([0.1, 0.2, 0.3])}, r"radius has shape \(3,\); it must be one number or 2, one per channel"),
        ({"steps": 0}, "at least one step, got 0"),
        ({"target_map": jnp.ones((5, 6))}, r"target map has shape \(5, 6\), the heat maps have \(5, 6, 5\)"),
        ({"draws": Draws(start=x[:2])}, r"start must have x's shape \(5, 6, 5, 2\), got \(2, 6, 5, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            of_kind("manipulate", case, **options)
    with pytest.raises(ValueError, match="k must lie between 1 and the 30 entries of an example, got 31"):
        of_kind("top_k", case, k=31)
    without = (None, attribution_fn, x, y)
    with pytest.raises(ValueError, match="logits_fn is None: give one, or set gamma=1"):
        of_kind("manipulate", without)
    with pytest.raises(ValueError, match="logits_fn is None: give one, or set keep_prediction=False"):
        of_kind("top_k", without)
    with pytest.raises(ValueError, match="step_size must be positive"):
        of_kind("top_k", case, step_size=-1.0)
    with pytest.raises(ValueError, match=r"5 images need as many slots \(n,\), got shape \(2,\)"):
        of_kind("pgd", case, slots=jnp.arange(2))
    with pytest.raises(ValueError, match=r"5 images need as many labels \(n,\), got shape \(4,\)"):
        of_kind("top_k", (logits_fn, attribution_fn, x, y[:4]))
