"""Counted operations against formulas, and against XLA's own count where no loop misleads it."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from launch.networks import conv, flops

N, SIDE, C, O = 3, 10, 4, 6


def counted(f, *arguments):
    return flops.count(jax.make_jaxpr(f)(*arguments))


def test_products():
    a, b = jnp.ones((5, 3, 7)), jnp.ones((5, 7, 2))
    assert counted(jnp.matmul, a, b) == 2 * 5 * 3 * 7 * 2
    assert counted(jax.grad(lambda a: (a @ b).sum()), a) == 2 * (2 * 5 * 3 * 7 * 2)
    assert counted(lambda a: a + 1, a) == 0


def looped(a, b, *, remat=False):
    body = lambda x, _: (jnp.tanh(x @ b), None)
    return lax.scan(jax.checkpoint(body) if remat else body, a, length=6)[0].sum()


def test_loops_count_as_often_as_they_run():
    a, b, one = jnp.ones((3, 7)), jnp.ones((7, 7)), 2 * 3 * 7 * 7
    assert counted(looped, a, b) == 6 * one
    assert counted(jax.grad(looped, (0, 1)), a, b) == 3 * 6 * one
    assert counted(jax.grad(partial(looped, remat=True), (0, 1)), a, b) == 4 * 6 * one
    assert counted(lambda a: lax.map(lambda x: x @ b, a), a[None].repeat(4, 0)) == 4 * one
    branches = lambda p, a: lax.cond(p, lambda a: a @ b @ b, lambda a: a @ b, a)
    assert counted(branches, True, a) == 2 * one
    relu = lambda a: jax.nn.relu(a) @ b  # a custom derivative inside jit
    assert counted(jax.jit(relu), a) == one


def test_all_devices_count():
    b, mesh = jnp.ones((7, 7)), AbstractMesh((4,), ("data",))
    mapped = jax.shard_map(lambda a: a @ b, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert counted(mapped, jnp.ones((8, 3, 7))) == 8 * 2 * 3 * 7 * 7


def convolved(convolve, strides, x, w):
    out = convolve(x, w, strides, [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.square(out).sum()


@pytest.mark.parametrize("convolve", [conv.conv_general_dilated, lax.conv_general_dilated])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_convolutions_of_every_order(convolve, strides):
    """The output times the window and the channels; each gradient costs as much."""
    x, w = jnp.ones((N, SIDE, SIDE, C)), jnp.ones((3, 3, C, O))
    one = 2 * N * (SIDE // strides[0]) ** 2 * O * 9 * C
    f = partial(convolved, convolve, strides)
    assert counted(f, x, w) == one
    assert counted(jax.grad(f, (0, 1)), x, w) == pytest.approx(3 * one)
    assert counted(jax.vmap(f), x[None].repeat(2, 0), w[None].repeat(2, 0)) == 2 * one
    assert counted(jax.vmap(f, (None, 0)), x, w[None].repeat(2, 0)) == 2 * one
    assert counted(jax.vmap(jax.grad(f, 1), (0, None)), x[None].repeat(2, 0), w) == pytest.approx(2 * 2 * one)


def test_a_network_costs_about_what_xla_says():
    """XLA leaves out the taps over a border, and counts what is not a product."""
    x, w = jnp.ones((N, 32, 32, C)), jnp.ones((3, 3, C, O))
    v = jnp.ones((32 * 32 * O, 10))

    def f(x, w, v):
        out = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (out.reshape(N, -1) @ v).sum()

    ours = counted(jax.grad(f, (0, 1, 2)), x, w, v)
    theirs = jax.jit(jax.grad(f, (0, 1, 2))).lower(x, w, v).compile().cost_analysis()["flops"]
    assert ours == pytest.approx(theirs, rel=0.15)
