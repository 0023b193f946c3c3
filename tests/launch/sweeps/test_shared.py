"""What members have in common is made once: in turn, by racing processes, as one program, and after a kill."""

import json
from collections import Counter

import pytest
from ml_collections import ConfigDict

from launch import train
from launch.sweeps import local
from launch.sweeps.members import config_of, load, status
from tests.launch.test_sweep import call as sweep_call

STUDY = "tests/launch/sweeps/study_toy.py"


@pytest.fixture
def trace(tmp_path):
    (tmp_path / "trace").mkdir()
    return tmp_path / "trace"


def call(trace, *args):
    return sweep_call(f"--config.trace={trace}", f"--workdir={trace.parent / 'sweep'}", *args, config=STUDY)


def made(trace) -> Counter:
    """How often each stage was made, by key."""
    return Counter(path.name.partition(".")[0] for path in trace.iterdir())


def kinds(keys) -> Counter:
    return Counter(key.partition("-")[0] for key in keys)


def assert_each_made_once(trace):
    """2 samples; 2 · 2 shifted ones, as one ablation changes only the score; 2 · 3 scores."""
    counts = made(trace)
    stages = {key: count for key, count in counts.items() if not key.startswith("together")}
    assert set(stages.values()) == {1} and kinds(stages) == {"sample": 2, "shifted": 4, "score": 6}
    store = trace.parent / "sweep" / "store"
    assert {path.parent.name for path in store.glob("*/stage.json")} == set(stages)


def assert_results_are_those_of_runs_alone(trace):
    for member in load(trace.parent / "sweep").members:
        config = ConfigDict(config_of(member))
        config.update({"trace": "", "racing": 0, "doomed": False})
        alone = train.execute(config, str(trace.parent / "alone" / member.name))
        assert json.loads((member.path / "result.json").read_text()) == alone


def test_processes_share_what_their_plans_share(trace, monkeypatch):
    """Two at a time: both need the first sample before it is made; one makes it, the other waits."""
    monkeypatch.setattr(local, "devices", lambda environment: ("gpu", ("0", "1")))  # two at once, even on one core
    code, output = call(trace, "--processes=2", "--config.racing=2")
    assert code == 0 and output.rstrip().endswith("6 done")
    assert_each_made_once(trace)
    assert_results_are_those_of_runs_alone(trace)
    logs = [(member.path / "log.txt").read_text() for member in load(trace.parent / "sweep").members]
    assert "sample-" in logs[0] and all("made in" in log for log in logs)
    before = made(trace)
    code, _ = call(trace, "--processes=2", "--config.racing=2")
    assert code == 0 and made(trace) == before


def test_members_of_one_program_are_grouped_by_their_plans(trace):
    code, output = call(trace, "--executor=vmap")
    assert code == 0 and output.rstrip().endswith("6 done")
    assert "3 stacks: Shifted.shift=0 needs another program; Score.squared cannot be stacked\n" in output
    assert "members of a stack may differ in Sample.seed, Shifted.shift\n" in output
    assert "  2 members  Shifted.shift=0.0,Score.squared=False\n" in output
    assert_each_made_once(trace)
    assert made(trace)["together-2"] == 2  # of the third stack, all but the scores were there
    assert_results_are_those_of_runs_alone(trace)


def test_a_killed_maker_leaves_the_stage_to_the_member_that_waits(trace, monkeypatch):
    monkeypatch.setattr(local, "devices", lambda environment: ("gpu", ("0", "1")))
    grid = ("--noconfig_sweep", "--grid=shift=1,2")
    args = ("--processes=2", "--config.racing=2", "--config.doomed=True", *grid)
    code, output = call(trace, *args)
    assert code == 1 and "1 done, 1 failed" in output
    (lost,) = (m for m in load(trace.parent / "sweep").members if status(m).state == "failed")
    assert status(lost).error.startswith("killed by SIGKILL")
    assert kinds(made(trace).elements()) == {"sample": 2, "shifted": 1, "score": 1}
    before = made(trace)
    code, output = call(trace, *args)
    assert code == 0 and output.rstrip().endswith("2 done")
    assert kinds(made(trace) - before) == {"shifted": 1, "score": 1}  # the sample was there
    assert_results_are_those_of_runs_alone(trace)


def test_a_member_that_shares_all_but_its_last_stage_makes_only_that(trace):
    first = call(trace, "--noconfig_sweep", "--grid=squared=false")
    before = made(trace)
    second = call(trace, "--noconfig_sweep", "--grid=squared=false,true")
    assert first[0] == second[0] == 0 and kinds(made(trace) - before) == {"score": 1}
    (member,) = (m for m in load(trace.parent / "sweep").members if m.overrides["squared"])
    log = (member.path / "log.txt").read_text()
    assert "shifted-" in log and ": reused" in log and log.count("made in") == 1


def test_a_member_by_hand_takes_the_store_of_its_sweep(trace):
    call(trace, "--noconfig_sweep", "--grid=squared=false")
    (member,) = load(trace.parent / "sweep").members
    before = made(trace)
    config = ConfigDict(config_of(member))
    config.squared = True
    result = train.execute(config, str(member.path))  # by launch.train, without --store
    assert kinds(made(trace) - before) == {"score": 1} and not (member.path / "store").exists()
    assert result == json.loads((member.path / "result.json").read_text())


def test_what_a_stacked_stage_needs_and_cannot_be_made_fails_its_member_alone(trace):
    code, output = call(trace, "--executor=vmap", "--noconfig_sweep", "--grid=seed=0,13,1")
    assert code == 1 and "2 done, 1 failed" in output and "ArithmeticError: an unlucky seed" in output
    assert made(trace)["together-2"] == 1 and status(load(trace.parent / "sweep").members[1]).state == "failed"


def test_refused_settings_are_a_members_own_failure(trace):
    code, output = call(trace, "--executor=vmap", "--noconfig_sweep", "--grid=seed=0,1,-1")
    assert code == 1 and "2 done, 1 failed" in output and "SettingError: seed=-1: at least 0" in output


def test_two_sweeps_share_a_store(trace):
    """One that follows another takes what it made; it stays with that store without being told again."""
    code, _ = call(trace, "--noconfig_sweep", "--grid=shift=1,2")
    before, store = made(trace), trace.parent / "sweep" / "store"
    assert code == 0
    other = f"--workdir={trace.parent / 'other'}"
    code, output = call(trace, "--noconfig_sweep", "--grid=shift=2,3", other, f"--store={store}")
    assert code == 0, output
    assert kinds((made(trace) - before).keys()) == {"shifted": 1, "score": 1}
    assert load(trace.parent / "other").store == store and not (trace.parent / "other" / "store").exists()
    code, output = call(trace, "--noconfig_sweep", "--grid=shift=2,3,4", other)
    assert code == 0 and not (trace.parent / "other" / "store").exists(), output
    third = trace.parent / "third"
    code, _ = call(trace, "--noconfig_sweep", "--grid=shift=2,3,4", other, f"--store={third}")
    assert f"--store: '{store}' -> '{third}'" in str(code)
