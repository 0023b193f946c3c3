"""Disks of ten sizes that are too small: one line, status 1; with room, the same command gives the same bits."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from launch import report, train
from tests.commands import finish
from tests.kills.killing import assert_same, command, only_with_system
from tests.launch import toy

pytestmark = only_with_system
SIZES, PAGE, SMALLEST, LARGE = 10, 4096, 20 << 10, "256m"
FULL = "No space left on device"
GO_ON = f"{FULL}; make room, the same command goes on"
# The log, a training's progress, and what a sweep says of its members.
CHATTER = re.compile(r"[IW]\d{4} |.*(step/s|s/step)|\d+ members|running  |stopped  |done  |$")


def _mount(place: Path, size: str, how: str = "") -> bool:
    line = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "none", str(place)]
    return subprocess.run(line, capture_output=True).returncode == 0


@contextlib.contextmanager
def disk(place: Path, size: int | str) -> Iterator[Path]:
    place.mkdir()
    assert _mount(place, str(size))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mountable(place: Path) -> bool:
    if not shutil.which("mount") or not _mount(place, "1m"):
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


@pytest.fixture(scope="module", autouse=True)
def _allowed(tmp_path_factory):
    if not _mountable(tmp_path_factory.mktemp("mount")):
        pytest.skip("a disk in memory can be mounted by root only")


def too_small(needed: int) -> list[int]:
    """Ten sizes of a disk up to a little less than is needed, in bytes; how much that is varies by some pages."""
    return [int(size) // PAGE * PAGE for size in np.geomspace(SMALLEST, 0.9 * needed, SIZES)]


def used(place: Path) -> int:
    state = os.statvfs(place)
    return (state.f_blocks - state.f_bfree) * state.f_bsize


@dataclass(frozen=True)
class Case:
    """A command, and what it needs.

    Attributes:
      module, options: all but the folder.
      whole: what it makes.
      sizes: too small for that.
    """

    module: str
    options: tuple[str, ...]
    whole: Path
    sizes: list[int]


SWEEP = ("--config=tests/launch/sweeps/stack_toy.py", "--grid=seed=0,1", "--config.steps=12")
CASES = {
    "train": ("launch.train", ("--config=tests/launch/toy.py",)),
    "vmap": ("launch.sweep", (*SWEEP, "--executor=vmap")),
    "local": ("launch.sweep", SWEEP),
}
LOCAL = (1, 5, 9)  # two processes besides


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    module, options = CASES[request.param]
    place = tmp_path_factory.mktemp("case")
    with disk(place / "disk", LARGE) as large:
        finish(command(module, *options, f"--workdir={large / 'run'}"))
        whole = shutil.copytree(large / "run", place / "whole")
        return Case(module, options, whole, too_small(used(large)))


@pytest.mark.parametrize("index", range(SIZES))
def test_a_run(case, index, tmp_path):
    local = case.options == SWEEP
    if local and index not in LOCAL:
        pytest.skip("three sizes are enough of members in processes, which write as launch.train does")
    with disk(tmp_path / "disk", case.sizes[index]) as small:
        arguments = (*case.options, f"--workdir={small / 'run'}")
        output = finish(command(case.module, *arguments), 1)
        lines = [line for line in output.replace("\r", "\n").splitlines() if not CHATTER.match(line)]
        assert "Traceback" not in output and FULL in output
        # Where notes of the failure of members fit, the sweep ends with the state of all.
        assert (len(lines) == 1 and lines[0].endswith(GO_ON)) or (local and "try them again" in lines[-1]), output
        assert _mount(small, LARGE, "remount,")
        finish(command(case.module, *arguments))
        assert_same(small / "run", case.whole)


def test_a_report(tmp_path, capfd):
    train.execute(toy.get_config(), str(tmp_path / "run"))

    def write(place):
        report.main([str(tmp_path / "run"), f"--out={place / 'page.html'}", f"--csv={place / 'table.csv'}"])
        return {name: (place / name).read_text() for name in ("page.html", "table.csv")}

    with disk(tmp_path / "large", LARGE) as large:
        whole, needed = write(large), used(large)
    for index, size in enumerate(too_small(needed)):
        with disk(tmp_path / str(index), size) as small:
            capfd.readouterr()
            with pytest.raises(SystemExit) as end:
                write(small)
            said = capfd.readouterr().err
            assert end.value.code == 1 and said.count("\n") == 1 and f" cannot be written ({FULL}); choose" in said
            assert not list(small.glob(".*"))
            assert _mount(small, LARGE, "remount,")
            assert write(small)["table.csv"] == whole["table.csv"]
