"""The command line: runs, resumes to the same numbers after SIGTERM and SIGKILL, and refuses what it should."""

import importlib
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from launch import train as launch_train
from launch.reports import formats, tables
from tests.commands import finish, stage_folder, train

TOY = "tests/launch/toy.py"


def training_of(workdir) -> Path:
    """The folder of the training in a run's store."""
    return stage_folder(workdir, "LeastSquares")


def saved_steps(workdir) -> list[int]:
    return [int(p.name) for p in (training_of(workdir) / "checkpoints").iterdir() if p.name.isdigit()]


def logged(folder) -> list[dict]:
    """The lines of a stage's metrics.jsonl, or of that of a toy run's training."""
    path = (folder if (folder / "metrics.jsonl").exists() else training_of(folder)) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for_step(process, workdir, step: int) -> None:
    """Until the run has logged `step`, while it is alive."""
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in logged(workdir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run never got there"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from start to end, undisturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, finish(train(TOY, workdir, "--config.steps=60"))


def same_numbers(workdir, whole):
    np.testing.assert_array_equal(np.load(workdir / "params.npy"), np.load(whole / "params.npy"))
    rates = ("steps_per_second", "examples_per_second", "flops_per_second", "compile_seconds")
    timings = ("time", *(f"train/{rate}" for rate in rates))
    values = lambda rows: [{k: v for k, v in row.items() if k not in timings} for row in rows]
    assert [r["step"] for r in logged(workdir)] == sorted(r["step"] for r in logged(workdir))
    by_step = {(r["step"], *r): r for r in values(logged(whole))}
    for row in values(logged(workdir)):  # a window that a stop cut in two has another mean, but no other step
        assert row["step"] in {key[0] for key in by_step} or "train/loss" in row
        if "val/distance" in row:
            assert row == by_step[row["step"], *row]


def test_run_directory(whole):
    workdir, output = whole
    config = json.loads((workdir / "config.json").read_text())
    assert config["steps"] == 60 and config["nested"] == {"names": ["a", "b"], "rate": 0.1}
    rows = logged(workdir)
    assert [r["step"] for r in rows if "train/loss" in r][-1] == 60
    assert [r["step"] for r in rows if "val/distance" in r] == list(range(4, 61, 4))
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert losses[-1] < losses[0]
    assert list((training_of(workdir) / "tensorboard").glob("events.*"))
    result = json.loads((workdir / "result.json").read_text())
    assert formats.markdown(tables.of_finished_run(result, "tests.launch.toy")) in output


def test_a_finished_run_gives_its_result_again(whole):
    workdir, _ = whole
    log = training_of(workdir) / "metrics.jsonl"
    before = log.read_text()
    output = finish(train(TOY, workdir, "--config.steps=60"))
    assert "distance" in output and log.read_text() == before


def test_sigterm_saves_and_the_same_command_goes_on(whole, tmp_path):
    reference, _ = whole
    workdir = tmp_path / "run"
    process = train(TOY, workdir, "--config.steps=60", "--config.pause=0.05")
    wait_for_step(process, workdir, 6)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 0)
    assert "resume with the same command" in output and not (workdir / "result.json").exists()
    saved = saved_steps(workdir)
    assert f"saved at step {max(saved)} of 60" in output
    output = finish(train(TOY, workdir, "--config.steps=60", "--config.pause=0.05"))
    assert f"continuing from step {max(saved)} of 60" in output
    same_numbers(workdir, reference)


def test_a_stopped_pod_of_kubernetes_is_not_finished(tmp_path, monkeypatch):
    """Status 0 would be the end of its index of the job."""
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    process = train(TOY, tmp_path, "--config.steps=60", "--config.pause=0.05")
    wait_for_step(process, tmp_path, 4)
    process.send_signal(signal.SIGTERM)
    assert "resume with the same command" in finish(process, 75)


def test_sigkill_at_random_moments_changes_no_bit(whole, tmp_path):
    reference, _ = whole
    workdir = tmp_path / "run"
    rng = np.random.default_rng(time.time_ns())
    command = (TOY, workdir, "--config.steps=60", "--config.pause=0.03")
    for target in sorted(rng.integers(4, 50, 2)):
        process = train(*command)
        wait_for_step(process, workdir, int(target))
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        finish(process, -signal.SIGKILL)
    finish(train(*command))
    same_numbers(workdir, reference)


