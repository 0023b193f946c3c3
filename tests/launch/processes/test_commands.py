"""How commands end: a line and a status for refusals, a traceback for their own faults, and stops by signals."""

import asyncio
import errno
import signal

import pytest
from absl.testing import flagsaver

from launch import report, train
from launch.llm import ReplyError
from launch.processes import commands
from launch.reading import InputError
from launch.stages import SettingError
from tests.commands import finish, start
from tests.launch.test_train import TOY, saved_steps, wait_for_step


def raised(error):
    raise error


def test_zero(capsys):
    with commands.ending():
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error, status, line",
    [
        (SettingError("a.b", ": must be positive"), 2, "SettingError: a.b: must be positive"),
        (InputError("is empty", file="x.csv"), 2, "InputError: x.csv: is empty"),
        (FileNotFoundError("no data; install it"), 2, "FileNotFoundError: no data; install it"),
        (ImportError("torch is needed; install it"), 2, "ImportError: torch is needed; install it"),
        (ReplyError("m did not answer as asked"), 1, "ReplyError: m did not answer as asked"),
        (FloatingPointError("not finite at step 3"), 1, "FloatingPointError: not finite at step 3"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "a/b: No space left on device; make room"),
        (ValueError("INTERNAL: No space left on device [writing]"), 1, "No space left on device; make room"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_one_line(capsys, error, status, line):
    with pytest.raises(SystemExit, match=line) as stop, commands.ending():
        raised(error)
    assert stop.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1


def test_a_line_is_cut_in_the_middle(capsys):
    with pytest.raises(SystemExit), commands.ending():
        raised(InputError(f"no image {'9' * 100_000}.png", file="x.csv", remedy="set data.images"))
    said = capsys.readouterr().err
    assert said.startswith("InputError: x.csv: no image 999") and said.endswith("99.png; set data.images\n")
    assert len(said) < 4100 and said.count("\n") == 1


def test_a_full_disk_behind_another_error(capsys):
    with pytest.raises(SystemExit), commands.ending():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("handle is closed")
    assert capsys.readouterr().err == "No space left on device; make room, the same command goes on\n"


def test_what_follows_from_another_error_is_not_printed(capsys):
    """A write that ends after the first one has failed finds the loop of its callers closed."""
    loop = asyncio.new_event_loop()
    loop.close()

    class Late:
        def __init__(self, late):
            self.late = late

        def __del__(self):
            self.late()

    with commands.ending():
        Late(lambda: loop.call_soon_threadsafe(print))
    assert capsys.readouterr().err == ""
    with commands.ending():
        Late(lambda: {}["a"])
    assert "KeyError: 'a'" in capsys.readouterr().err


def test_writes_that_never_began_are_not_reported(recwarn):
    """A write of a checkpoint that failed leaves behind those that were to follow it."""

    async def write() -> None: ...

    with commands.ending():
        write()
    assert not recwarn.list


def test_a_full_disk_ends_a_training_in_one_line(tmp_path):
    """/dev/full takes nothing: the log of a training is a link to it."""
    output = finish(start("-c", FULL, f"--config={TOY}", f"--workdir={tmp_path}"), 1)
    lines = [line for line in output.replace("\r", "\n").splitlines() if "step/s" not in line]
    assert lines[-1].endswith("No space left on device; make room, the same command goes on"), output
    assert "Traceback" not in output and "is closed" not in output


# A training whose metrics.jsonl and TensorBoard go to a full disk.
FULL = """
import sys
from absl import app
from launch import journal, store, train

class Journal(journal.Journal):
    def log(self, step, values):
        (self.path / "metrics.jsonl").symlink_to("/dev/full")
        super().log(step, values)

store.Journal = Journal
app.run(train.main, flags_parser=train.parse)
"""


def test_a_file_that_cannot_be_opened_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop, commands.ending():
        open(tmp_path)  # noqa: SIM115
    assert stop.value.code == 1 and capsys.readouterr().err == f"{tmp_path}: Is a directory\n"


@pytest.mark.parametrize("fault", [lambda: {}["a"], lambda: int("a"), lambda: None + 1, lambda: [].pop()])
def test_a_fault_has_a_traceback(capsys, fault):
    with pytest.raises(SystemExit) as stop, commands.ending():
        fault()
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.startswith("Traceback") and "This is a bug" in said


# -- command lines ----------------------------------------------------------------------------


def parsed(*args, config=TOY):
    argv = ["launch.train", f"--config={config}", *args]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", argv)
        train.parse(argv)
        return train._WORKDIR.value, train._STORE.value


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert parsed("--workdir=~/x", "--store", "~/y") == ("/somewhere/x", "/somewhere/y")
    assert parsed("--workdir=x") == ("x", "")


@pytest.mark.parametrize(
    "args, line",
    [
        (["--workdir="], "'--workdir': is empty, got ''; give a path; is a shell variable unset?"),
        (["--workdir=x", "--store="], "'--store': is empty"),
        (["--workdir=~nobody0/x"], "'--workdir': names an unknown user"),
        (
            ["--workdir=x", "--config.nested.names=('a',)", "--config.nested.names=('b',)"],
            "nested.names': is given twice",
        ),
        (["--workdir=x", "--config.nested.raet", "1"], "unknown config key 'nested.raet'; did you mean 'nested.rate'"),
    ],
)
def test_refused_command_lines(args, line):
    with pytest.raises(SystemExit, match=line.replace("?", "[?]")) as stop:
        parsed(*args)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "body, line",
    [
        ("return {'a': 1}", "my config.py: get_config.. returned a dict, not a ConfigDict"),
        ("return ConfigDict({'a': 1})", "my config.py: the config has no text under 'experiment'"),
        ("return ConfigDict({'experiment': 'e', 'abc': 1})", "unknown config key 'abd'; did you mean 'abc'"),
    ],
)
def test_config_files_that_are_no_config(tmp_path, body, line):
    (tmp_path / "my config.py").write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    {body}\n")
    args = ["--config.abd=1"] if "abd" in line else []
    with pytest.raises(SystemExit, match=line) as stop:
        parsed("--workdir=x", *args, config=tmp_path / "my config.py")
    assert stop.value.code == 2


def test_a_report_expands_its_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=f"{tmp_path}/runs is not a folder") as stop:
        report.main(["~/runs"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path), "--out="])
    assert stop.value.code == 2 and "--out: is empty" in capsys.readouterr().err


# -- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_during_the_imports(tmp_path, number, status):
    process = start("-X", "importtime", "-m", "launch.train", f"--config={TOY}", f"--workdir={tmp_path / 'run'}")
    assert process.stdout is not None
    for line in process.stdout:
        if "difflib" in line:  # the first import after the handler
            break
    process.send_signal(number)
    output = finish(process, status)
    assert "stopped before it began; resume with the same command" in output and not (tmp_path / "run").exists()


def test_ctrl_c_saves(tmp_path):
    process = start(
        "-m", "launch.train", f"--config={TOY}", f"--workdir={tmp_path}", "--config.steps=60", "--config.pause=0.05"
    )
    wait_for_step(process, tmp_path, 4)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert "resume with the same command" in output and "Traceback" not in output and saved_steps(tmp_path)
