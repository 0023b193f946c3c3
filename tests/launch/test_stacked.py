"""`--executor=vmap`: members of a stack against themselves alone, what cannot be stacked, failures, stops, devices."""

import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from launch import train
from launch.run import Run
from launch.sweeps.members import config_of, load, status
from launch.training import checkpoint, stack
from tests.commands import finish, start
from tests.launch import stack_toy
from tests.launch.test_sweep import call as sweep_call

TOY = "tests/launch/stack_toy.py"


@pytest.fixture(scope="module", autouse=True)
def double():
    """float64, also in the threads of the loop."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def call(*args, config=TOY):
    return sweep_call("--executor=vmap", *map(str, args), config=config)


def rows(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "train/steps_per_second")} for line in lines]


def assert_as_if_alone(member, alone):
    """Metrics, checkpoints and result of a member, against a run of its config alone."""
    train.execute(config_of(member), str(alone))
    ours, theirs = rows(member.path), rows(alone)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs] and len(ours) > 5
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-12)
    read = lambda path: json.loads((path / "result.json").read_text())
    assert read(member.path) == pytest.approx(read(alone), rel=1e-8)
    assert (member.path / "config.json").read_text() == (alone / "config.json").read_text()
    template = checkpoint.abstract(jax.tree.map(np.asarray, stack_toy.create(config_of(member))))
    found = []
    for path in (member.path, alone):
        with checkpoint.Checkpoints(path / "checkpoints", best=stack_toy.BEST) as checkpoints:
            found.append((checkpoints.restore_latest(template), checkpoints.restore_best(template)))
    (ours, best), (theirs, their_best) = found
    assert (ours[1], best[1]) == (theirs[1], their_best[1])
    for a, b in ((ours[0], theirs[0]), (best[0], their_best[0])):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12), a, b)


def test_members_are_as_if_run_alone(tmp_path):
    args = ("--grid=rate=0.02,0.1;seed=0,1", f"--workdir={tmp_path / 'sweep'}")
    code, output = call(*args)
    assert code == 0 and output.rstrip().endswith("4 done") and "stacks" not in output
    members = load(tmp_path / "sweep").members
    results = {json.loads((m.path / "result.json").read_text())["distance"] for m in members}
    assert len(results) == 4  # otherwise equality would say nothing
    for member in (members[0], members[3]):
        assert_as_if_alone(member, tmp_path / member.name)
    before = {p: p.stat().st_mtime_ns for m in members for p in m.path.rglob("*") if p.is_file()}
    code, _ = call(*args)
    assert code == 0 and all(p.stat().st_mtime_ns == then for p, then in before.items())


def test_one_that_diverges_and_one_that_fails_do_not_stop_the_rest(tmp_path):
    code, output = call("--grid=rate=0.1,1e200;ending=0,3", f"--workdir={tmp_path / 'sweep'}")
    assert code == 1 and "1 done, 3 failed" in output
    found = {m.name: m for m in load(tmp_path / "sweep").members}
    lost = found["rate=1e+200,ending=0"]
    assert "NonFiniteLoss: not finite at step 2: loss is" in (lost.path / "log.txt").read_text()
    assert status(lost).state == "failed" and not list((lost.path / "checkpoints").glob("[0-9]*"))
    assert "ArithmeticError: 3 was not to be" in (found["rate=0.1,ending=3"].path / "log.txt").read_text()
    assert_as_if_alone(found["rate=0.1,ending=0"], tmp_path / "alone")


def test_a_stop_then_the_same_command_and_a_run_by_itself(tmp_path):
    workdir = tmp_path / "sweep"
    args = ("--grid=seed=0:3", f"--workdir={workdir}", "--config.steps=18")

    def send():
        while not (workdir / "seed=2" / "metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    code, output = call(*args, "--config.pause=0.03")
    thread.join()
    assert "asked to stop" in code and "the same command" in code and "3 waiting" in output
    members = load(workdir).members
    assert all(status(m).state == "started" for m in members)
    last = max((members[2].path / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(last)  # as if a kill had come between two members' saves
    first = members[0]
    run = train.execute(config_of(first), str(first.path))  # one goes on alone, from what the stack has saved
    code, output = call(*args, "--config.pause=0.03")
    assert code == 0 and output.rstrip().endswith("3 done")
    for member in members[::2]:
        assert_as_if_alone(member, tmp_path / member.name)
    assert run == json.loads((first.path / "result.json").read_text())


def test_what_cannot_be_stacked_is_explained(tmp_path):
    grid = "--grid=kind=square,absolute;weight=0,0.1;seed=0,1"
    code, output = call(grid, f"--workdir={tmp_path}", "--config.steps=2")
    assert code == 0 and output.rstrip().endswith("8 done")
    assert "4 stacks: kind cannot be stacked; weight=0 is another program than the rest" in output
    assert "tests.launch.stack_toy stacks members that differ in seed, rate, weight" in output
    assert "  2 members  kind=square,weight=0.0\n" in output and "  2 members  kind=absolute\n" in output
    code, _ = call("--grid=kind=square,absolute", f"--workdir={tmp_path / 'b'}")
    assert "no two members make one program: kind cannot be stacked." in code and "--executor=local" in code
    code, _ = call("--grid=seed=0,1", "--noconfig_sweep", f"--workdir={tmp_path / 'c'}", config="tests/launch/toy.py")
    assert "tests.launch.toy cannot train several configs as one program; take --executor=local" in code


def test_members_of_two_config_files(tmp_path):
    """Of one experiment, but one has a field more: two stacks."""
    text = "from tests.launch import stack_toy\n\n\ndef get_config():\n    config = stack_toy.get_config()\n    {}\n"
    (tmp_path / "a.py").write_text(text.format("return config"))
    (tmp_path / "b.py").write_text(text.format("config.more = 1") + "    return config\n")
    grid = "--grid=config=a.py,b.py;seed=0,1"
    code, output = call(grid, f"--workdir={tmp_path / 's'}", "--config.steps=2", config=str(tmp_path / "a.py"))
    assert code == 0 and "2 stacks: more cannot be stacked" in output and output.rstrip().endswith("4 done")


def test_the_most_members_of_a_stack_and_a_folder_in_use(tmp_path):
    args = ("--grid=seed=0:3", "--config.steps=2", f"--workdir={tmp_path}", "--processes=2")
    config = stack_toy.get_config()
    config.steps = 2
    other = Run.open(tmp_path / "seed=0", config)
    try:
        code, output = call(*args)
    finally:
        other.close()
    assert code == 1 and "another process is running in" in output and "2 done, 1 failed" in output
    code, _ = call(*args)
    logs = [(m.path / "log.txt").read_text() for m in load(tmp_path).members]
    assert code == 0 and [log.count("a stack of 2") for log in logs] == [1, 1, 0]


def test_stacks_over_eight_devices_are_those_of_one():
    found = json.loads(finish(start("-m", "tests.launch.stack_worker", devices=8)).splitlines()[-1])
    assert found["devices"] == 8
    assert found["3"]["shape"] == [3, 1, 2] and found["3"]["on"] == 3
    assert found["10"]["shape"] == [5, 2, 2] and found["10"]["on"] == 5
    for count in ("3", "10"):
        assert found[count]["apart"] < 1e-8 < 1e-4 < found[count]["differ"]


@pytest.mark.parametrize("value, message", [("x", "x='x' is no number"), (True, "x=True is no number"),
                                            (2**31, "x=2147483648: in a stack integers have 32 bits")])  # fmt: skip
def test_what_is_no_number_of_a_stack(value, message):
    with pytest.raises(ValueError, match=message):
        stack.numbers([FrozenConfigDict({"x": 1}), FrozenConfigDict({"x": value})], ["x"])


def test_numbers_of_configs():
    configs = [FrozenConfigDict({"a": {"b": b, "c": "s"}, "seed": seed, "x": 1}) for b, seed in ((0.5, 1), (2, 3))]
    assert stack.varying(configs) == ["a.b", "seed"]
    found = stack.numbers(configs, ["a.b", "seed"])
    assert found["a.b"].tolist() == [0.5, 2.0] and found["seed"].dtype == np.int32
    changed = stack.substituted(configs[0], {"a.b": 7.0})
    assert (changed.a.b, changed.a.c, configs[0].a.b) == (7.0, "s", 0.5)
