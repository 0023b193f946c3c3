"""The logs of a training: what is written, and what is forgotten when it continues."""

import json

import jax
import numpy as np
import pytest

from launch.journal import Journal


@pytest.fixture
def run(tmp_path):
    with Journal(tmp_path) as journal:
        yield journal


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


def test_a_damaged_line_is_dropped_by_name(run, caplog):
    for step in (2, 4):
        run.log(step, {"loss": float(step)})
    path = run.path / "metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    damaged = [
        b'{"step": 1, "lo\n',
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"loss": 1}\n',
        b'{"step": "4"}\n',
        b"[" * 99999 + b"\n",
    ]
    path.write_bytes(b"".join([first, *damaged, second]))
    run.rewind(4)
    assert path.read_bytes() == first + second
    assert all(f"metrics.jsonl, line {number} is damaged and dropped" in caplog.text for number in range(2, 8))


def test_rewinding_a_run_that_logged_nothing(run):
    run.rewind(3)
    assert not (run.path / "metrics.jsonl").exists()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Journal(tmp_path / "nowhere") as journal:
        journal.log(1, {"loss": 1.0})
        journal.rewind(0)
    assert not (tmp_path / "nowhere").exists()
