"""The sweep folder: names, what is kept, whose it is, and how far members are."""

import errno
import json
import os
import subprocess
import sys

import pytest

from launch.journal import Journal
from launch.run import Run
from launch.sweeps import folder, members
from launch.sweeps.board import Board, duration, log_end, summary
from launch.sweeps.members import (
    SweepError,
    command,
    config_of,
    define,
    extend,
    fail,
    load,
    member_name,
    save,
    start,
    status,
)
from tests.launch import sweep_toy

BASE = sweep_toy.get_config()
FILE = "tests/launch/sweep_toy.py"


def journals(member, *keys) -> list[Journal]:
    """The logs of the stages of a member's plan, in its own store."""
    plan = {"store": "store", "root": keys[-1], "stages": dict.fromkeys(keys, "Toy")}
    (member.path / "plan.json").write_text(json.dumps(plan))
    for key in keys:
        (member.path / "store" / key).mkdir(parents=True)
    return [Journal(member.path / "store" / key) for key in keys]


def made(workdir, overrides, **more) -> members.Sweep:
    return define(workdir, config_file=FILE, base=BASE, overrides=overrides, **more)


@pytest.mark.parametrize(
    "overrides, name",
    [
        ({"nested.rate": 0.1, "seed": 3}, "nested.rate=0.1,seed=3"),
        ({"x": 1e-05, "flag": True}, "x=1e-05,flag=true"),
        ({"nested.radii": (4.0, 8.0)}, "nested.radii=4.0+8.0"),
        ({"nested.radii": (4.0,)}, "nested.radii=4.0+"),
        ({}, "base"),
    ],
)
def test_names(overrides, name):
    assert member_name(overrides) == name


def test_names_are_safe_short_and_apart():
    awkward = [
        {"ending": e} for e in ("a b", "a/b", "../../b", "a\nb", "ä", "", "(a)", "*" * 300, "*" * 301, "x" * 300)
    ]
    names = [member_name(o) for o in awkward]
    assert len(set(names)) == len(names)
    assert all(len(n) <= 120 and n.isascii() and not set(n) & set("/ \n()*") for n in names)
    assert names[0].startswith("ending=a_b-") and names == [member_name(o) for o in awkward]


def test_twice_the_same_member(tmp_path):
    with pytest.raises(SweepError, match="same member more than once: seed=1"):
        made(tmp_path, [{"seed": 1}, {"seed": 2}, {"seed": 1}])


def test_config_of_is_what_a_run_of_the_command_keeps(tmp_path):
    sweep = made(tmp_path, [{"nested.radii": (1.0,), "x": 2.0, "free": 4, "flag": True}], fixed={"pause": 0.5})
    member = sweep.members[0]
    run = Run.open(member.path, config_of(member))
    run.close()
    kept = json.loads((member.path / "config.json").read_text())
    assert kept["nested"]["radii"] == [1.0] and kept["x"] == 2.0 and kept["free"] == 4 and kept["flag"] is True
    assert kept["nested"]["names"] == ["a", "b"] and config_of(member).nested.names == ("a", "b")
    line = command(sweep, member)
    assert line[:3] == [sys.executable, "-m", "launch.train"] and f"--workdir={member.path}" in line
    expected = {"--config.pause=0.5", "--config.nested.radii=(1.0,)", "--config.x=2.0", "--config.flag=true"}
    assert expected <= set(line)


def test_sweep_json_holds_the_sweep(tmp_path):
    sweep = made(tmp_path, [{"nested.names": ("a", "é")}, {}], fixed={"nested.radii": (1.0,)}, search={"method": "m"})
    save(sweep)
    assert load(tmp_path) == sweep
    more, member = extend(sweep, {"seed": 4})
    assert more.members == (*sweep.members, member) and member.path == tmp_path / "seed=4"
    assert config_of(member).seed == 4
    (tmp_path / "sweep.json").write_text('{"base": {}}')
    with pytest.raises(SweepError, match=r"sweep\.json is damaged"):
        load(tmp_path)
    with pytest.raises(SweepError, match="is not a sweep folder"):
        load(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["..", ".", "", "../other", "/etc", "a/b", 3, None, ["a"]])
def test_a_member_outside_of_the_folder_is_refused(tmp_path, name):
    save(made(tmp_path, [{"seed": 1}]))
    content = json.loads((tmp_path / "sweep.json").read_text())
    content["members"][0]["name"] = name
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(SweepError, match=r"sweep\.json is damaged .*'members'\[0\].*'name'"):
        load(tmp_path)


