"""Gradients of a batch in parts are those of the batch at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.settings import SettingError
from launch.stages import Stage
from launch.training import accumulation
from launch.training.accumulation import Parts, contrast, differentiate

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), "scale": jnp.float32(0.3)}
ROWS = {
    "x": jnp.asarray(RNG.normal(size=(24, 5)), jnp.float32),
    "y": jnp.asarray(RNG.normal(size=(24, 3)), jnp.float32),
}


def squares(params, rows):
    error = ((rows["x"] @ params["w"] - rows["y"]) ** 2).sum(1)
    return error.mean(), {"largest": error.max(), "mean": error.mean()}


def encode(params, rows):
    return jnp.tanh(rows["x"] @ params["w"]), rows["y"]


def compare(params, encoded):
    """Depends on all rows together, on their order, and on a parameter of its own."""
    a, b = encoded
    logits = jnp.exp(params["scale"]) * a @ b.T
    weights = jnp.arange(1.0, len(a) + 1)
    loss = (weights * (jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))).mean()
    return loss, {"accuracy": (logits.argmax(1) == jnp.arange(len(a))).mean()}


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("parts", [Parts(2), Parts(4, 3), Parts(3, 2)], ids=str)
def test_a_mean_over_rows_has_the_gradients_of_one_pass(parts):
    (loss, aux), gradients = jax.jit(differentiate(squares, ROWS, parts))(PARAMS)
    (expected, whole), expected_gradients = jax.value_and_grad(squares, has_aux=True)(PARAMS, ROWS)
    close((loss, aux["mean"], gradients), (expected, whole["mean"], expected_gradients))
    errors = np.square(ROWS["x"] @ PARAMS["w"] - ROWS["y"]).sum(1)
    shares = errors.reshape(parts.groups, parts.count, -1).transpose(1, 0, 2).reshape(parts.count, -1)
    close(aux["largest"], shares.max(1).mean())


@pytest.mark.parametrize("parts", [Parts(2), Parts(4, 3), Parts(3, 2)], ids=str)
def test_a_contrast_of_all_rows_has_the_gradients_of_one_pass(parts):
    found = jax.jit(contrast(encode, compare, ROWS, parts))(PARAMS)
    close(found, jax.value_and_grad(lambda p: compare(p, encode(p, ROWS)), has_aux=True)(PARAMS))


def test_parts_take_rows_of_every_group_and_join_in_order():
    rows = jnp.arange(12)
    divided = Parts(2, 3).divide(rows)
    np.testing.assert_array_equal(divided, [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]])
    np.testing.assert_array_equal(Parts(2, 3).join(divided), rows)


def test_one_part_compiles_no_loop():
    text = jax.jit(differentiate(squares, ROWS)).lower(PARAMS).as_text()
    assert "while" not in text
    assert "while" in jax.jit(differentiate(squares, ROWS, Parts(2))).lower(PARAMS).as_text()


def test_sums_of_half_precision_gradients_are_float32():
    half = {"w": PARAMS["w"].astype(jnp.bfloat16), "scale": PARAMS["scale"]}
    text = str(jax.make_jaxpr(differentiate(squares, ROWS, Parts(4)))(half))
    assert "f32[5,3]" in text.partition("scan")[0] and "bf16[5,3]" in text  # the scan begins with float32 zeros
    _, gradients = differentiate(squares, ROWS, Parts(4))(half)
    assert gradients["w"].dtype == jnp.bfloat16


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a batch of 24 does not divide over 1 devices and 5 parts"):
        differentiate(squares, ROWS, Parts(5))(PARAMS)


@pytest.mark.parametrize("count, shards, message", [(0, 1, "accumulation=0"), (3, 8, "accumulation=3: batch_size=64")])
def test_settings_that_do_not_divide_are_refused(count, shards, message):
    class Trained(Stage):
        accumulation = count

    with pytest.raises(SettingError, match=message):
        accumulation.check(Trained(), 64, shards)
