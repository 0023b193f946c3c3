"""Every benchmark runs, both sides, and prints what it says it prints; no figure is judged."""

import re

import pytest

from benchmarks import alternate
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
