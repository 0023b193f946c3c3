"""The run directory: what it keeps, what it refuses, what it forgets when a run continues."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from launch import files
from launch import run as run_module
from launch.processes.stop import Preempted
from launch.run import Run, RunDirectoryError

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


def test_one_run_at_a_time(run):
    with pytest.raises(RunDirectoryError, match=r"another process is running in .*another --workdir"):
        Run.open(run.path, config())
    run.close()
    Run.open(run.path, config()).close()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"file/run is not writable .*another --workdir"):
        Run.open(tmp_path / "file" / "run", config())


def test_sigterm_only_asks(run):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with run.stop.listening():
        run.stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted):
            run.stop.check()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_ctrl_c_asks_and_the_second_one_interrupts(run):
    with run.stop.listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Preempted):
            run.stop.check()
    with pytest.raises(Preempted) as error, run.stop.listening():
        run.stop.check()
    assert error.value.number == signal.SIGINT


# -- results ----------------------------------------------------------------------------------


def test_a_result_is_there_when_the_run_is_finished(run):
    assert run.result() is None
    given = run.finish({"accuracy": np.float32(0.25), "steps": 3})
    assert given == run.result() == {"accuracy": 0.25, "steps": 3.0}


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = Run.open(tmp_path / "run", config())
    assert run.finish({"accuracy": 1}) == {"accuracy": 1.0}
    run.close()
    assert not (tmp_path / "run").exists()


def test_fields_may_change_and_the_earlier_result_is_kept(tmp_path):
    base = {"seed": 0, "text": {"rate": 1.0}, "other": 1}
    opened = Run.open(tmp_path, ConfigDict(base))
    opened.finish({"wga": 0.5})
    opened.close()
    for n, rate in enumerate((2.0, 3.0), 1):
        revised = Run.open(tmp_path, ConfigDict(base | {"text": {"rate": rate}}))
        assert revised.result() is None
        assert json.loads((tmp_path / "config.json").read_text())["text"] == {"rate": rate}
        folder = tmp_path / "history" / str(n)
        assert json.loads((folder / "config.json").read_text())["text"] == {"rate": float(n)}
        assert json.loads((folder / "result.json").read_text()) == {"wga": 0.5 * n}
        revised.finish({"wga": 0.5 * (n + 1)})
        revised.close()
    again = Run.open(tmp_path, ConfigDict(base | {"text": {"rate": 3.0}}))
    assert again.result() == {"wga": 1.5}  # the same config: nothing to redo
    again.close()


def test_a_kill_while_a_result_is_put_aside(tmp_path, monkeypatch):
    """Neither a second folder for it, nor one without a result."""
    Run.open(tmp_path, config()).finish({"a": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.os, "replace", interrupted)
        Run.open(tmp_path, config(beta=1.0))
    Run.open(tmp_path, config(beta=1.0)).close()
    assert [path.name for path in (tmp_path / "history").iterdir()] == ["1"]
    kept = {path.name for path in (tmp_path / "history" / "1").iterdir()}
    assert kept == {"config.json", "result.json"} and not (tmp_path / "result.json").exists()


def interrupted(source, place):
    """os.replace, which a kill of a write comes before."""
    if place.name == "result.json":
        raise KeyboardInterrupt
    os.rename(source, place)


# -- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b'{"seed": 0', b"", b"[]", b'{"seed": 0, "seed": 1}', b"\xff\xfe{}", b"[" * 99999])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^\S*/config\.json\S* .*is damaged \(.*; remove it to go on$"):
        Run.open(tmp_path, config())
    assert (tmp_path / "config.json").read_bytes() == content


def test_a_damaged_result_is_none_and_a_damaged_plan_is_named(run, caplog):
    run.finish({"accuracy": 1})
    (run.path / "result.json").write_text('{"accuracy": 1.')
    assert run.result() is None and "result.json, line 1, column 15: is damaged" in caplog.text
    run.finish({"accuracy": 1})
    assert run.result() == {"accuracy": 1}
    (run.path / "plan.json").write_text('{"store": "st')
    with pytest.raises(
        ValueError, match=r"plan\.json, line 1, column 11: is damaged \(.*; remove it, and give --store"
    ):
        run.store_path()


def test_leftovers_of_killed_writers_go_when_the_directory_is_opened(run):
    dead = f".result.json.{files._machine()}-{2**22 + 1}-1-abcdefgh.partial"
    (run.path / "store" / "clip").mkdir(parents=True)
    for folder in (run.path, run.path / "store" / "clip"):
        (folder / dead).write_text("half")
    run.close()
    Run.open(run.path, config()).close()
    assert not list(run.path.rglob("*.partial"))
