"""Members as jobs: on a real SLURM cluster of two nodes, which the test starts on this machine, and what needs none."""

import json
import os
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from launch.processes import hosts
from launch.processes.stop import Preempted
from launch.sweeps import slurm, slurm_task
from launch.sweeps.members import Options, SweepError, define, load, status
from tests.commands import REQUIRED, ROOT, environment, finish, start, train
from tests.launch import sweep_toy, toy
from tests.launch.sweeps import slurm_cluster
from tests.launch.test_train import logged
from tests.launch.training.devices.test_sharding import same_training

MISSING = slurm_cluster.missing() + ([] if find_spec("submitit") else ["submitit"])
cluster_needed = pytest.mark.skipif(
    bool(MISSING) and not REQUIRED,
    reason=f"not installed: {', '.join(MISSING)} (`make test SYSTEM=yes` does it)",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        yield found


@pytest.fixture
def here(cluster, monkeypatch):
    """This process as one that submits; jobs see two CPU devices a task."""
    for name, value in (environment(2) | cluster).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(slurm, "_QUEUE_EVERY", 0.3)
    monkeypatch.setattr(slurm, "_WATCH_EVERY", 0.1)


def sweep_of(workdir, module, *overrides):
    file = Path(module.__file__).relative_to(ROOT)
    return define(workdir, config_file=str(ROOT / file), base=module.get_config(), overrides=overrides)


def jobs(sweep) -> dict[str, str]:
    return json.loads((sweep.path / ".slurm" / "jobs.json").read_text())


@cluster_needed
def test_an_array_of_members_that_goes_on_while_nobody_watches(here, tmp_path):
    overrides = ({"x": 0.5}, {"x": 2.0}, {"ending": "raise"}, {"ending": "kill"})
    sweep, ended, watched = sweep_of(tmp_path / "sweep", sweep_toy, *overrides), [], set()
    sweep.path.mkdir()

    def leave(running):
        if running:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = {"restarts": "0", "partition": "main"}
    with pytest.raises(Preempted, match=r"4 jobs stay in the queue \(`scancel \d+_0 \d+_1 \d+_2 \d+_3`"):
        slurm.execute(sweep, sweep.members, Options(slurm=settings, watch=leave))
    submitted = jobs(sweep)
    slurm.execute(sweep, sweep.members, Options(slurm=settings, watch=watched.update, ended=ended.append))
    assert jobs(sweep) == submitted and len({job.split("_")[0] for job in submitted.values()}) == 1
    assert sorted(m.name for m in ended) == sorted(m.name for m in sweep.members) and watched
    found = [status(m) for m in sweep.members]
    assert [s.state for s in found] == ["done", "done", "failed", "failed"]
    assert [s.result["parabola"] for s in found[:2]] == [6.25, 1.0]
    assert found[2].error == "exit status 1" and found[3].error.startswith("killed by SIGKILL")
    assert "ArithmeticError: x = 1.0 was not to be" in (sweep.members[2].path / "log.txt").read_text()


@cluster_needed
def test_two_nodes_through_a_time_out_and_a_killed_worker(here, tmp_path):
    """The member's time is up, then one of its processes is killed: in the end the numbers of an undisturbed run."""
    reference = train("tests/launch/toy.py", tmp_path / "alone", "--config.steps=20", devices=4)
    sweep = sweep_of(tmp_path / "sweep", toy, {"steps": 20, "pause": 0.2})
    sweep.path.mkdir()
    [member] = sweep.members
    story = disturb(sweep, member)
    slurm.execute(sweep, [member], Options(slurm={"nodes": "2"}, watch=lambda running: next(story, None)))
    assert next(story, "over") == "over"  # all of it has happened
    finish(reference)
    same_training(member.path, tmp_path / "alone")
    log = (member.path / "log.txt").read_text()
    assert log.count("process 0 of 2, 4 devices") == 3 and log.count("continuing from step") == 2
    assert "process 1 of 2, 4 devices" in (member.path / "log.1.txt").read_text()
    [loss] = (sweep.path / ".slurm" / f"{member.name}.losses").read_text().splitlines()
    assert "killed by SIGKILL" in loss and "process 1 on " in loss


def disturb(sweep, member):
    """What happens to the job, as a generator that is asked again and again."""
    while not any(row["step"] >= 4 for row in logged(member.path)):
        yield
    job = jobs(sweep)[member.name]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)  # as the scheduler does before the time is up
    yield from again(job)
    reached = max(row["step"] for row in logged(member.path))
    while max(row["step"] for row in logged(member.path)) < min(reached + 4, 16):
        yield
    os.kill(worker(member, "1"), signal.SIGKILL)
    yield from again(job)


def again(job):
    """Wait until the job is back in the queue, and spare it the two minutes that SLURM puts before another start.

    Not within the second in which it has ended: nodes still refuse its credentials then.
    """
    while slurm.queue().get(job) != "PENDING":
        yield
    due = time.monotonic() + 2
    while slurm.queue().get(job) == "PENDING":
        if time.monotonic() > due:
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False, capture_output=True)
        yield


