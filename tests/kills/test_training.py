"""Each method, killed inside the kinds of write of a training and at drawn moments: the same bits in the end."""

import signal

import numpy as np
import pytest

from tests.commands import finish
from tests.kills import killing
from tests.kills.killing import Kill, assert_same, command, killed, only_with_system
from tests.robustgrad_jax.stages import test_resume
from tests.rtd_jax import tiny
from tests.tldr_jax import small

pytestmark = only_with_system

TRAIN = "launch.train"
EVERY_TWO = {"log_every": "1", "eval_every": "6 steps", "checkpoint_every": "2 steps"}


def _options(fields) -> list[str]:
    return [f"--config.{key}={value}" for key, value in fields.items()]


ROBUSTGRAD = [f"--config={test_resume.CONFIG}", *test_resume.OPTIONS]
FEW_HEADS = {"ablations": "('no_gap',)", "pretrain.duration": "2 steps", "erm.duration": "12 steps"}
TLDR = [
    "--config=configs/tldr/scenes.py",
    *_options(small.SMALL | FEW_HEADS | {f"erm.{key}": value for key, value in EVERY_TWO.items()}),
]
PHI = {f"phi.loop.{key}": value for key, value in EVERY_TWO.items()}
RTD = [
    "--config=configs/rtd/scenes.py",
    *_options(tiny.SMALL | PHI | {"phi.duration": "12 steps", "rtd.duration": "2 steps"}),
]
METHODS = {
    "robustgrad": (
        ROBUSTGRAD,
        [killing.CONFIG, killing.LINE, killing.DATA, killing.DELETION, killing.ARRAYS, killing.RESULT],
    ),
    "tldr": (TLDR, [killing.PLAN, killing.STATE, killing.VALUE, killing.STAGE, Kill(r"/value$", number=4, way="now")]),
    "rtd": (RTD, [killing.VERSIONS, killing.COMMIT, killing.STAGE, Kill(r"/retrieved.*\.png$")]),
}


@pytest.fixture(scope="module", params=METHODS)
def method(request, tmp_path_factory):
    """The options of a method, its kills, and a run from start to end."""
    options, kills = METHODS[request.param]
    whole = tmp_path_factory.mktemp("whole") / "run"
    finish(command(TRAIN, *options, f"--workdir={whole}"))
    return options, kills, whole


def test_killed_inside_writes(method, tmp_path):
    options, kills, whole = method
    arguments = (*options, f"--workdir={tmp_path / 'run'}")
    for kill in kills:
        killed(TRAIN, *arguments, kills=[kill])
    finish(command(TRAIN, *arguments))
    assert_same(tmp_path / "run", whole)


def test_killed_at_drawn_moments(method, tmp_path):
    """The first kill always hits; the second may find the run at its end."""
    options, _, whole = method
    arguments, rng = (*options, f"--workdir={tmp_path / 'run'}"), np.random.default_rng(len(method[0]))
    codes = []
    for _ in range(2):
        number, delay = int(rng.integers(1, 80)), float(rng.uniform(0, 0.05))
        process = command(TRAIN, *arguments, kills=[Kill(str(tmp_path), "", number, "later", delay)])
        process.communicate(timeout=300)
        codes.append(process.returncode)
    assert codes[0] == -signal.SIGKILL and codes[1] in (0, -signal.SIGKILL)
    finish(command(TRAIN, *arguments))
    assert_same(tmp_path / "run", whole)


def test_killed_inside_the_last_deletion(tmp_path):
    """What is left of an old checkpoint goes, although no save comes any more that would delete it again."""
    options = ("--config=tests/launch/toy.py",)
    finish(command(TRAIN, *options, f"--workdir={tmp_path / 'whole'}"))
    last = Kill(rf"{killing.STEP}$", "shutil.rmtree", 3, "first folder")
    killed(TRAIN, *options, f"--workdir={tmp_path / 'run'}", kills=[last])
    finish(command(TRAIN, *options, f"--workdir={tmp_path / 'run'}"))
    assert_same(tmp_path / "run", tmp_path / "whole")