def test_damaged_files_of_a_member(tmp_path):
    (member,) = made(tmp_path, [{"seed": 1}]).members
    (tmp_path / "store" / "key").mkdir(parents=True)
    (tmp_path / "store" / "key" / "metrics.jsonl").write_text('{"step": 3, "loss": 1}\n{"step": 4, "lo\n')
    member.path.mkdir()
    (member.path / "plan.json").write_text('{"store": "../store", "stages": {"key": "X", "../../x": "Y"}}')
    (member.path / "result.json").write_text('{"loss": ')
    found = status(member)
    assert (found.state, found.step, found.values) == ("failed", 3, {"loss": 1})
    assert "result.json, line 1" in found.error and "is damaged" in found.error
    (member.path / "plan.json").write_text("[")
    assert status(member).step is None


def test_a_folder_takes_the_same_sweep_or_more_of_it(tmp_path):
    folder.claim(made(tmp_path, [{"seed": 0}, {"seed": 1}]))
    Run.open(tmp_path / "seed=1", config_of(load(tmp_path).members[1])).close()
    assert len(folder.claim(made(tmp_path, [{"seed": s} for s in range(3)])).members) == 3
    assert [m.name for m in load(tmp_path).members] == ["seed=0", "seed=1", "seed=2"]
    with pytest.raises(SweepError, match=r"another sweep(.|\n)*seed=2: a member -> \(absent\)"):
        folder.claim(made(tmp_path, [{"seed": 0}, {"seed": 1}]))
    start(load(tmp_path).members[2])
    fail(load(tmp_path).members[2], "exit status 2")  # its settings were refused: it has no config.json
    assert [m.name for m in folder.checked(made(tmp_path, [{"seed": 0}, {"seed": 1}])).members] == ["seed=0", "seed=1"]
    changed = BASE.copy_and_resolve_references()
    changed.nested.rate = 0.5
    with pytest.raises(SweepError, match=r"base nested\.rate: 0\.1 -> 0\.5"):
        folder.claim(define(tmp_path, config_file=FILE, base=changed, overrides=[{"seed": s} for s in range(3)]))
    with pytest.raises(SweepError, match="one is a --search"):
        folder.claim(made(tmp_path, [], search={"method": "m"}))


def test_a_search_keeps_its_members_and_its_question(tmp_path):
    asked = made(tmp_path, [], search={"objective": "a", "space": {"x": "1 to 2"}})
    save(extend(folder.claim(asked), {"seed": 1})[0])
    assert [m.name for m in folder.claim(asked).members] == ["seed=1"]
    with pytest.raises(SweepError, match=r"search space\.x: \"1 to 2\" -> \"1 to 3\""):
        folder.claim(made(tmp_path, [], search={"objective": "a", "space": {"x": "1 to 3"}}))


def test_folders_with_other_runs_are_refused(tmp_path):
    sweep = made(tmp_path / "a", [{"seed": 1}])
    Run.open(tmp_path / "a" / "seed=1", BASE).close()  # the folder's name says seed 1, its config seed 0
    with pytest.raises(SweepError, match=r"seed=1 holds a run of another sweep(.|\n)*seed: 0 -> 1"):
        folder.claim(sweep)
    Run.open(tmp_path / "b" / "mine", BASE).close()
    with pytest.raises(SweepError, match="do not belong to this sweep: mine"):
        folder.claim(made(tmp_path / "b", [{"seed": 1}]))
    Run.open(tmp_path / "c", BASE).close()
    with pytest.raises(SweepError, match="a single run"):
        folder.claim(made(tmp_path / "c", [{"seed": 1}]))


def test_a_folder_is_for_one_sweep_and_its_orphans(tmp_path):
    with folder.locked(tmp_path / "sweep") as lock:
        with pytest.raises(SweepError, match="another sweep is running"), folder.locked(tmp_path / "sweep"):
            pass
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    try:
        with pytest.raises(SweepError, match="a killed one has left"), folder.locked(tmp_path / "sweep"):
            pass
    finally:
        orphan.kill()
        orphan.wait()
    with folder.locked(tmp_path / "sweep") as lock:
        assert lock > 2
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepError, match="file is not writable"), folder.locked(tmp_path / "file"):
        pass


