"""A program that is larger than a chip's memory: the compiler for CUDA does not mind, that of a TPU refuses it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from launch.aot import table
from launch.aot.cost import cost
from tests.aot.compiling import machine_of, only_with_system

pytestmark = only_with_system


@pytest.mark.parametrize("topology", ["v5e:2x2", "h100x1"])
def test_what_does_not_fit_is_a_row(topology, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    machine = machine_of(topology)
    large = jax.ShapeDtypeStruct((80_000, 600_000), jnp.float32, sharding=SingleDeviceSharding(machine.devices[0]))
    arguments = ({"large": large},)
    found = cost(jax.jit(lambda tree: tree["large"].sum()).lower(*arguments), arguments, machine)
    size = 80_000 * 600_000 * 4
    assert not found.fits and found.needed == pytest.approx(size, rel=0.01)
    assert found.available == machine.chip.memory
    assert (found.largest[0].name, found.largest[0].bytes) == ("argument 0/large", size)
    text = table.text([table.CompiledRow("Sum", topology, 1, found)])
    assert f"NO, {(found.needed - found.available) / 1e9:.2f} GB too much" in text
    assert (
        f"Sum does not fit {topology}; its largest arrays:\n\n- 192.00 GB: f32[80000,600000] argument 0/large" in text
    )
