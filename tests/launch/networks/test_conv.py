"""The convolution's values and derivatives against lax (another algorithm here) and against PyTorch."""

import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from launch.networks import conv

LAYOUT = ("NHWC", "HWIO", "NHWC")

# images (n, h, w, c), window and outputs (kh, kw, o), strides, padding
CASES = {
    "same": ((4, 7, 6, 3), (3, 3, 5), (1, 1), ((1, 1), (1, 1))),
    "strided odd": ((3, 9, 8, 2), (3, 3, 4), (2, 2), ((1, 1), (1, 1))),
    "leftover rows": ((2, 10, 11, 2), (3, 2, 3), (3, 2), ((0, 1), (2, 0))),
    "shortcut": ((4, 8, 8, 3), (1, 1, 6), (2, 2), ((0, 0), (0, 0))),
    "kernel outweighs images": ((1, 4, 5, 16), (3, 2, 24), (1, 1), ((0, 2), (1, 0))),
    "stem": ((2, 15, 15, 3), (7, 7, 4), (2, 2), ((3, 3), (3, 3))),
}
case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def native(x, w, strides, padding):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)


def ours(x, w, strides, padding):
    return conv.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)


def arrays(images, kernel, *, batch=(), seed=0):
    draw = np.random.default_rng(seed).standard_normal
    shape = (kernel[0], kernel[1], images[-1], kernel[2])
    return jnp.asarray(draw((*batch, *images))), jnp.asarray(draw((*batch, *shape)))


def assert_close(actual, expected, tolerance=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max()),
        actual,
        expected,
    )


@pytest.fixture(params=["one tile", "groups of images", "bands of rows"])
def tiling(request, monkeypatch):
    """Forces each branch of the tiled kernel gradient on images far smaller than those it is meant for."""
    positions = {"one tile": 10**6, "groups of images": 60, "bands of rows": 4}[request.param]
    monkeypatch.setattr(conv, "_TILE_BYTES", 0)
    monkeypatch.setattr(conv, "_TILE_POSITIONS", positions)
    conv._compiled.cache_clear()
    jax.clear_caches()
    yield
    conv._compiled.cache_clear()
    jax.clear_caches()


def kernel_gradient(f, x, w, strides, padding):
    return jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(f(x, w, strides, padding)))))(w)


@case
def test_tilings_of_the_kernel_gradient(case, tiling):
    images, kernel, strides, padding = case
    with jax.enable_x64(True):
        x, w = arrays(images, kernel)
        assert_close(kernel_gradient(ours, x, w, strides, padding), kernel_gradient(native, x, w, strides, padding))


@case
def test_values_and_derivatives_to_third_order(case):
    images, kernel, strides, padding = case
    with jax.enable_x64(True):
        x, w = arrays(images, kernel)
        dx, dw = arrays(images, kernel, seed=1)

        def results(f):
            def energy(x, w):
                return jnp.sum(jnp.tanh(f(x, w, strides, padding)) ** 2)

            def alignment(x, w):  # as in gradient matching: a function of the input gradient
                return jnp.sum(jnp.sin(jax.grad(energy)(x, w)))

            def third(x, w):  # a derivative along (dx, dw) of the parameter gradient of the above
                return jax.jvp(jax.grad(alignment, argnums=(0, 1)), (x, w), (dx, dw))[1]

            value, jvp = jax.jvp(lambda x, w: f(x, w, strides, padding), (x, w), (dx, dw))
            return (
                value,
                jvp,
                jax.grad(energy, (0, 1))(x, w),
                jax.grad(alignment, (0, 1))(x, w),
                third(x, w),
            )

        assert_close(jax.jit(results, static_argnums=0)(ours), jax.jit(results, static_argnums=0)(native))


@case
@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0), (1, None), (2, 3)])
def test_vmap(case, mapped):
    images, kernel, strides, padding = case
    with jax.enable_x64(True):
        x, w = arrays(images, kernel, batch=(3,))
        x = x[0] if mapped[0] is None else jnp.moveaxis(x, 0, mapped[0])
        w = w[0] if mapped[1] is None else jnp.moveaxis(w, 0, mapped[1])

        def results(f):
            def energy(x, w):
                return jnp.sum(jnp.tanh(f(x, w, strides, padding)) ** 2)

            def per_member(x, w):
                second = jax.grad(lambda x, w: jnp.sum(jax.grad(energy)(x, w) ** 2), (0, 1))
                return f(x, w, strides, padding), jax.grad(energy, (0, 1))(x, w), second(x, w)

            return jax.vmap(per_member, in_axes=mapped)(x, w)

        assert_close(jax.jit(results, static_argnums=0)(ours), jax.jit(results, static_argnums=0)(native))


def test_nested_vmap():
    images, kernel, strides, padding = CASES["strided odd"]
    with jax.enable_x64(True):
        x, w = arrays(images, kernel, batch=(2, 3))

        def results(f):
            grads = jax.grad(lambda x, w: jnp.sum(jnp.tanh(f(x, w, strides, padding))), (0, 1))
            both_then_images = jax.vmap(jax.vmap(grads, (0, None)), (0, 0))
            return both_then_images(x, w[:, 0]), jax.vmap(jax.vmap(grads))(x, w)

        assert_close(jax.jit(results, static_argnums=0)(ours), jax.jit(results, static_argnums=0)(native))


