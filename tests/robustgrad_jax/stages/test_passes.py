"""What measurements say that they compile has the shapes of what they run."""

import importlib
import math

import jax
import numpy as np
import pytest

from launch.processes.stop import Stop
from launch.train import planned
from launch.training import sharding
from robustgrad_jax.measures import means
from robustgrad_jax.stages.classifier import Classifier


class FakeStore:
    """Real data, and a network of zeros."""

    stop = Stop()

    def get(self, stage):
        if not isinstance(stage, Classifier):
            return stage.make(self)
        shapes = stage.architecture.shapes(stage.images.data.spec())
        return {"variables": jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)}


def shapes(tree):
    return jax.tree.map(lambda a: (np.shape(a), str(a.dtype)), tree)


@pytest.fixture(scope="module")
def plan():
    config = importlib.import_module("configs.robustgrad.digits_lenet").get_config()
    overrides = {"data.test_examples": 50, "evaluation.attack_examples": 20, "evaluation.batch_size": 16}
    config.update_from_flattened_dict(overrides)
    return planned(config)[1]


@pytest.mark.parametrize("kind", ["CleanAccuracy", "RandomPerturbations", "UnderAttack", "PixelCurves", "UpperBound"])
def test_a_pass_has_the_shapes_of_what_is_run(kind, plan, monkeypatch):
    stage = next(own for own in plan.measurements if type(own).__name__ == kind)
    layout = sharding.layout(devices=jax.devices()[:1])
    calls = {}

    def run(layout, measure, variables, batches, *, resident, repeats=1, **options):
        every = [{**batch, "resident": resident} for batch in batches]
        calls.update(variables=variables, batch=every[0], count=len(every), repeats=repeats, once=options.get("once"))
        return {"examples": 1.0}

    monkeypatch.setattr(means, "masked_means", run)
    stage.values(FakeStore())
    *before, one = stage.passes(layout)
    _, variables, batch, draw = one.arguments
    assert draw == calls["repeats"] if calls["repeats"] > 1 else draw.shape == ()
    assert one.calls == calls["count"] and bool(before) == (calls["once"] is not None)
    assert shapes(variables) == shapes(calls["variables"])
    once = batch.pop("once", None)
    assert shapes(batch) == shapes(calls["batch"])
    if before:
        (common,) = before
        assert common.calls == math.ceil((stage.examples or 50) / 16)
        assert shapes(once) == shapes(jax.eval_shape(*common.arguments))
    jax.eval_shape(one.arguments[0], *one.arguments[1:3] if once is None else (variables, batch | {"once": once}), 0)