def test_status_by_the_files(tmp_path):
    sweep = made(tmp_path, [{"seed": 1}])
    member = sweep.members[0]
    assert status(member).state == "waiting"
    run = Run.open(member.path, config_of(member))
    try:
        assert status(member).state == "started" and status(member).step is None
        (journal,) = journals(member, "toy-1")
        journal.log(2, {"train/loss": 0.5, "train/other": float("nan")})
        journal.log(4, {"val/accuracy": 0.75})
        with open(journal.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 5, "val/acc')  # being written
        found = status(member)
        assert found.step == 4
        assert found.values == {"train/loss": 0.5, "train/other": None, "val/accuracy": 0.75}
        members.fail(member, "exit status 3")
        assert (status(member).state, status(member).error) == ("failed", "exit status 3")
        assert members.start(member) == member.path / "log.txt" and status(member).state == "started"
        run.finish({"accuracy": 0.75})
    finally:
        run.close()
    assert (status(member).state, status(member).result) == ("done", {"accuracy": 0.75})


def test_status_of_a_run_with_several_trainings_follows_the_newest(tmp_path):
    member = made(tmp_path, [{"seed": 1}]).members[0]
    Run.open(member.path, config_of(member)).close()
    first, second = journals(member, "toy-1", "toy-2")
    first.log(9, {"train/loss": 0.5})
    os.utime(first.path / "metrics.jsonl", (0, 0))
    second.log(7, {"train/loss": 0.25})
    assert (status(member).step, status(member).values) == (7, {"train/loss": 0.25})


def test_the_end_of_a_log_is_its_last_lines_without_progress(tmp_path):
    member = made(tmp_path, [{"seed": 1}]).members[0]
    assert members.last_lines(member.path / "log.txt") == [] and "no log" in log_end(member)
    bar = "".join(f"\r{i}%" for i in range(20_000))
    members.start(member).write_bytes(f"first\n{bar}\nErreur: \xe9\n\nlast\n".encode("latin-1"))
    assert members.last_lines(member.path / "log.txt") == ["19999%", "Erreur: \ufffd", "last"]
    assert members.last_lines(member.path / "log.txt", 1) == ["last"]


def test_a_full_disk_leaves_the_old_definition(tmp_path, monkeypatch):
    save(made(tmp_path, [{"seed": 1}]))
    before = (tmp_path / "sweep.json").read_text()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device", "sweep.json")

    monkeypatch.setattr("launch.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(made(tmp_path, [{"seed": 1}, {"seed": 2}]))
    assert (tmp_path / "sweep.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"]


def test_board_and_summary(tmp_path, capsys):
    sweep = made(tmp_path, [{"seed": s} for s in range(4)])
    first, second, third, _ = sweep.members
    with Board(sweep.members) as board:
        board.watch({first.name, second.name})
        for member in (first, second, third):
            Run.open(member.path, config_of(member)).close()
        (first.path / "result.json").write_text('{"accuracy": 0.5, "x_per_second": 3, "loss": null}')
        (second.path / "log.txt").write_text("$ command\nTraceback\nValueError: [no] such thing\n")
        members.fail(second, "exit status 1")
        board.watch({third.name})
        board.watch(set())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["4 members: 4 waiting", "running  seed=0", "running  seed=1"]
    assert lines[3] == "done     seed=0  0 s  loss nan  accuracy 0.5  [1/4]"
    assert lines[4] == "failed   seed=1  0 s  exit status 1: ValueError: [no] such thing  [1/4]"
    assert lines[5:7] == ["running  seed=2", "stopped  seed=2  0 s  [1/4]"] and len(lines) == 7
    assert summary(sweep.members) == {"done": 1, "failed": 1, "started": 1, "waiting": 1}
    output = capsys.readouterr().out
    assert "done     seed=0  loss nan  accuracy 0.5\n" in output and "waiting  seed=3\n" in output
    assert f"{second.path / 'log.txt'} ends:\n      $ command\n      Traceback\n      ValueError: [no]" in output


def test_the_live_table_shows_what_runs(tmp_path, monkeypatch):
    """On a terminal of few lines: the running members that fit, their step and metrics, and the counts."""
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "90")
    sweep = made(tmp_path, [{"seed": s} for s in range(5)])
    Run.open(sweep.members[0].path, config_of(sweep.members[0])).close()
    (journal,) = journals(sweep.members[0], "toy-1")
    journal.log(30, {"train/loss": 0.125})
    board = Board(sweep.members)
    board.since = dict.fromkeys(("seed=0", "seed=1", "seed=2"), 0.0)
    with board.console.capture() as captured:
        board.console.print(board._table(125.0))
    text = captured.get()
    row = next(line for line in text.splitlines() if "seed=0" in line)
    assert row.split() == ["seed=0", "30", "2:05", "train/loss", "0.125"]
    assert "and 1 more" in text and "3 running, 2 waiting" in text and "seed=2" not in text


@pytest.mark.parametrize("seconds, text", [(3.4, "3 s"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_durations(seconds, text):
    assert duration(seconds) == text
