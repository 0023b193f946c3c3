"""Adaptive search: what it proposes, what it learns, and that an interruption loses none of it."""

import dataclasses
import json
import shutil
import sys

import optuna
import pytest

from launch.sweeps import folder, search, space
from launch.sweeps.members import SweepError, define, fail, load, save, start, status
from tests.launch import sweep_toy

KNOWN = space.fields(sweep_toy.get_config())


def parabola(overrides) -> float:
    return (overrides.get("x", 1.0) - 3) ** 2 + (1 if overrides.get("flag") else 0)


def begun(workdir, grid: str, trials: int, *, listed=(), objective="loss", direction="minimize") -> search.Search:
    """A search in a folder, new or taken up."""
    space_ = search.dimensions(space.parse(grid, KNOWN) if grid else None, listed)
    asked = {"objective": objective, "direction": direction, "space": search.described(space_)}
    sweep = define(
        workdir, config_file="tests/launch/sweep_toy.py", base=sweep_toy.get_config(), overrides=[], search=asked
    )
    workdir.mkdir(exist_ok=True)
    return search.Search(folder.claim(sweep), space_, trials, objective, direction, seed=0)


def train(found: search.Search, member, value=parabola) -> None:
    """What an executor would do."""
    start(member)
    (member.path / "result.json").write_text(json.dumps({"loss": value(member.overrides)}))
    found.ended(member)


def test_it_finds_the_minimum(tmp_path):
    found = begun(tmp_path, "x=~uniform(0,10); flag=true,false", trials=30)
    trained = []
    for member in found:
        trained.append(member)
        train(found, member)
    best, value = found.best()
    assert len(trained) == 30 and value == min(parabola(m.overrides) for m in trained) == parabola(best.overrides)
    assert value < 0.05 and best.overrides["flag"] is False  # 30 uniform draws get there in a fifth of all cases
    assert all(0 <= m.overrides["x"] <= 10 and len(str(m.overrides["x"])) <= 7 for m in trained)
    assert load(tmp_path).members == found.sweep.members == tuple(trained)
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(journal))
    assert [t.value for t in study.trials] == [parabola(m.overrides) for m in trained]


def test_a_maximum_over_logarithms_and_whole_numbers(tmp_path):
    found = begun(tmp_path, "x=~log(1e-3,1e3,5) & seed=~uniform(1,4)", trials=12, direction="maximize")
    for member in found:
        train(found, member, lambda overrides: overrides["x"])
    values = [m.overrides["x"] for m in found.sweep.members]
    assert found.best()[1] == max(values) and min(values) < 1 < max(values)
    assert {type(m.overrides["seed"]) for m in found.sweep.members} == {int}
    assert {m.overrides["seed"] for m in found.sweep.members} <= {1, 2, 3, 4}


def test_an_interrupted_search_goes_on(tmp_path):
    grid = "x=~uniform(0,10)"
    first = begun(tmp_path, grid, trials=6)
    members = iter(first)
    done, failed, stopped, unnoticed = (next(members) for _ in range(4))
    train(first, done)
    fail(failed, "exit status 1")
    first.ended(failed)
    start(stopped)
    first.ended(stopped)
    start(unnoticed)  # ended, but the sweep was killed before it could tell the study
    (unnoticed.path / "result.json").write_text('{"loss": 0.125}')

    second = begun(tmp_path, grid, trials=6)
    asked = []
    for member in second:
        asked.append(member)
        train(second, member)
    assert asked[0] == stopped and failed in asked and done not in asked and unnoticed not in asked
    names = [m.name for m in second.sweep.members]
    assert len(names) == len(set(names)) == 6 and len(asked) == 4  # the stopped, the failed, and two new ones
    third = begun(tmp_path, grid, trials=6)
    assert list(third) == [] and third.best()[1] == min(0.125, *(parabola(m.overrides) for m in (done, *asked)))
    assert len(list(begun(tmp_path, grid, trials=8))) == 2


def test_what_is_proposed_twice_is_trained_once(tmp_path):
    found = begun(tmp_path, "seed=1,2", trials=12)
    both = list(found)  # while they wait, a proposal of either must not start it again
    assert {m.overrides["seed"] for m in both} == {1, 2} and len(both) == 2 and found.sweep.members == tuple(both)
    for member in both:
        train(found, member)
    assert list(begun(tmp_path, "seed=1,2", trials=14)) == []  # nor when they are done
    states = [t.state for t in found.study.trials]
    assert len(states) == 14 and set(states) == {optuna.trial.TrialState.COMPLETE}


