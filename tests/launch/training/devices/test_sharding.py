"""Layouts on 8 fake devices, starting several processes, and two real ones that train together."""

import json
import shutil
import signal
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.training import sharding
from tests.commands import finish, start, train
from tests.launch.test_train import TOY, logged, saved_steps, wait_for_step

# -- starting up ------------------------------------------------------------------------------

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SCHEDULERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


@pytest.fixture
def started(monkeypatch):
    """The arguments of every call of `jax.distributed.initialize`, in an environment that says nothing."""
    for name in VARIABLES + SCHEDULERS:
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    return calls


def test_a_lone_process_starts_nothing(started, monkeypatch):
    sharding.initialize()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    sharding.initialize()
    assert started == []


def test_the_coordinator_from_arguments_and_environment(started, monkeypatch):
    sharding.initialize("host:1234", 4, 0)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "other:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    sharding.initialize()
    sharding.initialize("host:1234", None, 0)  # what is not given comes from there
    assert started == [("host:1234", 4, 0), ("other:1", 2, 1), ("host:1234", 2, 0)]


@pytest.mark.parametrize(
    "name, value",
    [
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("OMPI_COMM_WORLD_SIZE", "8"),
        ("TPU_WORKER_HOSTNAMES", "t1k-0,t1k-1"),
        ("TPU_PROCESS_ADDRESSES", "t1k-0:8476,t1k-1:8476"),
    ],
)
def test_a_schedulers_processes_find_each_other(started, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    sharding.initialize()
    assert started == [()]


def test_an_indexed_job_of_kubernetes_and_the_flag(started, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    sharding.initialize()
    assert started == []  # any pod has that one
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    sharding.initialize()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    sharding.initialize(automatic=True)
    assert started == [(), ()]


def test_a_bare_command_in_an_allocation_of_many_is_alone(started, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    sharding.initialize()
    assert started == []


def test_a_number_of_processes_without_a_coordinator_is_refused(started):
    with pytest.raises(ValueError, match=r"need --coordinator=HOST:PORT .got None., --num_processes .got 4."):
        sharding.initialize(None, 4, 1)
    assert started == []


@pytest.mark.parametrize("processes, process", [(None, 0), (2, None), (2, 2), (2, -1), (0, 0)])
def test_a_coordinator_alone_is_not_enough(started, processes, process):
    with pytest.raises(ValueError, match=r"--coordinator=HOST:PORT \(got host:1\), --num_processes .* --process_id"):
        sharding.initialize("host:1", processes, process)
    assert started == []


# -- layouts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker():
    return json.loads(finish(start("-m", "tests.launch.training.devices.sharding_worker", devices=8)).splitlines()[-1])


@pytest.mark.parametrize(
    "case, expected",
    [
        ("mode", ["unknown sharding mode 'mpi'", "jit, pmap"]),
        ("model", ["model=3 does not divide 8 devices"]),
        ("model zero", ["model=0 does not divide"]),
        ("pmap", ["mode 'pmap' keeps whole parameters on every device", "mode 'jit'"]),
        ("pmap rules", ["mode 'pmap' keeps whole parameters on every device"]),
        ("no match", ["no parameter matches the partition rules ['fc2/kernel']"]),
        ("unequal", ["'fc/kernel$'", "does not fit params/fc/kernel of shape (6, 8)"]),
        ("too many axes", ["'bias$'", "does not fit params/fc/bias of shape (8,)"]),
        ("no such axis", ["'bias$'", "'models'", "does not fit params/fc/bias"]),
        ("batch", ["batch_size=20 does not divide evenly over 8 devices; take 16 or 24"]),
        ("small batch", ["evaluation.batch_size=3 does not divide evenly over 8 devices; take 8"]),
        ("no batch", ["batch_size=0 does not divide evenly over 8 devices; take 8"]),
        ("fine batch", ["no error"]),
    ],
)
def test_refusals(worker, case, expected):
    for text in expected:
        assert text in worker["refusals"][case]


def test_where_arrays_are(worker):
    found = worker["placements"]
    assert found["put"] == [[[2 * i], [2 * i + 1]] for i in range(8)]
    assert found["put with model"] == [[[4 * (i // 2) + j] for j in range(4)] for i in range(8)]
    assert found["replicate"] == [[0, 1, 2]] * 8
    assert found["kernel"] == [[[0.0, 1.0]], [[2.0, 3.0]]] * 4
    assert found["bias"] == [[1.0] * 3] * 8


def test_compiled_steps(worker):
    """`jit` sees the global batch, `pmap` each device's share; both see all that is resident, and agree."""
    jit, pmap = worker["jit"], worker["pmap"]
    assert jit["rows"] == 16 and pmap["rows"] == 2 and pmap["shares"] == 8
    assert jit["table"] == pmap["table"] == 10
    assert jit["mean"] == pmap["mean"] == 7.5
    assert jit["total"] == pmap["total"] == [8.5] * 8


def test_a_state_can_be_given_away_without_losing_the_callers():
    """The step consumes its state; the arrays it was made from, NumPy's or JAX's, stay as they were."""
    layout = sharding.layout()
    host = {f"a{n}": np.full(n, 1.0, np.float32) for n in (1, 16, 1024, 100_000)}
    ours = jax.tree.map(jnp.array, host)
    step = lambda numbers, state, batch, *, axis_name=None: (jax.tree.map(lambda a: 2 * a, state), {})
    double = layout.jit(step, host)
    for original in (host, ours):
        state = first = layout.place(original)
        for _ in range(3):
            state, _ = double({}, state, {})
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))  # it was given away
        for leaf in jax.tree.leaves(original):
            np.testing.assert_array_equal(leaf, 1)
        for leaf in jax.tree.leaves(state):
            np.testing.assert_array_equal(leaf, 8)


# -- two processes ----------------------------------------------------------------------------


@pytest.fixture
def pair(monkeypatch):
    """Starts a command in two processes that find each other on this machine; they see two devices each."""
    started = []

    def start_pair(workdir, *overrides):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", address)
        common = [*overrides, f"--coordinator={address}", "--num_processes=2"]
        processes = [train(TOY, workdir, *common, f"--process_id={i}", devices=2) for i in range(2)]
        started.extend(processes)
        return processes

    yield start_pair
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training by one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(train(TOY, workdir, "--config.steps=20", devices=4))
    return workdir


def same_training(workdir, reference):
    ours, theirs = (np.load(path / "params.npy") for path in (workdir, reference))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    ours, theirs = (
        {row["step"]: row["val/error"] for row in logged(path) if "val/error" in row} for path in (workdir, reference)
    )
    assert ours == pytest.approx(theirs, rel=1e-4) and len(ours) == 5
    results = [json.loads((path / "result.json").read_text()) for path in (workdir, reference)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_two_processes_train_as_one(pair, alone, tmp_path):
    """Same evaluations, same parameters; only the first process writes and prints."""
    processes = pair(tmp_path / "run", "--config.steps=20", "--config.mode=pmap")
    first, second = (finish(process, timeout=200) for process in processes)
    assert "process 0 of 2, 4 devices" in first and "process 1 of 2, 4 devices" in second
    assert "| distance |" in first and "| distance |" not in second
    rows = logged(tmp_path / "run")
    assert len({(row["step"], "train/loss" in row) for row in rows}) == len(rows)  # no line twice
    same_training(tmp_path / "run", alone)


def test_sigterm_to_one_of_two_stops_both_where_both_can_go_on(pair, alone, tmp_path):
    command = (tmp_path / "run", "--config.steps=20", "--config.pause=0.2")
    first, second = pair(*command)
    wait_for_step(first, tmp_path / "run", 4)
    second.send_signal(signal.SIGTERM)
    outputs = [finish(process, 0, timeout=200) for process in (first, second)]
    assert all("resume with the same command" in output for output in outputs)
    saved = max(saved_steps(tmp_path / "run"))
    assert saved < 20 and all(f"saved at step {saved} of 20" in output for output in outputs)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    output, _ = (finish(process, timeout=200) for process in pair(*command))
    assert f"continuing from step {saved} of 20" in output
    same_training(tmp_path / "run", alone)
    output = finish(train(TOY, tmp_path / "copy", *command[1:], devices=4))  # and by one process
    assert f"continuing from step {saved} of 20" in output
    same_training(tmp_path / "copy", alone)
