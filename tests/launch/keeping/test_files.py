"""Files are either whole or not there."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import files
from tests.commands import ROOT


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


def test_writing_a_file_piece_by_piece(tmp_path):
    path = tmp_path / "table.npy"
    with files.writing(path) as file:
        file.write(b"one")
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.startswith(".table.npy.") and not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"onetwo" and list(tmp_path.iterdir()) == [path]
    with contextlib.suppress(ValueError), files.writing(path) as file:
        raise ValueError
    assert path.read_bytes() == b"onetwo" and list(tmp_path.iterdir()) == [path]


def test_writing_a_folder(tmp_path):
    folder = tmp_path / "clip"
    for content in ("one", "two"):
        with files.writing_folder(folder) as inside:
            (inside / "a.txt").write_text(content)
        assert (folder / "a.txt").read_text() == content
    with contextlib.suppress(ValueError), files.writing_folder(folder) as inside:
        (inside / "a.txt").write_text("three")
        raise ValueError
    assert (folder / "a.txt").read_text() == "two" and list(tmp_path.iterdir()) == [folder]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, os.fsdecode(b"caf\xe9"), "a.b c"])
def test_names_of_any_length_and_bytes(tmp_path, name):
    files.write_atomically(tmp_path / name, "x")
    with contextlib.suppress(KeyboardInterrupt), files.writing(tmp_path / name):
        (temporary,) = (p for p in tmp_path.iterdir() if p.name != name)
        assert not files.sweep_leftovers(tmp_path) and temporary.exists()  # this process is alive
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == [name]


# Each writes as the program does, says so and waits to be killed.
_WRITES = {
    "file": "with files.writing(f'{root}/result.json') as file: file.write(b'x'); ready()",
    "folder": "with files.writing_folder(f'{root}/value') as folder: (folder / 'a').mkdir(); ready()",
    "tree": "files.os.replace = lambda *_: ready(); files.save_tree(f'{root}/value', {'a': numpy.zeros(3)})",
    "below": "os.mkdir(f'{root}/b'); files.os.replace = lambda *_: ready(); files.write_atomically(f'{root}/b/a', 'x')",
}


def start_write(kind: str, root) -> subprocess.Popen:
    program = (
        "import os, sys, time, numpy\nfrom launch import files\nroot = sys.argv[1]\n"
        "def ready(): print('ready', flush=True); time.sleep(600)\n" + _WRITES[kind]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("kind", _WRITES)
def test_what_a_killed_write_leaves_is_removed(tmp_path, kind):
    (tmp_path / "kept").write_text("x")
    process = start_write(kind, tmp_path)
    try:
        there = sorted(tmp_path.rglob("*"))
        assert any(path.name.endswith(".partial") for path in there)
        assert files.sweep_leftovers(tmp_path) == [] and sorted(tmp_path.rglob("*")) == there  # its writer lives
    finally:
        os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: dead, and nobody has waited for it
    removed = files.sweep_leftovers(tmp_path)
    process.wait()
    assert len(removed) == 1 and not removed[0].exists()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["kept"]
    assert files.sweep_leftovers(tmp_path) == []


def test_the_next_write_removes_what_killed_ones_of_it_left(tmp_path):
    """In a folder that belongs to no command: that of a report, a cache, a file that the user names."""
    dead = f".{files._machine()}-999999999-1-abcdefgh.partial"
    (tmp_path / f".a.json{dead}").touch()
    (tmp_path / f".a{dead}" / "b").mkdir(parents=True)
    others = {f".b{dead}", ".a.partial"}
    for name in others:
        (tmp_path / name).touch()
    files.write_atomically(tmp_path / "a.json", "x")
    files.save_tree(tmp_path / "a", {"b": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a", *others}


def test_a_process_id_that_was_given_again_does_not_count_as_the_writer(tmp_path):
    name = f".a.{files._machine()}-{os.getpid()}-1-abcdefgh.partial"  # this process did not start at tick 1
    (tmp_path / name).touch()
    assert [path.name for path in files.sweep_leftovers(tmp_path)] == [name]


def test_what_another_machine_wrote_goes_after_a_day_without_change(tmp_path):
    folder = tmp_path / ".value.00000000-1-1-abcdefgh.partial"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "0.npy").touch()
    long_ago = time.time() - 2 * 24 * 3600
    for path in (folder / "a", folder):
        os.utime(path, (long_ago, long_ago))
    assert files.sweep_leftovers(tmp_path) == []  # a file in it is new
    os.utime(folder / "a" / "0.npy", (long_ago, long_ago))
    assert files.sweep_leftovers(tmp_path) == [folder] and not folder.exists()


def test_nothing_else_is_touched(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / f".a.{files._machine()}-999999999-1-abcdefgh.partial").touch()
    run = tmp_path / "run"
    run.mkdir()
    (run / "link").symlink_to(other)
    kept = [".hidden", ".result.json.ab12cd34", "a.partial", ".a.partial", f"a.{files._machine()}-1-1-abcdefgh.partial",
            f".a.{files._machine()}-x-1-abcdefgh.partial", ".a.zzzzzzzz-1-1-abcdefgh.partial"]  # fmt: skip
    for name in kept:
        (run / name).touch()
    assert files.sweep_leftovers(run) == [] and {p.name for p in run.iterdir()} == {*kept, "link"}
    assert files.sweep_leftovers(tmp_path / "nowhere") == []
    assert len(list(other.iterdir())) == 1


def test_a_tree_that_is_saved_takes_the_place_of_another(tmp_path):
    for value in (1.0, 2.0):
        files.save_tree(tmp_path / "value", {"a": np.full(3, value), "b": (1, [2])})
        tree = files.load_tree(tmp_path / "value")
        assert (tree["a"] == value).all() and tree["b"] == (1, [2])
    assert [p.name for p in tmp_path.iterdir()] == ["value"]
