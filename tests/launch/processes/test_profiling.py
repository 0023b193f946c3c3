"""`launch.train --profile=A:B`: a trace of exactly these steps, and what is said where there is none."""

import re

import pytest

from launch.processes.profiling import Profile, Tracing
from launch.reading import InputError
from launch.training.fit import Cadence
from tests.commands import finish, stage_folder, train
from tests.launch.training import test_fit as loop

TOY = "tests/launch/toy.py"


@pytest.mark.parametrize("text", ["", "5", "a:b", "7:5", "0:4", "-1:3", "1:2:3", "1.5:2", "1: 2", "١:٢"])
def test_what_is_no_range_is_refused(text, tmp_path):
    with pytest.raises(
        InputError, match=rf"^--profile={re.escape(text)} is no range of steps; give the first and the last"
    ):
        Profile.parse(text, tmp_path)


def profiled(path, text, **options):
    """A training of 14 steps with a profile; its traces."""
    profile = Profile.parse(text, path / "profile")
    store, stage = loop.Store(path), loop.Sums()
    store.profile = profile
    loop.fit.train(store, stage, stage.initial, loop.training(stage, store, **options))
    return profile.traces()


@pytest.mark.parametrize("most", [1, 4])
def test_the_steps_are_traced_and_left_out_of_the_rates(tmp_path, most):
    traces = profiled(tmp_path, "6:8", cadence=Cadence(log_every=2, steps_per_call=most))
    (trace,) = traces
    assert trace.is_relative_to(tmp_path / "profile" / loop.Sums().key) and trace.stat().st_size > 0
    lines = loop.rows(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12, 14]  # losses are logged as ever
    timed = [line["step"] for line in lines if "train/steps_per_second" in line]
    assert not {6, 8} & set(timed) and {10, 12, 14} <= set(timed)


def test_calls_of_several_steps_end_where_a_trace_begins_and_ends(tmp_path):
    tracing = Tracing(Profile(6, 8, tmp_path), "a", 0, 14)
    assert [step for step in range(1, 15) if tracing.ends(step)] == [5, 8]


def test_a_resumed_training_traces_what_is_left(tmp_path):
    assert [s for s in range(15) if Tracing(Profile(3, 8, tmp_path), "a", 5, 14).ends(s)] == [5, 8]
    assert [s for s in range(15) if Tracing(Profile(9, 99, tmp_path), "a", 5, 14).ends(s)] == [8, 14]


@pytest.mark.parametrize(
    "text, start, said",
    [("3:5", 5, "--profile=3:5: a goes on after step 5: nothing is traced"),
     ("15:20", 5, "--profile=15:20: a has only 14 steps: nothing is traced")],
)  # fmt: skip
def test_a_training_without_these_steps_says_so(text, start, said, tmp_path, caplog):
    tracing = Tracing(Profile.parse(text, tmp_path), "a", start, 14)
    assert said in caplog.text and not any(map(tracing.ends, range(20)))


def test_a_training_that_fails_within_a_trace_ends_it(tmp_path):
    with pytest.raises(loop.NonFiniteLoss):
        store, stage = loop.Store(tmp_path), loop.Sums(bad_at=4)
        store.profile = Profile(3, 9, tmp_path / "profile")
        loop.fit.train(store, stage, stage.initial, loop.training(stage, store, cadence=Cadence(log_every=1)))
    assert len(store.profile.traces()) == 1
    assert len(profiled(tmp_path / "next", "1:1")) == 1  # another can begin


def test_the_command(tmp_path):
    workdir = tmp_path / "run"
    assert "--profile=5 is no range of steps" in finish(train(TOY, workdir, "--profile=5"), None)
    assert not workdir.exists()
    finish(train(TOY, workdir, "--profile=2:4"))
    traces = Profile(2, 4, workdir / "profile").traces()
    assert len(traces) == 1 and stage_folder(workdir, "LeastSquares").name in str(min(traces))
    output = finish(train(TOY, workdir, "--profile=2:4"))
    assert "--profile=2:4: nothing was traced" in output and "another --workdir" in output and "distance" in output
    assert Profile(2, 4, workdir / "profile").traces() == traces
