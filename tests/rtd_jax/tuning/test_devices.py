"""The training step on 4 fake devices, in both modes, against one device: gradients, parameters, metrics."""

import json

import pytest

from rtd_jax.tuning import step
from tests.commands import finish, start

TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def devices():
    output = finish(start("-m", "tests.rtd_jax.tuning.devices_worker", devices=4), timeout=600)
    found = json.loads(output.splitlines()[-1])
    assert found["devices"] == 4
    return found


@pytest.mark.parametrize("negatives", step.NEGATIVES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_devices_have_the_gradients_of_one(devices, negatives, accumulation):
    found = devices[f"{negatives} {accumulation}"]
    assert found["moved"] > 1e-4  # otherwise equality would say nothing
    assert found["jit"] < TOLERANCE and found["pmap"] < TOLERANCE


def test_pmap_mode_is_jax_pmap_of_the_same_step(devices):
    assert devices["pmap against jax.pmap"] < TOLERANCE


def test_steps_in_one_call_are_the_same(devices):
    assert devices["in one call, jit"] < TOLERANCE and devices["in one call, pmap"] < TOLERANCE


def test_a_split_tower_has_the_gradients_of_one(devices):
    assert devices["split"]["shards"] > 3  # leaves that no device holds whole
    assert devices["split"]["apart"] < TOLERANCE


def test_a_fully_sharded_tower_has_the_gradients_of_one(devices):
    assert devices["fully sharded"]["shards"] > 20  # of the parameters and the optimiser's state
    assert devices["fully sharded"]["apart"] < TOLERANCE


def test_the_kinds_of_negatives_differ(devices):
    assert devices["kinds apart"] > 1e-3


def test_inversion_is_divided_over_the_devices(devices):
    """In float32; a token depends on its own image only, whatever the batch."""
    assert devices["inversion"] < 1e-5
