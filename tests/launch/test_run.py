"""The run directory: what it keeps, what it refuses, what it forgets when a run continues."""

import json
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from launch import run as run_module
from launch.run import Preempted, Run, RunDirectoryError

CONFIG = {"seed": 0, "names": ("a", "b"), "model": {"name": "lenet", "beta": 3.0}}


def config(**changes):
    found = ConfigDict(CONFIG)
    for key, value in changes.items():
        found.model[key] = value
    return found


@pytest.fixture
def run(tmp_path):
    found = Run.open(tmp_path / "deep" / "run", config())
    yield found
    found.close()


# -- artifacts --------------------------------------------------------------------------------


def test_an_artifact_is_made_once(run):
    calls = []

    def make():
        calls.append(1)
        return {"words": ["water", "land"], "score": 0.5, "none": None}

    first = run.artifact("found.json", make)
    again = run.artifact("found.json", make)
    assert first == again == {"words": ["water", "land"], "score": 0.5, "none": None} and len(calls) == 1
    assert json.loads((run.path / "artifacts" / "found.json").read_text()) == first


def test_arrays_come_back_as_they_went(run):
    arrays = {
        "double": np.random.default_rng(0).normal(size=(2, 3)),
        "whole": np.arange(4, dtype=np.int8),
        "device": jax.numpy.ones((2,), jax.numpy.float32),
        "none": np.zeros((0, 5)),
    }
    made = run.artifact("deep/arrays.npz", lambda: arrays)
    kept = run.artifact("deep/arrays.npz", lambda: pytest.fail("made again"))
    for found in (made, kept):
        assert found.keys() == arrays.keys()
        for key, value in arrays.items():
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == value.dtype


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
def test_an_artifact_that_fails_leaves_nothing(run, name):
    def crash():
        raise OSError("out of memory")

    with pytest.raises(OSError, match="out of memory"):
        run.artifact(name, crash)
    with pytest.raises((TypeError, ValueError)):  # made, but not of a kind that can be kept
        run.artifact("b.json", lambda: {"x": object()})
    assert list((run.path / "artifacts").iterdir()) == []
    value = {"x": [1.0]}
    assert list(run.artifact(name, lambda: value)) == ["x"]


def test_artifacts_of_another_kind_are_refused(run):
    with pytest.raises(ValueError, match=r"'model.pkl': the name must end in .json or .npz"):
        run.artifact("model.pkl", lambda: pytest.fail("made"))


def test_pickled_arrays_are_not_loaded(run):
    np.savez(run.path / "artifacts" / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        run.artifact("a.npz", dict)


def test_an_artifact_is_not_begun_once_the_run_should_stop(run):
    run.artifact("done.json", lambda: 1)
    run.stop_asked.set()
    assert run.artifact("done.json", lambda: 2) == 1
    with pytest.raises(Preempted, match=str(run.path)):
        run.artifact("next.json", lambda: pytest.fail("made"))


# -- configs ----------------------------------------------------------------------------------


def test_every_difference_has_a_line():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": None, "same": {"e": 0.1}}
    new = {"a": 2, "b": {"c": [1, 2, 3], "d": "x"}, "same": {"e": 0.1}, "new": True}
    assert run_module.difference(old, new) == [
        "a: 1 -> 2",
        "b.c: [1, 2] -> [1, 2, 3]",
        "gone: null -> (absent)",
        "new: (absent) -> true",
    ]
    assert run_module.difference(new, new) == []


def test_flatten():
    nested = ConfigDict({"a": {"b": {"c": 1}, "d": (1, 2)}, "e": None})
    wanted = {"a.b.c": 1, "a.d": (1, 2), "e": None}
    assert run_module.flatten(nested) == run_module.flatten(FrozenConfigDict(nested)) == wanted


def test_the_same_config_opens_the_directory_again(run):
    run.close()
    Run.open(run.path, FrozenConfigDict(config())).close()
    stored = json.loads((run.path / "config.json").read_text())
    assert stored == {"model": {"beta": 3.0, "name": "lenet"}, "names": ["a", "b"], "seed": 0}


def test_another_config_is_refused_and_nothing_changes(run):
    run.finish({"accuracy": 0.5})
    run.close()
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    with pytest.raises(RunDirectoryError) as error:
        Run.open(run.path, config(beta=20.0, name="resnet18"))
    message = str(error.value)
    assert "model.beta: 3.0 -> 20.0" in message and 'model.name: "lenet" -> "resnet18"' in message
    assert str(run.path) in message and "another --workdir" in message and "seed" not in message
    assert before == {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    Run.open(run.path, config()).close()  # the refusal let go of the lock


def test_the_config_is_frozen(run):
    with pytest.raises(AttributeError):
        run.config.model.beta = 1.0


def test_one_run_at_a_time(run):
    with pytest.raises(RunDirectoryError, match=r"another process is running in .*another --workdir"):
        Run.open(run.path, config())
    run.close()
    Run.open(run.path, config()).close()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"file/run is not writable .*another --workdir"):
        Run.open(tmp_path / "file" / "run", config())


def test_children_stop_with_their_parent(run):
    child = run.child("seed1", config(beta=1.0))
    assert child.path == run.path / "seed1" and child.config.model.beta == 1.0
    run.stop_asked.set()
    with pytest.raises(Preempted, match="seed1"):
        child.check_stop()
    child.close()


def test_sigterm_only_asks(run):
    before = signal.getsignal(signal.SIGTERM)
    try:
        run.stop.on_sigterm()
        run.check_stop()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted):
            run.check_stop()
    finally:
        signal.signal(signal.SIGTERM, before)


