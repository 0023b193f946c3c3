"""Max pooling against PyTorch: values, ties, padding, odd sizes, first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.networks import pooling

torch = pytest.importorskip("torch")

# shape (n, h, w, c), window, strides, padding
CASES = [
    ((3, 8, 8, 2), 2, None, 0),
    ((2, 7, 9, 3), 2, None, 0),
    ((2, 9, 9, 2), 3, 2, 1),
    ((2, 10, 7, 2), 3, 2, 1),
    ((2, 6, 11, 2), (3, 2), (1, 3), (1, 0)),
    ((2, 11, 11, 1), 2, 3, 0),
    ((1, 5, 4, 2), 4, 1, 2),
]


def windows(x, window, strides, padding):
    """The branch of TPUs, on a CPU."""
    pair = lambda value: (value, value) if isinstance(value, int) else value
    geometry = dict(window=pair(window), strides=pair(window if strides is None else strides), padding=pair(padding))
    out = pooling._by_windows(x.reshape(-1, *x.shape[-3:]), **geometry)
    return out.reshape(*x.shape[:-3], *out.shape[1:])


ways = pytest.mark.parametrize(
    "max_pool",
    [jax.jit(f, static_argnums=(1, 2, 3)) for f in (pooling.max_pool, windows)],
    ids=["max_pool", "windows"],
)
case = pytest.mark.parametrize("case", CASES, ids=str)


def images(shape, levels, seed=0):
    """Random images; few `levels` make most windows tie."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) if levels is None else rng.integers(-levels, levels, shape).astype(float)


def torch_pool(x, window, strides, padding):
    return torch.nn.functional.max_pool2d(x, window, strides, padding)


def nchw(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


@case
@ways
@pytest.mark.parametrize("levels", [None, 2])
def test_value_and_gradients(case, levels, max_pool):
    shape, window, strides, padding = case
    x = images(shape, levels)
    tx = nchw(x).requires_grad_()
    ty = torch_pool(tx, window, strides, padding)
    weights = np.random.default_rng(1).standard_normal(nhwc(ty).shape)
    # a cubic of the pooled square, so that the second derivative has every kind of term
    energy_t = (nchw(weights) * torch_pool(tx**2 + tx, window, strides, padding) ** 3).sum()
    (gradient_t,) = torch.autograd.grad(energy_t, tx, create_graph=True)
    (double_t,) = torch.autograd.grad((gradient_t**2).sum(), tx)

    with jax.enable_x64(True):
        x = jnp.asarray(x)

        def energy(x):
            return jnp.sum(weights * max_pool(x**2 + x, window, strides, padding) ** 3)

        np.testing.assert_array_equal(max_pool(x, window, strides, padding), nhwc(ty))
        gradient = jax.jit(jax.grad(energy))(x)
        double = jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(energy)(x) ** 2)))(x)
        np.testing.assert_allclose(gradient, nhwc(gradient_t), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(double, nhwc(double_t), rtol=1e-10, atol=1e-10)


@case
@ways
def test_forward_mode_and_vmap(case, max_pool):
    shape, window, strides, padding = case
    with jax.enable_x64(True):
        x = jnp.asarray(images(shape, None))
        dx = jnp.asarray(images(shape, None, seed=1))
        tangent = jax.jvp(lambda x: max_pool(x, window, strides, padding), (x,), (dx,))[1]
        # <P dx, u> = <dx, P^T u>, with P^T taken from PyTorch
        u = np.random.default_rng(2).standard_normal(tangent.shape)
        tx = nchw(x).requires_grad_()
        (transposed,) = torch.autograd.grad(torch_pool(tx, window, strides, padding), tx, nchw(u))
        np.testing.assert_allclose(jnp.vdot(tangent, u), jnp.vdot(dx, nhwc(transposed)), rtol=1e-12)

        per_image = jax.vmap(jax.grad(lambda x: jnp.sum(max_pool(x, window, strides, padding) ** 2)))(x)
        tp = torch_pool(tx, window, strides, padding)
        (gradient_t,) = torch.autograd.grad((tp**2).sum(), tx)
        np.testing.assert_allclose(per_image, nhwc(gradient_t), rtol=1e-12, atol=1e-12)


@ways
def test_nan_propagates_and_infinities_pool(max_pool):
    x = images((1, 6, 6, 1), None)
    x[0, 0, 1], x[0, 4, 4], x[0, 2:4, 2:4] = np.nan, np.inf, -np.inf
    expected = nhwc(torch_pool(nchw(x), 3, 1, 1))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x, jnp.float32), 3, 1, 1), expected.astype(np.float32))


def test_bad_arguments():
    x, max_pool = jnp.ones((1, 4, 4, 1)), pooling.max_pool
    with pytest.raises(ValueError, match="more than half"):
        max_pool(x, 2, 2, 2)
    with pytest.raises(ValueError, match="exceeds the padded image"):
        max_pool(x, 5)
    with pytest.raises(ValueError, match="strides must be"):
        max_pool(x, 2, 0)
    with pytest.raises(ValueError, match="window must be"):
        max_pool(x, (2, 2, 2))
    with pytest.raises(TypeError, match="int32"):
        max_pool(x.astype(jnp.int32), 2)
