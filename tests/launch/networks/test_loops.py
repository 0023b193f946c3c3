"""Loops as one program and as calls from the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.networks import loops


def newton(context, state):
    """A step towards the square root of the context, and their number."""
    x, count = state
    return (x + context / x) / 2, count + 1


@pytest.mark.parametrize("compiled", [True, False, None])
def test_steps_follow_one_another(compiled):
    found, count = loops.iterate(newton, jnp.array([2.0, 9.0]), (jnp.ones(2), jnp.int32(0)), 6, compiled)
    np.testing.assert_allclose(found, [2**0.5, 3], rtol=1e-5)
    assert count == 6


def test_inside_a_jit_it_is_one_program():
    inside = lambda compiled: lambda x: loops.iterate(newton, x, (jnp.ones(2), jnp.int32(0)), 6, compiled)[0]
    x = jnp.array([2.0, 9.0])
    assert "scan[" in str(jax.make_jaxpr(inside(None))(x))
    with pytest.raises(ValueError, match="compiled_loop=False is a loop on the host"):
        jax.jit(inside(False))(x)


def test_the_devices_of_the_arrays_decide_and_jaxs_default_where_there_are_none(monkeypatch):
    assert not loops.in_program()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert loops.in_program() and loops.in_program({"a": np.ones(2)})
    assert not loops.in_program({"a": np.ones(2), "b": jnp.ones(2)})  # on a CPU beside a TPU
    seen = []
    jax.jit(lambda x: seen.append(loops.in_program(x)))(jnp.ones(2))
    assert seen == [True]