def worker(member, task: str) -> int:
    """The process that trains the member in a task."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, its = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--workdir={member.path}".encode() in command and f"SLURM_PROCID={task}".encode() in its:
            return int(folder.name)
    raise AssertionError(f"no process trains {member.name} in task {task}")


@cluster_needed
def test_the_command(here, tmp_path):
    """Four members, of sweep() and grid, as a user submits them; then the same command finds nothing to do."""
    args = ("--config=tests/launch/sweep_toy.py", "--grid=seed=0,1", f"--workdir={tmp_path / 'sweep'}")
    for expected in ("4 members submitted as job", "4 members: 4 done"):
        output = finish(start("-m", "launch.sweep", *args, "--executor=slurm", "--slurm=partition=main,time=5"))
        assert output.rstrip().endswith("4 done") and expected in output
    found = [status(member) for member in load(tmp_path / "sweep").members]
    assert [s.result["parabola"] for s in found] == [6.25, 6.25, 1.0, 1.0]


@cluster_needed
def test_what_sbatch_refuses_is_shown(here, tmp_path):
    sweep = sweep_of(tmp_path, sweep_toy, {"x": 1.0})
    with pytest.raises(SweepError, match=r"sbatch refused the submission\n.*invalid partition"):
        slurm.execute(sweep, sweep.members, Options(slurm={"partition": "nowhere"}))
    assert slurm.array_limit() == 1001


# -- without a cluster ------------------------------------------------------------------------------------------------


def test_no_scheduler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    sweep = sweep_of(tmp_path, sweep_toy, {"x": 1.0})
    with pytest.raises(SweepError, match=r"sbatch is not installed here; use a login node, or --executor=local"):
        slurm.execute(sweep, sweep.members, Options())


def test_settings():
    found = slurm.settings({"nodes": "2", "tasks_per_node": "4", "gpus_per_node": "8", "cpus_per_task": "6"}, 3)
    assert (found.nodes, found.tasks, found.gpus, found.restarts) == (2, 4, 8, 3)
    assert found.parameters["ntasks_per_node"] == 4 and found.parameters["array_parallelism"] == 3
    assert found.parameters["srun_args"] == ["--kill-on-bad-exit=1", "--cpus-per-task=6"]
    found = slurm.settings({"parallel": "5", "time": "30", "mem": "64G", "sbatch.reservation": "us", "sbatch.hold": ""})
    assert found.parameters["array_parallelism"] == 5 and found.parameters["time"] == 30
    assert found.parameters["additional_parameters"] == {"requeue": True, "reservation": "us", "hold": True}


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"node": "2"}, "unknown --slurm setting 'node'; valid names: partition, .*tasks_per_node"),
        ({"nodes": "two"}, "nodes=two: needs a number from 1"),
        ({"nodes": "0"}, "nodes=0: needs a number from 1"),
        ({"partition": ""}, "partition=: needs a value"),
        ({"gpus_per_node": "8", "tasks_per_node": "3"}, "gpus_per_node=8 is not a multiple of tasks_per_node=3"),
        ({"time": "2"}, "grace=120 s is not less than time=2 min"),
    ],
)
def test_settings_that_cannot_be(given, expected):
    with pytest.raises(SweepError, match=expected):
        slurm.settings(given)


def test_each_task_sees_its_own_gpus():
    ids = lambda local, gpus, tasks: slurm_task.devices({"SLURM_LOCALID": local}, gpus, tasks)
    assert ids("0", 8, 1) == {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7"}
    assert ids("1", 8, 4) == {"JAX_LOCAL_DEVICE_IDS": "2,3"}
    assert ids("0", 0, 2) == {}
    assert slurm_task.devices({"JAX_LOCAL_DEVICE_IDS": "5", "SLURM_LOCALID": "0"}, 8, 1) == {}


def test_a_job_that_ends_before_its_member_begins(tmp_path, monkeypatch):
    sweep = sweep_of(tmp_path / "sweep", sweep_toy, {"seed": 0})
    [member] = sweep.members
    member.path.mkdir(parents=True)
    fakes = {"queue": dict, "array_limit": lambda: 10, "ending": lambda job: "FAILED", "_QUEUE_EVERY": 0.01}
    fakes |= {"submit": lambda *args: {member.name: "7"}, "_WATCH_EVERY": 0.01}
    for name, fake in fakes.items():
        monkeypatch.setattr(slurm, name, fake)
    monkeypatch.setattr(slurm.shutil, "which", lambda program: program)
    slurm.execute(sweep, sweep.members, Options())
    assert status(member).state == "failed" and "job 7 has left the queue" in status(member).error


def test_a_loss_that_many_processes_see_counts_once(tmp_path, monkeypatch):
    [member] = sweep_of(tmp_path / "sweep", sweep_toy, {"seed": 0}).members
    task = slurm_task.SlurmTask(member, (), 0, 1, 2, tmp_path / "losses")
    allowed = []
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        allowed.append([task._may_restart(number, slurm_task.LOST_PEER) for number in range(4)])
    assert allowed == [[True] * 4, [True] * 4, [False] * 4]


def test_parts_of_a_sweep_larger_than_an_array_may_be():
    parts = slurm._parts(range(2500), 1001)
    assert [len(part) for part in parts] == [833, 833, 834] and [i for part in parts for i in part] == list(range(2500))
    assert slurm._parts([], 1001) == []


def test_the_exit_status_of_a_process_that_lost_its_peers():
    assert slurm_task.LOST_PEER == hosts.EXIT_STATUS
