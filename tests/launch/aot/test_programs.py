"""What plans compile, on fake devices: a training alone and a stack of them."""

import json

import jax
import jax.numpy as jnp
import pytest

from robustgrad_jax import models
from tests.commands import finish, start


@pytest.fixture(scope="module")
def found():
    """What tests/launch/aot/devices_worker.py prints."""
    return json.loads(finish(start("-m", "tests.launch.aot.devices_worker", devices=8)).splitlines()[-1])


@pytest.fixture(scope="module")
def gradients():
    """Bytes of LeNet's gradients for the digits."""
    init = models.create("lenet", num_classes=10).init
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_a_training_exchanges_its_gradients_once(found, gradients):
    (row,) = found["alone"]["rows"]
    assert (row["program"], row["topology"], row["fits"]) == ("Classifier", "cpux8", True)
    assert row["exchanged"] == pytest.approx(gradients, abs=100)
    assert {one["kind"] for one in row["collectives"]} == {"all-reduce"} and row["collectives"][0]["group"] == 8
    assert row["memory"]["arguments"] > 3 * gradients  # with both moments of Adam
    assert row["flops"] > 0 and row["compile_seconds"] > 0


def test_a_call_of_several_steps(found):
    """Every step of it exchanges its gradients."""
    one, four = found["several steps"]["rows"]
    assert (one["program"], four["program"]) == ("Classifier", "Classifier, 4 steps")
    assert four["exchanged"] == pytest.approx(4 * one["exchanged"], rel=0.01)
    assert {one["times"] for one in four["collectives"]} == {4} and four["loops"] is True
    assert four["flops"] == pytest.approx(4 * one["flops"], rel=0.01)
    names = [row["program"] for row in found["several steps, stacked"]["rows"]]
    assert names == ["3 Classifiers", "3 Classifiers, 4 steps"]
    assert all(row["collectives"] == [] for row in found["several steps, stacked"]["rows"])
    assert [row["program"] for row in found["logged before"]["rows"]] == ["Classifier"]


def test_what_does_not_fit_is_said_with_its_largest_arrays(found):
    (row,) = found["no room"]["rows"]
    assert row["fits"] is False and row["needed"] > row["available"] == 1e6
    sizes = [one["bytes"] for one in row["largest"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1e5
    assert any(one["name"].startswith("argument ") for one in row["largest"])
    assert "Classifier does not fit cpux8; its largest arrays:" in found["no room"]["text"]
    assert "GB too much" in found["no room"]["text"] and "does not fit" not in found["alone"]["text"]


def test_a_stack_exchanges_nothing(found):
    (row,) = found["stacked"]["rows"]
    assert row["program"] == "3 Classifiers" and row["collectives"] == [] and row["exchanged"] == 0


def test_a_batch_that_does_not_divide_is_refused(found):
    assert found["refused"] == "batch_size=20 does not divide evenly over 8 devices; take 16 or 24"