# -- logs and results -------------------------------------------------------------------------


def rows(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_logged_lines(run):
    run.log(1, {"loss": np.float32(0.5), "norm": float("nan")})
    run.log(2, {"loss": float("inf")})
    first, second = rows(run)
    assert first["step"] == 1 and first["loss"] == 0.5 and first["norm"] is None and first["time"] > 1e9
    assert second["loss"] is None
    run.close()
    assert list((run.path / "tensorboard").glob("events.*"))


def test_rewinding_drops_later_and_half_written_lines(run):
    for step in (2, 4, 4, 6, 8):
        run.log(step, {"loss": float(step)})
    path = run.path / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')  # the process was killed here
    run.rewind(4)
    assert [(row["step"], row["loss"]) for row in rows(run)] == [(2, 2.0), (4, 4.0), (4, 4.0)]
    run.log(5, {"loss": 5.0})
    assert [row["step"] for row in rows(run)] == [2, 4, 4, 5]
    run.rewind(0)
    assert path.read_text() == ""


def test_rewinding_a_run_that_logged_nothing(run):
    run.rewind(3)
    assert not (run.path / "metrics.jsonl").exists()


def test_a_result_is_there_when_the_run_is_finished(run):
    assert run.result() is None
    given = run.finish({"accuracy": np.float32(0.25), "steps": 3})
    assert given == run.result() == {"accuracy": 0.25, "steps": 3.0}


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = Run.open(tmp_path / "run", config())
    run.log(1, {"loss": 1.0})
    run.rewind(0)
    assert run.artifact("a.json", lambda: {"x": 1}) == {"x": 1}
    assert run.finish({"accuracy": 1}) == {"accuracy": 1.0}
    run.close()
    assert not (tmp_path / "run").exists()


def test_revisable_fields_may_change_and_the_earlier_result_is_kept(tmp_path):
    base = {"seed": 0, "text": {"rate": 1.0}, "other": 1}
    opened = Run.open(tmp_path, ConfigDict(base), revisable=("text",))
    opened.finish({"wga": 0.5})
    opened.close()
    for n, rate in enumerate((2.0, 3.0), 1):
        revised = Run.open(tmp_path, ConfigDict(base | {"text": {"rate": rate}}), revisable=("text",))
        assert revised.result() is None
        assert json.loads((tmp_path / "config.json").read_text())["text"] == {"rate": rate}
        folder = tmp_path / "history" / str(n)
        assert json.loads((folder / "config.json").read_text())["text"] == {"rate": float(n)}
        assert json.loads((folder / "result.json").read_text()) == {"wga": 0.5 * n}
        revised.finish({"wga": 0.5 * (n + 1)})
        revised.close()
    again = Run.open(tmp_path, ConfigDict(base | {"text": {"rate": 3.0}}), revisable=("text",))
    assert again.result() == {"wga": 1.5}  # the same config: nothing to redo
    again.close()


def test_other_fields_are_refused_beside_revisable_ones(tmp_path):
    Run.open(tmp_path, ConfigDict({"seed": 0, "text": {"rate": 1.0}})).close()
    with pytest.raises(RunDirectoryError, match="seed: 0 -> 1") as refused:
        Run.open(tmp_path, ConfigDict({"seed": 1, "text": {"rate": 2.0}}), revisable=("text",))
    assert "rate" not in str(refused.value)
    assert json.loads((tmp_path / "config.json").read_text())["text"] == {"rate": 1.0}
    with pytest.raises(RunDirectoryError, match="texture"):
        Run.open(tmp_path, ConfigDict({"seed": 0, "text": {"rate": 1.0}, "texture": 1}), revisable=("text",))
