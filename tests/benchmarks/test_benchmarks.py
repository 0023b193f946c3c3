"""Every benchmark runs, both sides, and prints what it says it prints; no figure is judged."""

import json
import re
import time
from pathlib import Path

import pytest
import torch

from benchmarks import alternate
from benchmarks.alternate import pairs
from tests.commands import finish, start

QUICK = ("--images", "4", "--attack_steps", "2", "--draws", "2", "--against", "eager")


@pytest.mark.parametrize(
    "module, case, options",
    [
        ("robustgrad_step", "lenet none", ("--against", "eager")),
        ("clip", "text as used", ("--texts", "2", "--against", "sdpa")),
        ("robustgrad_eval", "lenet rps", QUICK),
        ("robustgrad_eval", "lenet aam", QUICK),
        ("tldr_text_stage", "head", ("--words", "4", "--head_steps", "2")),
        ("retrieval", "search", ("--against", "topk")),
        ("attributions", "integrated_gradients", ("--images", "2")),
    ],
)
def test_one_row(module, case, options):
    command = ("-m", f"benchmarks.{module}", "--cases", case, "--steps", "1", "--warmup", "1", *options)
    lines = finish(start(*command)).splitlines()
    row = next(line for line in lines if line.startswith(f"| {case} |"))
    seconds = [float(v) for v in re.findall(r"\d+\.\d+", row)]
    assert len(seconds) == 5 and all(v > 0 for v in seconds)


def test_a_side_that_dies_is_named():
    with pytest.raises(RuntimeError, match="the eager side of 'no such case' died"):
        alternate.pair(
            "benchmarks.clip", "no such case", ("ours", "eager"), steps=1, warmup=0, devices=1, python="python3"
        )


def rows_of(module, *options):
    output = finish(start("-m", f"benchmarks.{module}", "--steps", "1", *options)).splitlines()
    return [line for line in output if line.startswith("| ") and not line.startswith("| case")]


def test_a_side_that_cannot_run_says_why_in_its_row(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    path = tmp_path / "rows.json"
    options = ("--cases", "lenet none", "--lenet", "2", "--against", "compile", "--json", str(path))
    (row,) = rows_of("robustgrad_step", *options)
    assert "C++ compiler" in row
    written = json.loads(path.read_text())
    assert written["device"] == "cpu" and written["precision"] == "highest" and "JAX" in written["sides"]["ours"]
    own = written["cases"]["lenet none"]
    assert "C++ compiler" in own["compile"]["absent"] and own["ours"]["seconds"] > 0 and own["ours"]["peak"] > 0


def test_what_is_not_ready_within_the_budget_is_left_out():
    (row,) = rows_of("attributions", "--cases", "gradient", "--images", "2", "--budget", "0.1")
    assert "not ready within 0 s" in row


class FakeChild:
    """A side that answers at once; "slow" never does."""

    def __init__(self, module, case, side, **options):
        self.side, self.messages, self.process = side, iter([{"ready": {}}]), self

    def ask(self):
        assert self.side != "slow"
        self.messages = iter([{"seconds": 2.0 if self.side == "eager" else 1.0, "peak": 1}])

    def answer(self, deadline):
        return None if self.side == "slow" else next(self.messages)

    def kill(self):
        assert self.side == "slow"

    def stop(self, *, now):
        pass


def test_a_late_side_takes_no_other_with_it(monkeypatch):
    monkeypatch.setattr(pairs, "Child", FakeChild)
    sides = ("ours", "eager", "slow")
    found = alternate.pair("module", "case", sides, steps=2, warmup=0, devices=1, python="python3", seconds=60)
    assert found["slow"] == {"absent": "not ready within 36 s"}
    assert found["ours"]["seconds"] == 1 and found["eager"]["ratio"] == 2


def test_a_late_sides_own_processes_end_with_it(tmp_path):
    side, worker = tmp_path / "side", tmp_path / "worker"
    side.write_text(f"#!/bin/sh\nsleep 300 & echo $! > {worker}.new; mv {worker}.new {worker}; wait\n")
    side.chmod(0o755)
    found = alternate.pair("module", "case", ("ours",), steps=1, warmup=0, devices=1, python=str(side), seconds=2)
    assert found["ours"] == {"absent": "not ready within 1 s"}
    state = Path(f"/proc/{worker.read_text().strip()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("what the side had started still runs")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_device_is_named_in_the_row():
    (row,) = rows_of("attributions", "--cases", "gradient", "--images", "2", "--device", "cuda", "--against", "captum")
    assert "sees no GPU" in row
