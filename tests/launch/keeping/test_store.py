"""The store: each stage made once and kept whole, by several processes, through kills, without locks too."""

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from launch import files
from launch import store as store_module
from launch.processes.stop import Preempted, Stop
from launch.stages import Stage, free
from launch.store import MARKER, Store
from tests.commands import ROOT
from tests.launch.keeping.store_toy import MOMENTS, Big, Source

ENV = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def start(folder, what):
    command = [sys.executable, "-m", "tests.launch.keeping.store_toy", str(folder), what]
    return subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(folder):
    return [line.split()[0] for line in (folder / "log").read_text().splitlines()]


# -- making once ------------------------------------------------------------------------------


def test_a_stage_is_made_once_and_read_afterwards(tmp_path):
    log = str(tmp_path / "log")
    big = Big(Source(log), log)
    store = Store(tmp_path / "store")
    assert not store.has(big)
    value = store.get(big)
    assert store.get(big) is value and lines(tmp_path) == ["big", "source"]
    assert isinstance(value["table"], np.memmap) and not value["table"].flags.writeable
    np.testing.assert_array_equal(value["table"][:, 5], np.arange(4))
    assert list(store.used) == [big.source.key, big.key]
    assert [use.seconds is None for use in store.used.values()] == [False, False]
    assert str(store.used[big.key]).startswith(f"{big.key}: made in ")

    again = Store(tmp_path / "store")
    assert again.has(big) and again.get(big)["sum"] == 6.0
    assert lines(tmp_path) == ["big", "source"]
    assert list(again.used) == [big.key] and str(again.used[big.key]) == f"{big.key}: reused"
    store.forget()
    assert store.get(big) is not value and lines(tmp_path) == ["big", "source"]
    assert not (store.folder(big) / "scratch").exists()
    described = json.loads((store.folder(big) / MARKER).read_text())
    assert described["key"] == big.key and described["fields"]["source"] == {"stage": big.source.key}


def test_what_a_change_reaches_is_made_again(tmp_path):
    log = str(tmp_path / "log")
    big = Big(Source(log), log)
    Store(tmp_path / "store").get(big)
    Store(tmp_path / "store").get(replace(big, seconds=0.01))  # free
    assert lines(tmp_path) == ["big", "source"]
    more = replace(big, source=Source(log, rows=5))
    store = Store(tmp_path / "store")
    assert store.get(more)["sum"] == 10.0 and lines(tmp_path) == ["big", "source"] * 2
    assert store.has(big) and store.get(big)["sum"] == 6.0


def test_another_version_is_made_and_the_earlier_result_stays(tmp_path):
    @dataclass(frozen=True)
    class Versioned(Stage):
        VERSION: ClassVar[int] = 1

        def make(self, store):
            return {"version": self.VERSION}

    old = Versioned()
    store = Store(tmp_path)
    assert store.get(old) == {"version": 1}
    new = type("Versioned", (Versioned,), {"VERSION": 2, "__qualname__": Versioned.__qualname__})()
    assert not store.has(new) and store.get(new) == {"version": 2}
    store.forget()
    assert store.get(old) == {"version": 1}
    assert len(list(tmp_path.glob("versioned-*"))) == 2


def test_stages_that_are_not_kept_live_in_memory(tmp_path):
    calls = []

    @dataclass(frozen=True)
    class Light(Stage):
        KEPT: ClassVar[bool] = False

        def make(self, store):
            calls.append(1)
            return object()

    store = Store(tmp_path / "store")
    assert store.get(Light()) is store.get(Light()) and calls == [1]
    assert not (tmp_path / "store").exists() and not store.used
    store.forget()
    store.get(Light())
    assert calls == [1, 1]


def test_a_reader_asks_no_other_process_and_makes_nothing(tmp_path, monkeypatch):
    log = str(tmp_path / "log")
    big = Big(Source(log), log)
    store = Store(tmp_path / "store")
    with pytest.raises(LookupError, match=big.key):
        store.reader().get(big)
    value = store.get(big)
    refuse = lambda answer: pytest.fail("asked the other processes")
    monkeypatch.setattr(store_module, "process_0_says", refuse)
    assert store.reader().get(big) is value
    store.forget()
    assert store.reader().get(big).keys() == value.keys() and lines(tmp_path) == ["big", "source"]


