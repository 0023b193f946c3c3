"""`--executor=vmap`: members of a stack against themselves alone, what cannot be stacked, failures, stops, devices."""

import errno
import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from configs.robustgrad import digits_lenet
from launch import train
from launch.processes import interrupts
from launch.processes.stop import Preempted
from launch.run import Run
from launch.stages import SettingError, numbers, stacked_numbers, with_numbers
from launch.store import Store
from launch.sweeps import stacked
from launch.sweeps.members import Options, config_of, define, load, status
from launch.sweeps.stacks import PlannedMember
from launch.training import checkpoint, places
from launch.training.program import as_arrays
from robustgrad_jax.stages import inputs
from tests.commands import finish, stage_folder, start
from tests.launch.sweeps import stack_toy
from tests.launch.test_sweep import call as sweep_call

TOY = "tests/launch/sweeps/stack_toy.py"


@pytest.fixture(scope="module", autouse=True)
def double():
    """float64, also in the threads of the loop."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def call(*args, config=TOY):
    return sweep_call("--executor=vmap", *map(str, args), config=config)


def squares(member):
    """The folder of the stage that a member, or the run in a folder, trains."""
    return stage_folder(getattr(member, "path", member), "Squares")


def rows(path):
    lines = [json.loads(line) for line in (squares(path) / "metrics.jsonl").read_text().splitlines()]
    rates = ("steps_per_second", "examples_per_second", "flops_per_second", "compile_seconds")
    timings = ("time", *(f"train/{rate}" for rate in rates))
    return [{k: v for k, v in line.items() if k not in timings} for line in lines]


def assert_as_if_alone(member, alone):
    """Metrics, checkpoints and result of a member, against a run of its config alone."""
    train.execute(config_of(member), str(alone))
    assert squares(member).name == squares(alone).name and squares(member) != squares(alone)
    ours, theirs = rows(member.path), rows(alone)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs] and len(ours) > 5
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-12)
    read = lambda path: json.loads((path / "result.json").read_text())
    assert read(member.path) == pytest.approx(read(alone), rel=1e-8)
    assert (member.path / "config.json").read_text() == (alone / "config.json").read_text()
    state = stack_toy.plan(config_of(member)).squares.create()
    template = checkpoint.abstract(jax.tree.map(np.asarray, state))
    found = []
    for path in (squares(member), squares(alone)):
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
    folders = [*(m.path for m in members), *(squares(m) for m in members)]
    before = {p: p.stat().st_mtime_ns for folder in folders for p in folder.rglob("*") if p.is_file()}
    code, _ = call(*args)
    assert code == 0 and all(p.stat().st_mtime_ns == then for p, then in before.items())


def test_one_that_diverges_and_one_that_fails_do_not_stop_the_rest(tmp_path):
    code, output = call("--grid=rate=0.1,1e30;ending=0,3", f"--workdir={tmp_path / 'sweep'}")
    assert code == 1 and "1 done, 3 failed" in output
    found = {m.name: m for m in load(tmp_path / "sweep").members}
    lost = found["rate=1e+30,ending=0"]
    assert "NonFiniteLoss: not finite at step 7: loss is" in (lost.path / "log.txt").read_text()
    saved = [int(path.name) for path in (squares(lost) / "checkpoints").glob("[0-9]*")]
    assert status(lost).state == "failed" and all(step < 7 for step in saved)
    assert "ArithmeticError: 3 was not to be" in (found["rate=0.1,ending=3"].path / "log.txt").read_text()
    assert_as_if_alone(found["rate=0.1,ending=0"], tmp_path / "alone")


def test_a_stop_then_the_same_command_and_a_run_by_itself(tmp_path):
    workdir = tmp_path / "sweep"
    args = ("--grid=seed=0:3", f"--workdir={workdir}", "--config.steps=18")

    def send():
        while len(list(workdir.glob("store/squares-*/metrics.jsonl"))) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    code, output = call(*args, "--config.pause=0.03")
    thread.join()
    assert "asked to stop" in code and "the same command" in code and "3 waiting" in output
    members = load(workdir).members
    assert all(status(m).state == "started" for m in members)
    last = max((squares(members[2]) / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(last)  # as if a kill had come between two members' saves
    first = members[0]
    run = train.execute(config_of(first), str(first.path))  # one goes on alone, from what the stack has saved
    code, output = call(*args, "--config.pause=0.03")
    assert code == 0 and output.rstrip().endswith("3 done")
    for member in members[::2]:
        assert_as_if_alone(member, tmp_path / member.name)
    assert run == json.loads((first.path / "result.json").read_text())


@pytest.mark.parametrize("when", ["planned", "trained"])
def test_a_signal_while_members_are(when, tmp_path, monkeypatch):
    """Either stops the sweep, which says by which signal: Ctrl-C has a status of its own."""
    number = signal.SIGINT if when == "planned" else signal.SIGTERM
    monkeypatch.setattr(interrupts, "received", [number] if when == "planned" else [])

    def stopped(stages, store):
        signal.raise_signal(number)
        store.stop.check()

    monkeypatch.setattr(stack_toy.Squares, "make_together", stopped)
    base, overrides = stack_toy.get_config(), [{"seed": 0}, {"seed": 1}]
    sweep = define(tmp_path, config_file=TOY, base=base, overrides=overrides)
    with pytest.raises(Preempted) as stop:
        stacked.execute(sweep, sweep.members, Options())
    left = "waiting" if when == "planned" else "started"
    assert stop.value.number == number and {status(member).state for member in sweep.members} == {left}


def test_a_full_disk_ends_all(tmp_path, monkeypatch):
    """A large file does not fit, small ones would: no member is noted as failed for what is no fault of its own."""

    def full(stages, store):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint")

    monkeypatch.setattr(stack_toy.Squares, "make_together", full)
    code, output = call("--grid=seed=0,1", f"--workdir={tmp_path}")
    assert code == "checkpoint: No space left on device; make room, the same command goes on"
    assert "failed" not in output and not list(tmp_path.rglob("error.txt"))


def test_what_cannot_be_stacked_is_explained(tmp_path):
    grid = "--grid=kind=square,absolute;weight=0,0.1;seed=0,1"
    code, output = call(grid, f"--workdir={tmp_path}", "--config.steps=2")
    assert code == 0 and output.rstrip().endswith("8 done")
    assert "4 stacks: Squares.weight=0 needs another program; Squares.kind cannot be stacked\n" in output
    fields = "Squares.seed, Squares.rate, Squares.weight, Distance.ending\n"
    assert f"members of a stack may differ in {fields}" in output
    assert "  2 members  Squares.weight=0.0,Squares.kind=square\n" in output
    assert "  2 members  Squares.kind=absolute\n" in output
    code, _ = call("--grid=kind=square,absolute", f"--workdir={tmp_path / 'b'}")
    assert "no two members fit into one program: Squares.kind cannot be stacked;" in code and "--executor=local" in code
    code, _ = call("--grid=seed=0,1", "--noconfig_sweep", f"--workdir={tmp_path / 'c'}", config="tests/launch/toy.py")
    assert "tests.launch.toy cannot train several configs as one program; use --executor=local" in code


def test_members_of_several_config_files(tmp_path):
    """Of one experiment: a field that no stage reads keeps no members apart, one that a stage reads does."""
    text = "from tests.launch.sweeps import stack_toy\n\n\n"
    text += "def get_config():\n    config = stack_toy.get_config()\n    {}\n"
    (tmp_path / "a.py").write_text(text.format("return config"))
    (tmp_path / "b.py").write_text(text.format("config.more = 1") + "    return config\n")
    (tmp_path / "c.py").write_text(text.format("config.unread = 1") + "    return config\n")
    grid = "--grid=config=a.py,b.py,c.py;seed=0,1"
    code, output = call(grid, f"--workdir={tmp_path / 's'}", "--config.steps=2", config=str(tmp_path / "a.py"))
    assert code == 0 and "2 stacks: Squares.more cannot be stacked\n" in output
    assert "  4 members  Squares.more=0\n  2 members  Squares.more=1\n" in output
    assert output.rstrip().endswith("6 done") and len(list((tmp_path / "s" / "store").glob("squares-*"))) == 4


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


@pytest.mark.parametrize("at, expected", [(0, [5, 3, 2, 2, 1]), (4, [5, 3, 2, 1, 1, 1])])
def test_a_stack_that_does_not_fit_is_trained_in_waves(at, expected, tmp_path, monkeypatch, capsys):
    """With devices that hold two members, seen at the first step, or after a checkpoint that three more steps follow.

    Members of the latter's second wave were saved at different steps, from which they go on apart.
    """
    sizes, original = [], places.Stack.jit

    def limited(place, step, state, **options):
        if not options["stacked"]:
            sizes.append(place.members)
        compiled, calls = original(place, step, state, **options), iter(range(10**6))

        class Limited:
            prepare, flops = staticmethod(compiled.prepare), staticmethod(compiled.flops)

            def __call__(self, *arguments):
                if place.members > 2 and next(calls) == at:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
                return compiled(*arguments)

        return Limited()

    monkeypatch.setattr(places.Stack, "jit", limited)
    base, overrides = stack_toy.get_config(), [{"seed": seed} for seed in range(5)]
    sweep = define(tmp_path / "sweep", config_file=TOY, base=base, overrides=overrides)
    stacked.execute(sweep, sweep.members, Options())
    assert sizes == expected
    printed = capsys.readouterr().out
    assert "5 members do not fit into the devices' memory: training 3 at a time" in printed
    assert "3 members do not fit into the devices' memory: training 2 at a time" in printed
    for member in (sweep.members[0], sweep.members[4]):
        assert_as_if_alone(member, tmp_path / member.name)


def test_one_member_too_large_for_the_devices_fails_with_the_reason(tmp_path, monkeypatch):
    def exhausted(stages, store):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(stack_toy.Squares, "make_together", exhausted)
    code, output = call("--grid=seed=0,1", f"--workdir={tmp_path}")
    assert code == 1 and "2 failed" in output and "training 1 at a time" in output
    assert all("RESOURCE_EXHAUSTED" in (m.path / "log.txt").read_text() for m in load(tmp_path).members)


def test_a_member_that_cannot_be_trained_is_refused_before_any_is(tmp_path, monkeypatch):
    """By files; what a single run over all devices refuses, members of a stack are not asked."""
    events, together = [], stack_toy.Squares.make_together

    def preflight(stage, store):
        events.append(stage.seed)
        if stage.seed == 2:
            raise SettingError("seed", "=2: there is no such file")

    def make_together(stages, store):
        events.append("trained")
        return together(stages, store)

    def check_devices(stage):
        raise SettingError("batch_size", "=4 does not divide")

    monkeypatch.setattr(stack_toy.Squares, "preflight", preflight)
    monkeypatch.setattr(stack_toy.Squares, "check_devices", check_devices)
    monkeypatch.setattr(stack_toy.Squares, "make_together", make_together)
    code, output = call("--grid=seed=0:4", "--config.steps=2", f"--workdir={tmp_path}", "--processes=3")
    members = {member.name: member for member in load(tmp_path).members}
    assert events[:5] == [0, 1, 2, 3, "trained"] and code == 1 and "2 done, 2 failed" in output
    texts = {name: (member.path / "log.txt").read_text() for name, member in members.items()}
    assert "SettingError: seed=2: there is no such file" in texts["seed=2"]
    assert "SettingError: batch_size=4 does not divide" in texts["seed=3"]  # alone in its part of three
    for name in ("seed=2", "seed=3"):
        assert not (members[name].path / "config.json").exists()


def test_data_is_read_once_to_check_a_stack(tmp_path, monkeypatch):
    """Not for the seed of every member; what was refused for one is looked at again for the next."""
    reads = []

    def preflight(stage, store):
        reads.append((stage.data.name, stage.seed))
        if stage.seed == 0:
            raise SettingError("seed", "=0: there is no such file")

    monkeypatch.setattr(inputs.ImageSplits, "preflight", preflight)
    config = digits_lenet.get_config()
    members = []
    for name in ("digits", "scenes"):
        for seed in range(4):
            config.update_from_flattened_dict({"seed": seed, "data.name": name})
            members.append(PlannedMember(name, None, train.planned(config)[1]))
    refused = stacked._preflight([members[:4], members[4:]], Store(tmp_path))
    assert [member for member, _ in refused] == ["digits", "scenes"]
    assert reads == [("digits", 0), ("digits", 1), ("scenes", 0), ("scenes", 1)]


def test_stacks_over_eight_devices_are_those_of_one():
    found = json.loads(finish(start("-m", "tests.launch.sweeps.stack_worker", devices=8)).splitlines()[-1])
    assert found["devices"] == 8
    assert found["3"]["shape"] == [3, 1, 2] and found["3"]["on"] == 3
    assert found["10"]["shape"] == [5, 2, 2] and found["10"]["on"] == 5
    for count in ("3", "10"):
        assert found[count]["apart"] < 1e-8 < 1e-4 < found[count]["differ"]


@pytest.mark.parametrize("value, message", [("x", "x='x' is not a number"), (True, "x=True is not a number"),
                                            (2**31, "x=2147483648: integers of a program have 32 bits")])  # fmt: skip
def test_what_is_no_number_of_a_stack(value, message):
    with pytest.raises(ValueError, match=message):
        as_arrays({"x": [1, value]})


def test_numbers_of_stages():
    """An argument of every program, and where members differ; as substituted in a stage, by plain or traced values."""
    stages = [stack_toy.Squares(seed=seed, rate=rate, weight=0.1) for seed, rate in ((1, 0.5), (3, 2))]
    found = as_arrays(stacked_numbers(stages))
    assert list(found) == list(numbers(stages[0])) == ["seed", "rate", "weight"]
    assert found["rate"].tolist() == [0.5, 2.0] and found["seed"].dtype == np.int32
    changed = with_numbers(stages[0], {"rate": 7.0})
    assert (changed.rate, changed.seed, stages[0].rate) == (7.0, 1, 0.5) and changed.key != stages[0].key
    assert changed.stack_key == stages[0].stack_key == stages[1].stack_key
