"""`make demo`: what its commands would run. The experiments have tests of their own, as have sweep and report."""

import re

from tests.commands import ROOT, finish, start


def test_the_three_experiments_on_scenes():
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    sweep, report = [line.split(" -m ")[1].split() for line in recipe.splitlines()]
    assert sweep[0] == "launch.sweep" and sweep[-1] == "--workdir=$(RUNS)/demo"
    assert report == ["launch.report", "$(RUNS)/demo", "--tables"]
    listed = finish(start("-m", *sweep[:-1], "--workdir=runs/nothing", "--dry_run")).splitlines()
    robustgrad, rtd, tldr = "config=robustgrad.scenes_comparison", "config=rtd.scenes", "config=tldr.scenes"
    assert listed == [robustgrad, rtd, f"{tldr},seed=0,data.seed=0"]