def test_values_are_encoded_and_decoded(tmp_path):
    @dataclass(frozen=True)
    class Squares(Stage):
        n: int = 3

        def make(self, store):
            return {k: k * k for k in range(self.n)}

        def encode(self, value):
            return {"keys": np.array(list(value)), "values": list(value.values())}

        def decode(self, tree):
            return dict(zip(tree["keys"].tolist(), tree["values"], strict=True))

    assert Store(tmp_path).get(Squares()) == Store(tmp_path).get(Squares()) == {0: 0, 1: 1, 2: 4}


def test_an_error_while_making_leaves_the_stage_absent(tmp_path):
    @dataclass(frozen=True)
    class Fails(Stage):
        fails: bool = free(False)

        def make(self, store):
            if self.fails:
                raise RuntimeError("no luck")
            return 1

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="no luck"):
        store.get(Fails(fails=True))
    assert not store.has(Fails()) and store.get(Fails()) == 1  # and the lock is free


def test_a_stop_is_heeded_before_a_stage_is_made(tmp_path):
    stop = Stop()
    store = Store(tmp_path, stop)
    store.get(Source())
    stop.asked.set()
    assert Store(tmp_path, stop).get(Source())["name"] == "source"  # what is there can be had
    with pytest.raises(Preempted):
        store.get(Big(Source()))
    assert not store.folder(Big(Source())).exists()


# -- several processes ------------------------------------------------------------------------


def test_two_processes_race_for_a_key(tmp_path):
    racers = [start(tmp_path, "race") for _ in range(2)]
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert all(racer.poll() is None for racer in racers), racers[0].communicate()
        time.sleep(0.02)
    (tmp_path / "go").touch()
    outputs = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    values = [out.split(maxsplit=1) for out, _ in outputs]
    assert values[0][1] == values[1][1] == f"6.0 (4, {1 << 17}) {6.0 * (1 << 17)}\n"
    assert values[0][0] != values[1][0] and lines(tmp_path) == ["big", "source"]  # made once, by one of them


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_a_stage_absent_and_the_next_makes_it_whole(tmp_path, moment):
    process = start(tmp_path, moment)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    log = str(tmp_path / "log")
    big = Big(Source(log), log)
    store = Store(tmp_path / "store")
    assert not store.has(big) and store.has(big.source)
    value = store.get(big)
    assert value["sum"] == 6.0
    np.testing.assert_array_equal(value["table"], np.repeat(np.arange(4, dtype=np.float32)[:, None], 1 << 17, 1))
    assert lines(tmp_path) == ["big", "source", "big"]
    assert sorted(path.name for path in store.folder(big).iterdir()) == [MARKER, "value"]  # nothing half is left


def test_a_lock_is_waited_for_and_the_wait_can_be_stopped(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "_POLL", 0.01)
    source, stop = Source(), Stop()
    (tmp_path / ".locks").mkdir()
    with open(tmp_path / ".locks" / source.key, "w") as other, caplog.at_level(logging.INFO, "absl"):
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.2, stop.asked.set).start()
        with pytest.raises(Preempted):
            Store(tmp_path, stop).get(source)
        assert caplog.text.count(f"{source.key}: another process is making it, waiting") == 1
        assert not (tmp_path / source.key).exists()
        threading.Timer(0.2, lambda: fcntl.flock(other, fcntl.LOCK_UN)).start()
        assert Store(tmp_path).get(source)["name"] == "source"


def test_locks_of_several_are_held_together(tmp_path):
    one, two = Source(rows=1), Source(rows=2)
    store = Store(tmp_path)
    with store.locked([two, one]):
        for stage in (one, two):
            with open(tmp_path / ".locks" / stage.key) as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            store.put(stage, {"x": stage.rows}, seconds=2.0)
    assert store.get(two) == {"x": 2} and store.used[one.key].seconds == 2.0


def test_a_file_system_without_locks_is_warned_of_and_used(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, "absl"):
        assert Store(tmp_path).get(Source())["name"] == "source"
    assert "cannot be locked" in caplog.text and "two processes may make it" in caplog.text


def test_without_locks_the_first_result_stays(tmp_path):
    """Two processes at one stage: who comes second must not touch what others may be reading."""

    @dataclass(frozen=True)
    class Overtaken(Stage):
        def make(self, store):
            Store(tmp_path).put(self, {"by": "another"})
            return {"by": "me"}

    assert Store(tmp_path).get(Overtaken()) == {"by": "another"}


# -- trees ------------------------------------------------------------------------------------


def saved(tmp_path, tree):
    files.save_tree(tmp_path / "tree", tree)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    return files.load_tree(tmp_path / "tree")


