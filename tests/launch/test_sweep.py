"""The command `launch.sweep`: real members, taken up again, and what it refuses.

All tests but one call its `main` in this process; the members are processes.
"""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time

import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from launch import sweep, train
from launch.reports import page, runs
from launch.reports.settings import group
from launch.sweeps import folder
from launch.sweeps.members import command, config_of, define, load, save
from tests.commands import finish, stage_folder, start
from tests.launch import sweep_toy
from tests.launch.reports.run_tree import write_run

TOY = "tests/launch/sweep_toy.py"


def call(*args: str, config: str = TOY) -> tuple[int | str | None, str]:
    """`python -m launch.sweep ARGS…` on CPU cores: its exit status or last line, and what it printed."""
    argv, output = ["launch.sweep", f"--config={config}", *args], io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setattr(sys, "argv", argv)
        try:
            sweep.main(train.parse(argv)[:1])
            code = None
        except SystemExit as stop:
            code = stop.args[0] if stop.args else None
            assert isinstance(code, int) or stop.code in (1, 2, 75), code
    return code, output.getvalue()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two members, then of two more that fail: the folder, what both printed, the logs in between."""
    workdir = tmp_path_factory.mktemp("sweep") / "folder"
    args = (f"--workdir={workdir}", "--config.nested.radii=(1.0,)")
    first = call("--grid=ending=''", *args)
    logs = {m.name: (m.path / "log.txt").read_text() for m in load(workdir).members}
    return workdir, first, logs, call("--grid=ending='',raise", *args)


def test_dry_run_lists_the_members_and_starts_nothing(tmp_path):
    workdir = tmp_path / "folder"
    process = start("-m", "launch.sweep", f"--config={TOY}", "--grid=seed=0:2", f"--workdir={workdir}", "--dry_run")
    assert finish(process).splitlines() == ["x=0.5,seed=0", "x=0.5,seed=1", "x=2.0,seed=0", "x=2.0,seed=1"]
    assert not workdir.exists()


def test_members_of_sweep_and_grid_are_trained(swept):
    workdir, (code, output), logs, _ = swept
    assert code == 0 and output.rstrip().endswith("2 done") and len(logs) == 2
    assert "2 members: 2 waiting" in output and "done     x=0.5,ending=  parabola 6.25" in output
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    for member in (m for m in load(workdir).members if m.name in logs):
        result = json.loads((member.path / "result.json").read_text())
        assert result["parabola"] == (member.overrides["x"] - 3) ** 2 and result["cores"] in (cores, cores + 1)
        kept = json.loads((member.path / "config.json").read_text())
        assert kept == json.loads(config_of(member).to_json()) and kept["nested"]["radii"] == [1.0]
        assert (stage_folder(member.path, "Parabola") / "metrics.jsonl").exists()
        assert stage_folder(member.path, "Parabola").resolve().parent == workdir / "store"


def test_more_members_finished_ones_left_alone_failures_shown(swept):
    workdir, _, logs, (code, output) = swept
    assert code == 1 and output.rstrip().endswith("2 done, 2 failed; the same command tries them again")
    assert "4 members: 2 waiting, 2 done" in output
    assert output.count("      ArithmeticError: x = 2.0 was not to be") == 1  # the log's end, in the summary
    assert "failed   x=2.0,ending=raise  exit status 1" in output
    assert logs == {name: (workdir / name / "log.txt").read_text() for name in logs}
    args = (f"--workdir={workdir}", "--config.nested.radii=(1.0,)")
    assert "holds another sweep" in call("--grid=seed=0:2", *args, "--dry_run")[0]
    code, output = call("--grid=ending='',raise", *args, "--dry_run")
    assert code is None and output.splitlines()[:2] == ["x=0.5,ending=  (done)", "x=0.5,ending=raise  (failed)"]


def test_members_are_drawn_side_by_side_once_all_are_done(tmp_path, caplog, monkeypatch):
    overrides = [{"x": x, "seed": seed} for x in (1.0, 2.0) for seed in (0, 1)]
    members = define(tmp_path, config_file=TOY, base=sweep_toy.get_config(), overrides=overrides)
    save(members)
    for member in members.members:
        write_run(member.path, json.loads(config_of(member).to_json()), {"parabola": 1.0})
    caplog.set_level("INFO")
    left = members.members[-1].path / "result.json"
    content = left.read_text()
    left.unlink()
    sweep.compare(members)
    assert "members are not drawn side by side; not done: x=2.0,seed=1" in caplog.text
    assert not (tmp_path / "figures").exists()

    left.write_text(content)
    sweep.compare(members)
    file = tmp_path / "figures" / "tests.launch.sweep_toy" / "members.png"
    assert f"members side by side: {file}" in caplog.text
    caption = "x=1: x=1.0,seed=0; x=1: x=1.0,seed=1; x=2: x=2.0,seed=0; x=2: x=2.0,seed=1"
    with Image.open(file) as image:
        assert (image.size, image.info["Description"]) == ((4, 1), caption)
    (study,) = [group(study) for study in runs.read(tmp_path)]
    text = page.render("sweep", [study], made=0.0, megabytes=1)
    assert "<h3>Side by side</h3>" in text and f"<br>{caption}</figcaption>" in text
    text = page.render("sweep", [study], made=0.0, megabytes=0)
    assert "Not in this page: tests.launch.sweep_toy/members.png." in text

    def fails(folder, members):
        raise FileNotFoundError("the store is gone")

    monkeypatch.setattr(sweep_toy, "compare", fails)
    sweep.compare(members)
    assert "members cannot be drawn side by side: the store is gone" in caplog.text


def test_another_sweep_on_the_folder(swept):
    workdir = swept[0]
    code, _ = call("--grid=seed=0:2", f"--workdir={workdir}", "--config.nested.radii=(1.0,)")
    assert "holds another sweep" in code and "x=0.5,ending=raise: a member -> (absent)" in code
    code, _ = call("--grid=ending='',raise", f"--workdir={workdir}")
    assert "base nested.radii: [1.0] -> [4.0, 8.0]" in code


def test_a_search_of_real_members(tmp_path):
    args = ("--noconfig_sweep", "--grid=x=~uniform(0,10)", "--search=optuna", "--minimize=parabola")
    code, output = call(*args, "--trials=2", f"--workdir={tmp_path}")
    values = [json.loads((m.path / "result.json").read_text())["parabola"] for m in load(tmp_path).members]
    assert code == 0 and len(values) == 2 and output.rstrip().endswith("2 done")
    assert f"parabola {min(values):.6g}\n" in output.split("best: ")[1]
    code, output = call(*args, "--trials=2", f"--workdir={tmp_path}")
    assert code == 0 and "running" not in output
    code, output = call(*args, "--trials=2", "--dry_run", f"--workdir={tmp_path}")
    assert output == "x: uniform from 0.0 to 10.0\n"


def test_sigterm_then_the_same_command(tmp_path):
    args = ("--noconfig_sweep", "--grid=seed=0", f"--workdir={tmp_path}", "--config.pause=20")

    def send():
        while not (stage_folder(tmp_path / "seed=0", "Parabola") / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    code, output = call(*args)
    thread.join()
    assert "asked to stop by SIGTERM" in code and "the same command:\n" in code and "'--grid=seed=0'" not in output
    assert "--config.pause=20" in code and "stopped  seed=0" in output
    log = (tmp_path / "seed=0" / "log.txt").read_text()
    assert "resume with the same command" in log and not (tmp_path / "seed=0" / "error.txt").exists()
    assert not (tmp_path / "seed=0" / "result.json").exists()


def test_two_sweeps_at_once(tmp_path):
    with folder.locked(tmp_path):
        code, _ = call("--grid=seed=0:2", f"--workdir={tmp_path}")
    assert "another sweep is running" in code and not (tmp_path / "sweep.json").exists()


def test_members_that_a_scheduler_still_has(tmp_path, monkeypatch):
    (tmp_path / ".slurm").mkdir()
    (tmp_path / ".slurm" / "jobs.json").write_text(json.dumps({"x=0.5,seed=0": "7_0", "x=0.5,seed=1": "7_1"}))
    monkeypatch.setattr("launch.sweeps.slurm.queue", lambda: {"7_1": "RUNNING", "8": "RUNNING"})
    code, _ = call("--grid=seed=0:2", f"--workdir={tmp_path}")
    assert "`scancel 7_1`, or --executor=slurm" in code and not list(tmp_path.glob("x=*"))


def test_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launch.files.os.fsync", full)
    code, _ = call("--grid=seed=0:2", f"--workdir={tmp_path}")
    assert code == "No space left on device; make room, the same command goes on"


def test_a_mistyped_objective(tmp_path, monkeypatch):
    """Refused at once where the experiment declares its results; else after a member, and then it can be corrected."""
    args = ("--noconfig_sweep", "--grid=x=~uniform(0,10)", "--search=optuna", "--trials=1", f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        known = {"parabola": "declared"}
        patch.setattr("tests.launch.sweep_toy.describe", known.get, raising=False)
        code, _ = call(*args, "--minimize=parabolas")
        assert "declares no result 'parabolas'" in code and not list(tmp_path.iterdir())
    code, _ = call(*args, "--minimize=parabolas")
    assert "has no 'parabolas'; it has " in code and "pass one of them to --minimize" in code
    (member,) = load(tmp_path).members
    log = (member.path / "log.txt").read_text()
    code, output = call(*args, "--minimize=parabola")
    assert code == 0 and f"best: {member.name}" in output and (member.path / "log.txt").read_text() == log
    code, _ = call(*args, "--minimize=cores")  # now it has learned something
    assert "holds another sweep" in code and "search objective" in code


@pytest.mark.parametrize(
    "args, message",
    [
        (["--grid=seed=0:2;x=2"], "x: swept twice, by sweep() of the config and by --grid"),
        (["--grid=seed=0:2;y=2"], "--grid, column 10: unknown config key 'y'"),
        (["--grid=seed=1.5"], "column 6: 1.5 is not an integer"),
        (["--grid=seed=1", "--config.y=3"], "unknown config key 'y'"),
        (["--noconfig_sweep"], "nothing is swept: give --grid"),
        (["--search=optuna", "--trials=3"], "one of --minimize=KEY, --maximize=KEY"),
        (["--search=optuna", "--minimize=a"], "needs --trials=NUMBER"),
        (["--search=optuna", "--trials=3", "--minimize=a", "--maximize=b"], "one of --minimize=KEY, --maximize=KEY"),
        (["--search=optuna", "--trials=3", "--minimize=a", "--executor=vmap"], "use local"),
        (["--trials=3"], "--trials: belongs to --search=optuna"),
        (["--executor=slurm", "--slurm=nodelist=a,b", "--grid=seed=1"], """--slurm='"nodelist=a,b"'"""),
        (["--slurm=nodes=2"], "--slurm belongs to --executor=slurm"),
        (["--num_processes=2"], "started by one process"),
        (["--grid=seed=0:999999999999"], "the range 0:999999999999 has more than 1,000,000 values"),
        (["--processes=10000"], "--processes=10000, but there are "),
    ],
)
def test_bad_input(tmp_path, args, message):
    code, _ = call(*args, f"--workdir={tmp_path / 'folder'}")
    assert message in str(code)
    assert not (tmp_path / "folder").exists() or args == ["--processes=10000"]


@pytest.mark.parametrize(
    "body, message",
    [
        ("return 3", "sweep() returned 3, not a list of flat overrides"),
        ("return []", "sweep() returned [], not a list"),
        ("return {'x': [1, 2]}", "sweep() returned ['x'], not a list"),
        ("return [{'y': 1}]", "sweep(), member 0: unknown config key 'y'"),
        ("return [{'x': 1}, {'x': 'a'}]", "sweep(), member 1: 'a' is not a finite number"),
        ("yield {'x': 1}; yield {'x': 1.0}", "same member more than once: x=1.0"),
    ],
)
def test_what_sweep_gives_is_checked(tmp_path, body, message):
    config = tmp_path / "config.py"
    config.write_text(f"from tests.launch.sweep_toy import get_config\n\n\ndef sweep():\n    {body}\n")
    code, _ = call(f"--workdir={tmp_path / 'folder'}", "--dry_run", config=str(config))
    assert message in code


@pytest.fixture
def two_configs(tmp_path):
    """A config file whose sweep names another one, in a folder below."""
    start = "from tests.launch import sweep_toy\n\n\ndef get_config{}:\n    config = sweep_toy.get_config()\n"
    (tmp_path / "below").mkdir()
    other = start.format("(ending)") + "    config.x = 9.0\n    config.ending = ending\n    config.own = 1\n"
    (tmp_path / "below" / "other.py").write_text(other + "    return config\n")
    first = "def sweep():\n    return [{'x': 2.0}, {'config': 'below/other.py:raise', 'own': 2}]\n"
    (tmp_path / "first.py").write_text(f"{start.format('()')}    return config\n\n\n{first}")
    return tmp_path / "first.py"


def test_members_of_several_configs(two_configs, tmp_path):
    args = (f"--workdir={tmp_path / 'folder'}", "--grid=seed=0,1", "--config.flag=true")
    names = [f"{part},seed={seed}" for part in ("x=2.0", "config=below.other_raise,own=2") for seed in (0, 1)]
    code, output = call(*args, "--dry_run", config=str(two_configs))
    listed = output.splitlines()
    assert code is None and listed[:2] == names[:2] and listed[2].startswith(names[2][:25])
    code, output = call(*args, config=str(two_configs))
    assert code == 1 and "2 done, 2 failed" in output
    members = load(tmp_path / "folder").members
    for member, seed in zip(members, (0, 1, 0, 1), strict=True):
        kept = json.loads((member.path / "config.json").read_text())
        assert kept == json.loads(config_of(member).to_json()) and (kept["seed"], kept["flag"]) == (seed, True)
    assert (kept["x"], kept["own"]) == (9.0, 2)
    assert json.loads((members[0].path / "result.json").read_text())["parabola"] == 1.0
    assert "x = 9.0 was not to be" in output and "below/other.py:raise" in (members[3].path / "log.txt").read_text()
    assert call(*args, "--dry_run", config=str(two_configs))[1].count("(done)") == 2
    other = two_configs.parent / "below" / "other.py"
    other.write_text(other.read_text().replace("9.0", "8.0"))
    for more in ((), ("--dry_run",)):
        refused, _ = call(*args, *more, config=str(two_configs))
        assert "own=2,seed=0" in refused and "x: 9.0 -> 8.0" in refused


@pytest.fixture
def nested(tmp_path):
    """A config file whose sweep names a file with a sweep of its own, which names a third one."""
    start = "from tests.launch.sweep_toy import get_config\n\n\ndef sweep():\n    return "
    (tmp_path / "below" / "deep").mkdir(parents=True)
    (tmp_path / "below" / "deep" / "plain.py").write_text("from tests.launch.sweep_toy import get_config\n")
    own = "[{'x': 1.0}, {'x': 2.0, 'flag': True}, {'config': 'deep/plain.py', 'x': 3.0}]\n"
    (tmp_path / "below" / "study.py").write_text(start + own)
    (tmp_path / "all.py").write_text(start + "[{'config': 'below/study.py', 'pause': 0.5}, {'x': 4.0}]\n")
    (tmp_path / "circle.py").write_text(start + "[{'config': 'below/../circle.py'}]\n")
    (tmp_path / "some.py").write_text(start + "[{'config': 'below/study.py', 'x': 2, 'seed': 5}]\n")
    (tmp_path / "none.py").write_text(start + "[{'config': 'below/study.py', 'x': 0.5}]\n")
    return tmp_path


def test_a_file_with_a_sweep_of_its_own_stands_for_its_members(nested, tmp_path):
    args = (f"--workdir={tmp_path / 'folder'}", "--dry_run", "--grid=seed=0,1")
    code, output = call(*args, config=str(nested / "all.py"))
    study = "config=below.study"
    names = [f"{study},x=1.0", f"{study},x=2.0,flag=true", "config=below.deep.plain,x=3.0"]
    names = [f"{name},pause=0.5" for name in names] + ["x=4.0"]
    assert code is None and output.splitlines() == [f"{name},seed={seed}" for name in names for seed in (0, 1)]
    code, output = call(*args[:2], config=str(nested / "some.py"))
    assert (code, output) == (None, f"{study},x=2.0,flag=true,seed=5\n")  # what both set selects
    grid = "--grid=config=below/study.py,below/deep/plain.py;seed=0,1"
    code, output = call("--noconfig_sweep", grid, *args[:2], config=str(nested / "all.py"))
    assert code is None and len(output.splitlines()) == 4  # --noconfig_sweep is for all files
    plain = str(nested / "below" / "deep" / "plain.py")
    code, output = call("--grid=config=../study.py,plain.py;seed=0,1", *args[:2], config=plain)
    assert code is None and len(output.splitlines()) == 2 * (3 + 1)
    assert [line.split(",")[0] for line in output.splitlines()[-2:]] == ["config=plain"] * 2


@pytest.mark.parametrize(
    "file, message",
    [
        ("circle.py", "circle.py: its sweep() leads back to itself"),
        ("none.py", "below/study.py: no member of its sweep() has x=0.5; --noconfig_sweep"),
    ],
)
def test_sweeps_of_sweeps_that_are_refused(nested, tmp_path, file, message):
    code, _ = call(f"--workdir={tmp_path / 'folder'}", "--dry_run", config=str(nested / file))
    assert message in code


@pytest.mark.parametrize(
    "args, message",
    [
        (["--grid=config=none.py"], "no such config file: "),
        (["--grid=config=below/other.py:;y=1"], "column 24: unknown config key 'y'"),
        (["--grid=config=below/empty.py"], "below/empty.py has no get_config()"),
        (["--grid=config=first.py;own=1"], "unknown config key 'own'"),
        (["--grid=config=first.py,below/other.py:;own=1"], "first.py: member 0: unknown config key 'own'"),
        (["--grid=config=below/other.py"], "below/other.py: get_config() raised TypeError: "),
        (["--grid=config=below/wrong.py"], "below/wrong.py: get_config() raised SyntaxError: "),
        (["--grid=config=below/other.py:;own=a"], "column 28: 'a' is not an integer"),
        (["--grid=config=below/other.py:;own=1", "--config.y=1"], "unknown config key 'y'"),
        (["--config_sweep", "--config.x=3", "--grid=x=1"], "x: swept twice"),
        (["--grid=config=first.py", "--search=optuna", "--trials=1", "--minimize=a"], "over the fields of one config"),
    ],
)
def test_what_several_configs_must_have(two_configs, tmp_path, args, message):
    (tmp_path / "below" / "empty.py").write_text("")
    (tmp_path / "below" / "wrong.py").write_text("def get_config(:")
    code, _ = call("--noconfig_sweep", *args, f"--workdir={tmp_path / 'folder'}", "--dry_run", config=str(two_configs))
    assert message in str(code)


def test_a_config_with_an_argument(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.launch import sweep_toy\n\n\ndef get_config(ending):\n    config = sweep_toy.get_config()\n"
        "    config.ending = ending\n    return config\n\n\n"
        "def sweep(ending):\n    return [{'seed': len(ending)}]\n"
    )
    code, output = call(f"--workdir={tmp_path / 'folder'}", "--dry_run", config=f"{config}:abc")
    assert (code, output) == (None, "seed=3\n")
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        argv = ["launch.sweep", f"--config={config}:abc", f"--workdir={tmp_path / 'folder'}"]
        patch.setattr(sys, "argv", argv)
        flags.FLAGS(argv)
        planned, _ = sweep.from_flags()
    assert f"--config={config}:abc" in command(planned, planned.members[0])
    assert config_of(planned.members[0]).ending == "abc"
