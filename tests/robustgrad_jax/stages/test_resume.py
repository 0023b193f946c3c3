"""A real network, killed: Adam, crop and flip, noise, dropped into the same numbers bit for bit."""

import json
import signal
import time

import numpy as np

from tests.commands import finish, train

CONFIG = "configs/robustgrad/digits_lenet.py"
OPTIONS = (
    "--config.duration=24 steps",
    "--config.optimizer.schedule.milestones=('16 steps',)",
    "--config.batch_size=16",
    "--config.data.train_examples=50",
    "--config.data.test_examples=20",
    "--config.data.crop_padding=2",
    "--config.data.flip=True",
    "--config.loop.log_every=1",
    "--config.loop.eval_every=6 steps",
    "--config.loop.checkpoint_every=2 steps",
    "--config.evaluation.radii=(8.0,)",
    "--config.evaluation.draws=1",
    "--config.evaluation.perturbations=('rps',)",
    "--config.evaluation.curves=()",
    "--config.evaluation.attack_examples=0",
    "--config.evaluation.upper_bound=False",
)


def rows(workdir):
    lines = [line for path in workdir.glob("store/*/metrics.jsonl") for line in path.read_text().splitlines(True)]
    kept = [json.loads(line) for line in lines if line.endswith("\n")]
    rows = [{k: v for k, v in row.items() if k != "time" and "second" not in k} for row in kept]
    return [row for row in rows if row.keys() != {"step"}]


def saved(workdir):
    """Steps whose checkpoints are whole: Orbax gives a directory its number last."""
    return [int(path.name) for path in workdir.glob("store/*/checkpoints/*") if path.name.isdigit()]


def test_sigkill_and_resume_change_no_bit_of_any_step(tmp_path):
    finish(train(CONFIG, tmp_path / "whole", *OPTIONS))
    workdir = tmp_path / "killed"
    target = int(np.random.default_rng(time.time_ns()).integers(3, 20))
    process = train(CONFIG, workdir, *OPTIONS)
    # saving is asynchronous: on a slow disk the first checkpoint may be whole long after its step
    while not (saved(workdir) and any(row["step"] >= target for row in rows(workdir))):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.kill()
    finish(process, -signal.SIGKILL)
    output = finish(train(CONFIG, workdir, *OPTIONS))
    assert "continuing from step" in output
    assert rows(workdir) == rows(tmp_path / "whole")  # every step's loss, gradient norm, l2 and cosine
    result = (workdir / "result.json").read_text()
    assert result == (tmp_path / "whole" / "result.json").read_text()
