"""The real training step on 8 fake devices, in both modes, against one device: gradients, states, batch statistics."""

import json

import pytest

from tests.commands import finish, start

TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def errors():
    output = finish(start("-m", "tests.robustgrad_jax.devices_worker", devices=8), timeout=600)
    errors = json.loads(output.splitlines()[-1])
    assert errors["devices"] == 8
    return errors


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("model", ["lenet", "resnet"])
def test_same_gradients_and_states(errors, model, steps):
    found = errors[f"{model}-{steps}"]
    assert found["moved"] > 1e-4  # otherwise equality would say nothing
    assert found["jit"] < TOLERANCE
    assert found["split parameters"] < TOLERANCE
    assert found["pmap"] < TOLERANCE


def test_pmap_mode_is_jax_pmap_of_the_same_step(errors):
    """Parameters, batch statistics, optimiser and metrics after each of three steps."""
    assert len(errors["pmap against jax.pmap"]) == 3 and max(errors["pmap against jax.pmap"]) < TOLERANCE


def test_steps_in_one_call_are_the_same(errors):
    assert errors["in one call"].keys() == {"jit", "pmap"} and max(errors["in one call"].values()) < TOLERANCE


def test_two_parts_on_every_device_are_the_whole_batch(errors):
    assert errors["two parts"].keys() == {"jit", "pmap"} and max(errors["two parts"].values()) < TOLERANCE


def test_parts_on_one_device_have_the_batch_norm_of_as_many_devices(errors):
    """Parameters and running statistics after each of three steps."""
    assert len(errors["eight parts against pmap"]) == 3 and max(errors["eight parts against pmap"]) < TOLERANCE


def test_without_batch_norm_pmap_is_the_one_device_step(errors):
    assert errors["lenet-3"]["pmap against one"] < TOLERANCE


def test_batch_norm_is_per_device_in_pmap_mode(errors):
    assert errors["resnet-1"]["pmap against one"] > 1e-3
