"""Rounded products: an independent rounding, in every place where a program can hide a product."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from benchmarks.precision import rounded
from launch.networks.conv import conv_general_dilated

A, B = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)


def low(a):
    return np.asarray(a).astype(ml_dtypes.bfloat16).astype(np.float32)


custom = jax.custom_jvp(jnp.matmul)
custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[0] @ primals[1] + primals[0] @ tangents[1]))


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a @ b,
        lambda a, b: jax.jit(jnp.matmul)(a, b),
        lambda a, b: jax.checkpoint(jnp.matmul)(a, b),
        lambda a, b: lax.scan(lambda carry, row: (carry, row @ b), 0, a)[1],
        lambda a, b: lax.fori_loop(0, jnp.int32(1), lambda _, total: total + a @ b, jnp.zeros((4, 4))),
        lambda a, b: lax.fori_loop(0, 3, lambda i, total: total + i * (a @ b), jnp.zeros((4, 4))) / 3,
        lambda a, b: lax.cond(a[0, 0] < 9, lambda: a @ b, lambda: a),
        custom,
    ],
)
def test_operands_are_rounded_wherever_the_product_is(product):
    found = rounded(product, "bfloat16")(A, B)
    np.testing.assert_allclose(found, low(A) @ low(B), rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(found) - A @ B).max() > 1e-4
    np.testing.assert_allclose(rounded(product, "float32")(A, B), A @ B, rtol=1e-5, atol=1e-6)


def test_a_loop_outside_jit_is_the_loop_inside():
    """Step by step, or as one program."""
    steps = rounded(lambda a, b: lax.fori_loop(0, 5, lambda i, state: (state @ b) / 2 + i, a), "bfloat16")
    np.testing.assert_allclose(steps(A, B), jax.jit(steps)(A, B), rtol=1e-5)


def test_derivatives_are_products_of_rounded_operands():
    gradient = rounded(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2)), "bfloat16")(A, B)
    np.testing.assert_allclose(gradient, low(2 * (low(A) @ low(B))) @ low(B).T, rtol=1e-5)


def test_convolutions_and_their_derivatives_are_rounded():
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 3)).astype(np.float32)
    w = np.random.default_rng(2).normal(size=(3, 3, 3, 2)).astype(np.float32)
    convolve = lambda own: lambda x, w: own(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    loss = lambda own: jax.grad(lambda x, w: jnp.sum(convolve(own)(x, w) ** 2), (0, 1))
    for own in (conv_general_dilated, lax.conv_general_dilated):
        y = low(2 * convolve(lax.conv_general_dilated)(low(x), low(w)))
        expected = jax.vjp(convolve(lax.conv_general_dilated), low(x), low(w))[1](y)
        for found, true in zip(rounded(loss(own), "bfloat16")(x, w), expected, strict=True):
            np.testing.assert_allclose(found, true, rtol=1e-4, atol=1e-4)


def test_products_that_ask_for_float32_are_left_alone():
    exact = lambda a, b: jnp.matmul(a, b, precision="highest")
    np.testing.assert_array_equal(rounded(exact, "bfloat16")(A, B), exact(A, B))


def test_the_more_bits_the_smaller_the_error():
    true = A.astype(np.float64) @ B.astype(np.float64)
    error = {name: np.abs(rounded(jnp.matmul, name)(A, B) - true).max() for name in ("bfloat16", "tf32", "bfloat16x3")}
    assert error["bfloat16"] > 4 * error["tf32"] > 16 * error["bfloat16x3"]
