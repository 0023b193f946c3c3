"""The benchmark runs, both sides, and prints what it says it prints; no figure is judged."""

import re

import pytest

from tests.commands import finish, start

pytest.importorskip("torch")


def test_one_row():
    command = ("-m", "benchmarks.robustgrad_step", "--cases", "lenet", "--regularizers", "none", "--steps", "1")
    lines = finish(start(*command, "--warmup", "1")).splitlines()
    row = next(line for line in lines if line.startswith("| lenet, 128 | none |"))
    seconds = [float(v) for v in re.findall(r"\d+\.\d+", row)]
    assert len(seconds) == 5 and all(v > 0 for v in seconds)