def test_a_checkpoint_cut_off_is_passed_over(whole, tmp_path):
    """The newest checkpoint loses its data: training goes on from the one before, says so, and ends the same."""
    reference, _ = whole
    workdir = tmp_path / "run"
    command = (TOY, workdir, "--config.steps=60", "--config.pause=0.05")
    process = train(*command)
    wait_for_step(process, workdir, 12)
    process.send_signal(signal.SIGTERM)
    finish(process)
    newest = training_of(workdir) / "checkpoints" / str(max(saved_steps(workdir)))
    for path in newest.rglob("d"):
        shutil.rmtree(path)
    output = finish(train(*command))
    assert str(newest.name) in output and "continuing from step" in output
    assert f"continuing from step {newest.name} of" not in output
    same_numbers(workdir, reference)


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    output = finish(train(TOY, tmp_path / "run", "--config.steps=60", "--config.nan_at=17"), None)
    assert "not finite at step 17: loss is nan" in output
    saved = saved_steps(tmp_path / "run")
    assert max(saved) == 16 and not (tmp_path / "run" / "result.json").exists()


def test_nan_gradient_under_a_finite_loss_is_not_saved(tmp_path):
    """The update of step 16 is NaN although its loss is not: the checkpoint due then must not be written."""
    output = finish(train(TOY, tmp_path / "run", "--config.steps=60", "--config.nan_gradient_at=16"), None)
    assert "not finite at step 16: gradient_norm is nan" in output
    saved = saved_steps(tmp_path / "run")
    assert max(saved) == 15


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["--config.nested.raet=1"], ["nested.raet", "did you mean 'nested.rate'", "nan_at"]),
        (["--config.stepz=1"], ["stepz", "did you mean 'steps'"]),
        (["--config.steps=many"], ["steps", "many"]),
        (["--config.experiment=tests.launch.nothing"], ["tests.launch.nothing", "no such module"]),
        (["--config.experiment=tests.commands"], ["no function plan"]),
        (["--config.batch_size=6"], ["batch_size=6", "4 devices", "take 4 or 8"]),
        (["--config.mode=mpi"], ["unknown sharding mode 'mpi'", "jit, pmap"]),
        (["leftover"], ["not understood: leftover"]),
        (["--config=nowhere.py"], ["nowhere.py: get_config() raised FileNotFoundError"]),
        (["--config=README.md"], ["README.md: get_config() raised ImportError: not a Python file"]),
        ([f"--config={TOY}:argument"], ["toy.py: get_config() raised TypeError"]),
        (["--num_processes=2"], ["several processes need --coordinator=HOST:PORT"]),
    ],
)
def test_bad_input(tmp_path, overrides, expected):
    output = finish(train(TOY, tmp_path / "run", *overrides, devices=4), 2)
    assert "Traceback" not in output
    for text in expected:
        assert text in output


def test_another_config_on_the_same_directory(whole, tmp_path):
    """The change is shown and its stages are made anew; the earlier result stays, and comes back in no time."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    before, first = json.loads((workdir / "result.json").read_text()), training_of(workdir)
    output = finish(train(TOY, workdir, "--config.steps=60", "--config.nested.rate=0.2"))
    assert "nested.rate: 0.1 -> 0.2" in output and json.loads((workdir / "result.json").read_text()) != before
    assert json.loads((workdir / "history" / "1" / "result.json").read_text()) == before
    assert training_of(workdir) != first and f"{training_of(workdir).name}: made in" in output
    output = finish(train(TOY, workdir, "--config.steps=60"))
    assert training_of(workdir) == first and json.loads((workdir / "result.json").read_text()) == before
    assert "reused" in output and "made in" not in output and first.name in output


def test_a_result_with_a_turned_digit_is_written_again(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    before = (workdir / "result.json").read_text()
    digit = re.search(r"\d\b", before)
    (workdir / "result.json").write_text(f"{before[: digit.start()]}{9 - int(digit[0])}{before[digit.end() :]}")
    output = finish(train(TOY, workdir, "--config.steps=60"))
    assert f"{workdir / 'result.json'} is not the result that is kept in" in output and "made in" not in output
    assert (workdir / "result.json").read_text() == before


def test_fields_of_earlier_versions_are_refused_with_what_takes_their_place(tmp_path):
    argv = ["launch.train", "--config=configs/rtd/scenes.py", "--config.cache=folder"]
    assert launch_train._known_keys(argv).startswith("config.cache is gone; give --store=FOLDER")
    for name, field in (("rtd", "comparison"), ("robustgrad", "comparison"), ("tldr", "study")):
        config = importlib.import_module(f"configs.{name}.scenes").get_config()
        config[field] = {"seeds": (0, 1)}
        with pytest.raises(
            ValueError, match=rf"^config\.{field}\.seeds is gone; write a sweep\(\), as configs/{name}/"
        ):
            launch_train.execute(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    output = finish(train(TOY, tmp_path / "file" / "run"), None)
    assert "not writable" in output and str(tmp_path / "file" / "run") in output


def test_two_processes_on_one_directory(tmp_path):
    first = train(TOY, tmp_path / "run", "--config.steps=10000", "--config.pause=0.05")
    try:
        wait_for_step(first, tmp_path / "run", 2)
        output = finish(train(TOY, tmp_path / "run", "--config.steps=10000", "--config.pause=0.05"), None)
        assert "another process is running" in output
    finally:
        first.kill()
        first.communicate()
