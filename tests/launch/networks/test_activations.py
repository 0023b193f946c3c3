"""Activations and their derivatives against PyTorch in float64; softplus at the ends of the number range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.networks import activations

torch = pytest.importorskip("torch")

# denser around 0; zero itself included
POINTS = np.concatenate([np.linspace(-40, 40, 401), np.linspace(-1, 1, 41) * 1e-3, [0.0]])

REFERENCES = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


def derivatives(f, x, order):
    """f, f', ... elementwise: a derivative of the sum is the elementwise derivative."""
    functions = [f]
    for _ in range(order):
        functions.append(jax.grad(lambda x, g=functions[-1]: jnp.sum(g(x))))
    return [g(x) for g in functions]


def torch_derivatives(f, x, order):
    x = torch.tensor(x, requires_grad=True)
    values = [f(x)]
    for _ in range(order):
        if values[-1].grad_fn is None:  # piecewise linear: all further derivatives vanish
            values.append(torch.zeros_like(x))
        else:
            values.append(torch.autograd.grad(values[-1].sum(), x, create_graph=True)[0])
    return [v.detach().numpy() for v in values]


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0, 20.0])
def test_softplus_to_third_order(beta):
    expected = torch_derivatives(lambda x: torch.nn.functional.softplus(x, beta=beta, threshold=600), POINTS, 3)
    with jax.enable_x64(True):
        actual = derivatives(activations.get("softplus", beta), jnp.asarray(POINTS), 3)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_other_activations_to_second_order(name):
    expected = torch_derivatives(REFERENCES[name], POINTS, 2 if name != "relu" else 1)
    with jax.enable_x64(True):
        actual = derivatives(activations.get(name), jnp.asarray(POINTS), len(expected) - 1)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12)


def test_relu_has_no_slope_at_zero():
    assert jax.grad(activations.get("relu"))(0.0) == 0.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("beta", [1.0, 3.0, 100.0])
def test_softplus_far_from_the_origin(dtype, beta):
    with jax.enable_x64(True):
        x = jnp.asarray([-3e38, -1e4, -100.0, 100.0, 1e4, 3e36], dtype)
        value, *slopes = jax.jit(lambda x: derivatives(lambda x: activations.softplus(x, beta), x, 3))(x)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, np.maximum(x, 0), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(slopes[0], [0, 0, 0, 1, 1, 1], atol=1e-30)
    for slope in slopes[1:]:
        np.testing.assert_allclose(slope, np.zeros(6), atol=1e-30)


def test_softplus_keeps_relative_accuracy_in_float32():
    # exp(x) for x << 0: log(1 + exp(x)) evaluated as written is 0 below -16.6
    x = np.linspace(-30, -5, 101)
    value = activations.softplus(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, np.log1p(np.exp(x.astype(np.float32).astype(float))), rtol=1e-5)


def test_softplus_maps_over_beta():
    with jax.enable_x64(True):
        betas = jnp.asarray([1.0, 3.0])
        slopes = jax.vmap(jax.grad(activations.softplus), (None, 0))(0.3, betas)
    np.testing.assert_allclose(slopes, 1 / (1 + np.exp(-0.3 * np.array([1.0, 3.0]))), rtol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"swish.*gelu, relu, silu, softplus"):
        activations.get("swish")
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="beta must be > 0"):
            activations.get("softplus", beta)
        with pytest.raises(ValueError, match="beta must be > 0"):
            activations.softplus(jnp.ones(2), beta)