@case
def test_double_backward_against_torch(case):
    torch = pytest.importorskip("torch")
    images, kernel, strides, padding = case
    with jax.enable_x64(True):
        x, w = arrays(images, kernel)

        def energy(x, w):
            return jnp.sum(jnp.tanh(ours(x, w, strides, padding)) ** 2)

        penalty = jax.grad(lambda x, w: jnp.sum(jax.grad(energy)(x, w) ** 2), (0, 1))
        dx, dw = jax.jit(penalty)(x, w)

    tx = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)).requires_grad_()
    tw = torch.tensor(np.asarray(w).transpose(3, 2, 0, 1)).requires_grad_()
    (top, bottom), (left, right) = padding
    y = torch.nn.functional.conv2d(torch.nn.functional.pad(tx, (left, right, top, bottom)), tw, stride=strides)
    (gradient,) = torch.autograd.grad((torch.tanh(y) ** 2).sum(), tx, create_graph=True)
    tdx, tdw = torch.autograd.grad((gradient**2).sum(), (tx, tw))
    assert_close(np.asarray(dx), tdx.numpy().transpose(0, 2, 3, 1))
    assert_close(np.asarray(dw), tdw.numpy().transpose(2, 3, 1, 0))


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-4), (jnp.bfloat16, 3e-2)])
def test_lower_precision(dtype, tolerance):
    images, kernel, strides, padding = CASES["same"]
    x, w = (a.astype(dtype) for a in arrays(images, kernel))
    gradient = kernel_gradient(ours, x, w, strides, padding)
    assert gradient.dtype == dtype and ours(x, w, strides, padding).dtype == dtype
    expected = kernel_gradient(native, x.astype(jnp.float32), w.astype(jnp.float32), strides, padding)
    assert_close(gradient.astype(jnp.float32), expected, tolerance)


def test_in_flax_and_under_remat():
    with jax.enable_x64(True):
        x, _ = arrays((4, 9, 9, 3), (3, 3, 5))

        def gradients(**kwargs):
            layer = nn.Conv(5, (3, 3), strides=2, padding="SAME", param_dtype=jnp.float64, **kwargs)
            params = layer.init(jax.random.key(0), x)
            energy = jax.checkpoint(lambda params, x: jnp.sum(jnp.tanh(layer.apply(params, x))))
            return jax.jit(jax.grad(lambda params: jnp.sum(jax.grad(energy, 1)(params, x) ** 2)))(params)

        assert_close(gradients(conv_general_dilated=conv.conv_general_dilated), gradients())


def test_accelerators_get_the_native_operation_only():
    x, w = arrays(*CASES["same"][:2])
    step = jax.jit(jax.grad(lambda w: jnp.sum(jnp.tanh(ours(x, w, *CASES["same"][2:])))))
    lowered = {p: step.trace(w).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    assert lowered["cpu"].count("stablehlo.dot_general") == 1
    for platform in ("cuda", "tpu"):
        assert lowered[platform].count("stablehlo.convolution") == 2
        assert "stablehlo.dot_general" not in lowered[platform]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"feature_group_count": 2},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 1))},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"preferred_element_type": jnp.float32},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_everything_else_is_lax(kwargs):
    x = jnp.ones((2, 4, 8, 4), jnp.bfloat16)
    w = jnp.ones((3, 3, 4 // kwargs.get("feature_group_count", 1), 4), jnp.bfloat16)
    if kwargs.get("dimension_numbers"):
        w = w.transpose(3, 2, 0, 1)
    arguments = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUT} | kwargs
    traced = jax.make_jaxpr(functools.partial(conv.conv_general_dilated, **arguments))(x, w)
    assert "conv_general_dilated" in str(traced)
    np.testing.assert_array_equal(
        conv.conv_general_dilated(x, w, **arguments), lax.conv_general_dilated(x, w, **arguments)
    )


def test_bad_shapes_raise_the_errors_of_lax():
    with pytest.raises(ValueError, match="feature dimension"):
        ours(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 4, 5)), (1, 1), "SAME")


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from launch.networks import conv

assert jax.device_count() == 8
jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0).standard_normal
x, w = jnp.asarray(draw((16, 6, 7, 3))), jnp.asarray(draw((3, 3, 3, 4)))

def penalty(f, w, x):
    def energy(x):
        y = f(x, w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.tanh(y) ** 2)
    return jnp.sum(jnp.sin(jax.grad(energy)(x)))

gradient = jax.grad(penalty, argnums=1)
expected = jax.jit(gradient, static_argnums=0)(jax.lax.conv_general_dilated, w, x)
mesh = Mesh(np.array(jax.devices()), ("data",))
xs = jax.device_put(x, NamedSharding(mesh, P("data")))
ws = jax.device_put(w, NamedSharding(mesh, P()))
ours = conv.conv_general_dilated

jitted = jax.jit(gradient, static_argnums=0)
assert "all-gather" not in jitted.lower(ours, ws, xs).compile().as_text()
np.testing.assert_allclose(jitted(ours, ws, xs), expected, rtol=1e-10)

def local(w, x):
    return jax.lax.psum(gradient(ours, w, x), "data")

mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
np.testing.assert_allclose(jax.jit(mapped)(ws, xs), expected, rtol=1e-10)
tracked = jax.shard_map(lambda w, x: gradient(ours, w, x), mesh=mesh, in_specs=(P(), P("data")),
                        out_specs=P())
np.testing.assert_allclose(jax.jit(tracked)(ws, xs), expected, rtol=1e-10)
per_device = jax.pmap(local, axis_name="data", in_axes=(None, 0))(w, x.reshape(8, 2, 6, 7, 3))
np.testing.assert_allclose(per_device[3], expected, rtol=1e-10)
print("agrees")
"""


def test_eight_devices():
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    run = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "agrees" in run.stdout, run.stderr
