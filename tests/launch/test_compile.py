"""The command's refusals; what it compiles is in tests/launch/aot and tests/aot."""

import pytest

from tests.commands import finish, start

SCENES = "--config=configs/robustgrad/scenes.py"


@pytest.mark.parametrize(
    "flags, line",
    [
        ((SCENES,), "topology"),
        ((SCENES, "--topology=v7:2x2"), "unknown topology 'v7:2x2'; TPU slices are v4, v5e, v5p, v6e with a shape"),
        ((SCENES, "--topology=h100x8", "--workdir=runs/x"), "--workdir: launch.compile runs nothing"),
        ((SCENES, "--topology=h100x8", "--config.batch=3"), "unknown config key 'batch'"),
    ],
)
def test_mistakes_are_one_line(flags, line):
    output = finish(start("-m", "launch.compile", *flags), code=2)
    assert line in output and "Traceback" not in output


PLANS = (
    "import sys; from launch import compile; compile.parse(sys.argv); print([len(s.roots) for s in compile.plans()])"
)


def test_the_config_alone_or_the_members_of_its_sweep():
    flags = ("--config=configs/demo.py", "--topology=h100x8")
    alone = finish(start("-c", PLANS, *flags))
    assert "configs/demo.py has a sweep(): this compiles the config alone, --sweep its members" in alone
    assert alone.splitlines()[-1] == "[1]"
    members = finish(start("-c", PLANS, *flags, "--sweep"))
    assert "has a sweep()" not in members and "each is compiled as a run by itself" in members
    assert members.splitlines()[-1] == "[1, 1, 1, 1]"  # two methods of robustgrad, rtd, tldr