def test_choices_among_listed_overrides(tmp_path):
    listed = [{"x": 3.0, "flag": False}, {"x": 9.0, "flag": True}]
    found = begun(tmp_path, "seed=1,2 & nested.rate=0.1,0.2", trials=8, listed=listed)
    for member in found:
        train(found, member)
        o = member.overrides
        assert {"x": o["x"], "flag": o["flag"]} in listed
        assert (o["seed"], o["nested.rate"]) in [(1, 0.1), (2, 0.2)]
    assert found.best()[1] == 0.0


def test_a_result_that_is_not_finite_counts_as_failed(tmp_path):
    found = begun(tmp_path, "x=~uniform(0,10)", trials=2)
    for member in found:
        train(found, member, lambda overrides: None)
    assert found.best() is None
    assert {t.state for t in found.study.trials} == {optuna.trial.TrialState.FAIL}


def test_killed_anywhere_between_a_proposal_and_its_training(tmp_path):
    """Whatever is in the journal by then, the search ends with as many members as were asked for, all done."""
    grid = "x=~uniform(0,10); flag=true,false"
    first = begun(tmp_path / "whole", grid, trials=2)
    train(first, next(iter(first)))
    before = (tmp_path / "whole" / "optuna.journal").read_bytes()
    next(iter(first))
    lines = (tmp_path / "whole" / "optuna.journal").read_bytes()[len(before) :].splitlines(keepends=True)
    complete = [all(b"user_attr" in line for line in lines[written:]) for written in range(len(lines) + 1)]
    cases = [(written, False) for written in range(len(lines) + 1)]
    for written, defined in [*cases, *((written, True) for written, all_ in enumerate(complete) if all_)]:
        workdir = tmp_path / f"{written} {defined}"
        shutil.copytree(tmp_path / "whole", workdir)
        if not defined:  # in sweep.json, which comes after the parameters
            sweep = load(workdir)
            save(dataclasses.replace(sweep, members=sweep.members[:-1]))
        (workdir / "optuna.journal").write_bytes(before + b"".join(lines[:written]))
        again = begun(workdir, grid, trials=2)
        for member in again:
            train(again, member)
        members = load(workdir).members
        assert len(members) == 2 and {status(member).state for member in members} == {"done"}
        assert list(begun(workdir, grid, trials=2)) == []


def test_the_lock_of_a_killed_search_is_no_reason_to_wait(tmp_path, monkeypatch):
    journal = tmp_path / "optuna.journal"
    begun(tmp_path, "x=~uniform(0,10)", trials=2)
    (tmp_path / "optuna.journal.lock").symlink_to(journal)
    (tmp_path / "optuna.journal.lock1234.rename").symlink_to(journal)
    monkeypatch.setattr("optuna.storages.journal._file.time.sleep", lambda seconds: pytest.fail("it waits"))
    assert len(list(begun(tmp_path, "x=~uniform(0,10)", trials=2))) == 2
    assert not list(tmp_path.glob("optuna.journal.lock*"))


def test_a_journal_that_was_cut_off_goes_on(tmp_path, caplog):
    grid = "x=~uniform(0,10)"
    first = begun(tmp_path, grid, trials=2)
    for member in first:
        train(first, member)
    journal = tmp_path / "optuna.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    number = whole.count(b"\n")
    second = begun(tmp_path, grid, trials=3)
    assert f"optuna.journal, line {number} is cut off; dropping it" in caplog.text
    asked = list(second)
    for member in asked:
        train(second, member)
    assert len(asked) == 1 and len(second.sweep.members) == 3
    assert second.best()[1] == min(parabola(member.overrides) for member in second.sweep.members)
    assert list(begun(tmp_path, grid, trials=3)) == []
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(SweepError, match=r"optuna\.journal, line 2 is damaged; delete it: the search starts over"):
        begun(tmp_path, grid, trials=3)
    journal.unlink()
    assert list(begun(tmp_path, grid, trials=0)) == []


def test_errors(tmp_path, monkeypatch):
    found = begun(tmp_path / "a", "x=~uniform(0,10)", trials=2, objective="accuracy")
    with pytest.raises(SweepError, match="has no 'accuracy'; it has loss"):
        train(found, next(iter(found)))
    with pytest.raises(SweepError, match="x,seed: in a search, random values cannot be zipped"):
        begun(tmp_path / "b", "x=~uniform(0,10) & seed=1,2", trials=2)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match=r"pip install -e '.\[search\]'"):
        begun(tmp_path / "c", "x=~uniform(0,10)", trials=2)
