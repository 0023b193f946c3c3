"""What a trained stage says that it compiles, against what it trains with; and that it compiles."""

import jax
import numpy as np
import pytest

from launch.stages import numbers
from launch.store import Store
from launch.training import sharding
from launch.training.program import as_arrays
from rtd_jax import experiment
from rtd_jax.stages import fitting
from rtd_jax.stages.phi import METHODS
from tests.rtd_jax import tiny


class Trained(Exception):
    """Raised in place of a training, with what it would be made of."""


def shapes(tree):
    return jax.tree.map(lambda leaf: (np.shape(leaf), str(jax.dtypes.canonicalize_dtype(leaf.dtype))), tree)


def training_of(stage, path, monkeypatch):
    """(initial state, `Training`) of a stage; φ is really trained for RTD."""
    train = fitting.train

    def stand_in(store, one, state, training):
        if one is not stage:
            return train(store, one, state, training)
        raise Trained(state, training)

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "train", stand_in)
        with pytest.raises(Trained) as trained:
            stage.make(Store(path))
    return trained.value.args


def check(stage, path, monkeypatch, **lengths):
    """The program's shapes are those of the training, but for the lengths of texts, which are the largest."""
    layout = sharding.layout()
    program = stage.program(layout)
    state, training = training_of(stage, path, monkeypatch)
    assert shapes(program.state) == shapes(state)
    assert shapes(program.resident) == shapes(training.resident)
    assert dict(program.numbers) == dict(training.numbers) == as_arrays(numbers(stage))
    batch = next(iter(training.batches(0)))
    longest = {name: (leaf.shape[0], lengths.get(name, leaf.shape[1:])) for name, leaf in batch.items()}
    flat = lambda shape: (shape[0], *np.ravel(shape[1]).tolist())
    assert {name: leaf.shape for name, leaf in program.batch.items()} == {n: flat(s) for n, s in longest.items()}
    assert {name: leaf.dtype for name, leaf in program.batch.items()} == {n: leaf.dtype for n, leaf in batch.items()}
    whole = dict(program.batch) | {sharding.RESIDENT: program.resident}
    lowered = layout.jit(program.step, program.state).lower(program.numbers, program.state, whole)
    out, metrics = lowered.out_info
    assert shapes(out) == shapes(state) and "loss" in metrics


@pytest.mark.parametrize("method", METHODS)
def test_phi(method, tmp_path, monkeypatch):
    root = experiment.plan(tiny.config(phi__method=method, images__train_examples=16, phi__optimizer__clip_norm=1.0))
    context = root.phi.clip.make().config.text.context_length
    check(root.phi, tmp_path, monkeypatch, ids=context)


@pytest.mark.parametrize("fields", [{}, {"rtd__restrict_vocabulary": False, "rtd__objective__frozen_targets": False}])
def test_tuning(fields, tmp_path, monkeypatch):
    tuning = experiment.plan(tiny.config(**fields)).tuned.tuning
    context = tuning.embeddings.clip.make().config.text.context_length
    check(tuning, tmp_path, monkeypatch, ids=context, reference_ids=context, target_ids=context)
