"""The benchmark of sweeps runs and prints what it says; no figure is judged."""

import re

import pytest

from benchmarks import sweep
from launch.sweeps import space
from tests.commands import finish, start


def test_a_row():
    command = ("-m", "benchmarks.sweep", "--cases", "lenet", "--executors", "vmap", "--members", "2", "--steps", "2")
    lines = finish(start(*command)).splitlines()
    row = next(line for line in lines if line.startswith("| lenet | vmap | 2 |"))
    assert all(float(value) > 0 for value in re.findall(r"\d+\.\d+", row)) and len(re.findall(r"\d+\.\d+", row)) >= 2


@pytest.mark.parametrize("case", sweep.CASES)
def test_its_grids_are_of_so_many_different_members(case):
    _, count, grid = sweep.CASES[case]
    keys = [term.split("=")[0] for term in grid.split("&")]
    members = space.expand(space.parse(grid.format(k=count), {key: space.ConfigField(float, 0.0) for key in keys}), 0)
    assert len(members) == count == len({tuple(member.values()) for member in members})


def test_a_command_that_fails_is_shown(tmp_path):
    with pytest.raises(RuntimeError, match="boom"):
        sweep.timed(["sh", "-c", "echo boom; exit 3"], tmp_path / "log")
