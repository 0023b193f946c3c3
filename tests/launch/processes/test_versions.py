"""What a run was made with."""

import json
from importlib import metadata

import jax
import pytest
from ml_collections import ConfigDict

from launch.processes import versions
from launch.run import Run


def test_what_is_recorded():
    found = versions.collect()
    assert found["jax"] == jax.__version__ and found["numpy"] == metadata.version("numpy")
    assert found["devices"].startswith(f"{jax.device_count()} × ") and found["processes"] == "1"


def test_a_run_keeps_every_set_of_versions_that_it_was_continued_with(tmp_path, monkeypatch):
    def start():
        Run.open(tmp_path / "run", ConfigDict({"seed": 0})).close()
        return json.loads((tmp_path / "run" / "versions.json").read_text())

    first = versions.collect()
    assert start() == start() == [first]
    monkeypatch.setattr(versions, "collect", lambda: first | {"jax": "9.9"})
    assert start() == start() == [first, first | {"jax": "9.9"}]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "versions.json").write_text("[{")
    with pytest.raises(ValueError, match=r"versions\.json, line 1, column 3: is damaged .*; remove it to go on"):
        versions.record(tmp_path)


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "_SOURCE", tmp_path)
    assert versions._commit() == ""
