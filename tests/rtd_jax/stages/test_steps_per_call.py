"""Several steps of RTD in one call, against one by one."""

import jax
import numpy as np

from clip_jax import model
from launch.files import load_tree
from launch.store import Store
from launch.training import places
from rtd_jax import experiment
from tests.rtd_jax import tiny

FIELDS = {
    "rtd__duration": "7 steps",
    "rtd__loop__eval_every": "0 steps",
    "rtd__loop__log_every": 0,
    "rtd__optimizer__name": "sgd",  # Adam makes steps of one size from gradients that are 0 up to rounding
    "rtd__optimizer__learning_rate": 0.01,
    "rtd__optimizer__weight_decay": 0.0,
}


def test_tuning(tmp_path, monkeypatch):
    called, call = [], places.Compiled.__call__

    def calling(self, numbers, state, batch, resident):
        called.append(batch["slot"].shape)
        return call(self, numbers, state, batch, resident)

    monkeypatch.setattr(places.Compiled, "__call__", calling)
    monkeypatch.setattr(model, "cut", lambda config, ids: ids)  # batches of one shape
    store, values = Store(tmp_path), {}
    for steps, calls in ((1, 7 * [(8,)]), (3, [(3, 8), (3, 8), (8,)])):
        tuning = experiment.plan(tiny.config(rtd__loop__steps_per_call=steps, **FIELDS)).tuned.tuning
        folder = store.folder(tuning)
        store.get(tuning)
        assert called[-len(calls) :] == calls
        values[steps] = load_tree(folder / "value")
        folder.rename(tmp_path / f"by {steps}")
        store.forget()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), values[1], values[3])