def test_trees_come_back_as_they_were(tmp_path):
    tree = {
        "numbers": [1, 2.5, True, None, "x", float("inf")],
        "pair": (np.arange(6, dtype=np.int8).reshape(2, 3), ()),
        "empty": [{}, [], np.zeros((0, 3), np.float32), np.zeros((2, 0), ml_dtypes.bfloat16)],
        "bfloat16": jnp.arange(6, dtype=jnp.bfloat16).reshape(3, 2),
        "scalar": np.float32(0.1),
        "bfloat16 scalar": np.asarray(1.5, ml_dtypes.bfloat16),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "turned bfloat16": np.arange(6).reshape(2, 3).T.astype(ml_dtypes.bfloat16, order="K"),
        "strided": np.arange(10)[::-2],
        "big-endian": np.arange(3, dtype=">i4"),
        "text": np.array(["ab", "c"]),
        "bool": np.array([True, False]),
        "__array__": {"__tuple__": 3, "__keys__": {"x": 1}},
    }
    read = saved(tmp_path, tree)
    assert read.keys() == tree.keys()

    def same(one, other):
        if isinstance(other, dict):
            assert one.keys() == other.keys() and all(same(one[name], other[name]) for name in other)
        elif isinstance(other, list | tuple):
            assert type(one) is type(other) and len(one) == len(other)
            assert all(same(a, b) for a, b in zip(one, other, strict=True))
        elif hasattr(other, "dtype"):
            assert one.dtype == other.dtype and one.shape == other.shape and not one.flags.writeable
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        else:
            assert one == other and type(one) is type(other)
        return True

    same(read, tree)


def test_large_arrays_are_mapped_and_a_tree_is_replaced_whole(tmp_path):
    large = np.arange(1 << 18, dtype=np.float32)
    wide = large.astype(ml_dtypes.bfloat16).reshape(-1, 4)
    read = saved(tmp_path, {"large": large, "wide": np.tile(wide, (8, 1)), "small": large[:3]})
    assert isinstance(read["large"], np.memmap)
    assert not isinstance(read["small"], np.memmap)
    np.testing.assert_array_equal(read["large"], large)
    np.testing.assert_array_equal(read["wide"][: len(wide)], wide)
    assert saved(tmp_path, [1]) == [1]
    np.testing.assert_array_equal(read["large"], large)  # a map of what was replaced can still be read


def test_a_memory_map_is_moved_and_a_view_of_it_copied(tmp_path):
    def mapped(name):
        array = np.lib.format.open_memmap(tmp_path / name, "w+", np.int32, (4, 2))
        array[:] = np.arange(8).reshape(4, 2)
        return array

    whole, other, raw = mapped("whole.npy"), mapped("other.npy"), np.memmap(tmp_path / "raw", np.int32, "w+", shape=3)
    raw[:] = 5
    read_only = np.load(tmp_path / "other.npy", mmap_mode="r")
    tree = {
        "whole": whole, "again": whole, "part": other[1:3], "turned": other.T, "back": other[::-1],
        "flat": other.reshape(8), "raw": raw, "read-only": read_only,
    }  # fmt: skip
    expected = {name: np.array(array) for name, array in tree.items()}
    files.save_tree(tmp_path / "tree", tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.npy", "raw", "tree"]
    read = files.load_tree(tmp_path / "tree")
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)
    np.testing.assert_array_equal(other, expected["back"][::-1])  # what was copied stays


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({1: 2}, "keys of a saved tree are strings, not 1"),
        ({"a": [{None: 1}]}, "keys of a saved tree are strings, not None"),
        ({"a": object()}, "a object cannot be saved; encode it as arrays"),
        ({"a": {1, 2}}, "a set cannot be saved"),
        ({"a": np.array([None])}, "arrays of Python objects cannot be saved"),
    ],
)
def test_what_cannot_be_saved_leaves_nothing(tmp_path, tree, problem):
    files.save_tree(tmp_path / "tree", [3])
    with pytest.raises(TypeError, match=problem):
        files.save_tree(tmp_path / "tree", tree)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"] and files.load_tree(tmp_path / "tree") == [3]


def test_a_damaged_tree_is_named(tmp_path):
    (tmp_path / "key").mkdir()
    files.save_tree(tmp_path / "key" / "value", [3])
    (tmp_path / "key" / "value" / "tree.json").write_text("[3")
    with pytest.raises(ValueError, match=r"value/tree\.json: is damaged \(.*\); remove .*/key: it is made again"):
        files.load_tree(tmp_path / "key" / "value")
