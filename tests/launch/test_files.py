"""Files are either whole or not there."""

import os
import stat

import pytest

from launch import files


def test_text_and_bytes(tmp_path):
    files.write_atomically(tmp_path / "a.txt", "ε = 4\n")
    files.write_atomically(str(tmp_path / "b.bin"), b"\x00\xff")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ε = 4\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.bin"]  # no temporary file stays


def test_colleagues_can_read_it(tmp_path):
    files.write_atomically(tmp_path / "a", "x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, stage):
    """The disk is full, or the process is interrupted: the old content stays, and nothing else."""
    path = tmp_path / "result.json"
    files.write_atomically(path, "old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, stage, fail)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files.write_atomically(tmp_path / "nowhere" / "a", "x")
