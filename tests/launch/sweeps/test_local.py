"""Members as processes: who gets what, what is noted when they end, and how they are stopped.

The processes here are small scripts in the place of `launch.train`; tests/launch/test_sweep.py has the real ones.
"""

import errno
import json
import os
import signal
import sys
import threading
import time

import pytest

from launch.processes.stop import Preempted
from launch.sweeps import local
from launch.sweeps.members import Options, SweepError, define, status
from tests.launch import sweep_toy

CORES = sorted(os.sched_getaffinity(0))
RESULT = "open(path + '/result.json', 'w').write('{}')"
NOTE = """
note = {"cores": sorted(os.sched_getaffinity(0)), "begin": time.time()}
time.sleep(0.3)
json.dump(note | {"end": time.time()}, open(path + "/note.json", "w"))
"""


def sweep_of(workdir, count: int):
    return define(
        workdir,
        config_file="tests/launch/sweep_toy.py",
        base=sweep_toy.get_config(),
        overrides=[{"seed": s} for s in range(count)],
    )


@pytest.fixture
def scripted(monkeypatch):
    """Let members run the given script, which knows its `path` and `seed`, instead of the real command."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(local, "_POLL", 0.02)

    def use(script: str) -> None:
        head = "import json, os, signal, sys, time\npath, seed = sys.argv[1], int(sys.argv[2])\n"
        make = lambda sweep, member, flags: [
            *(sys.executable, "-S", "-c", head + script, str(member.path), str(member.overrides["seed"]))
        ]
        monkeypatch.setattr(local, "command", make)

    return use


def test_cores_are_divided_and_never_shared(tmp_path, scripted):
    scripted(NOTE + RESULT)
    sweep, watched = sweep_of(tmp_path, 2 * len(CORES) + 1), []
    local.execute(sweep, sweep.members, Options(watch=lambda running: watched.append(set(running))))
    notes = [json.loads((m.path / "note.json").read_text()) for m in sweep.members]
    for i, a in enumerate(notes):
        for b in notes[:i]:
            if a["begin"] < b["end"] and b["begin"] < a["end"]:
                assert not set(a["cores"]) & set(b["cores"])
    assert sorted({core for note in notes for core in note["cores"]}) == CORES
    assert max(map(len, watched)) == len(CORES) and watched[-1] == set()
    assert set().union(*watched) == {m.name for m in sweep.members}
    assert sorted(os.sched_getaffinity(0)) == CORES  # the sweep's own is as before
    assert all(status(m).state == "done" for m in sweep.members)


def test_fewer_members_than_cores_get_more_each(tmp_path, scripted):
    scripted(NOTE + RESULT)
    sweep = sweep_of(tmp_path, 1)
    local.execute(sweep, sweep.members, Options())
    assert json.loads((sweep.members[0].path / "note.json").read_text())["cores"] == CORES


def test_failures_are_noted_and_do_not_stop_the_rest(tmp_path, scripted):
    scripted(
        "print('to the log'); print('and this', file=sys.stderr, flush=True)\n"
        "if seed == 0: sys.exit(3)\n"
        "if seed == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if seed == 2: sys.exit(0)\n" + RESULT
    )
    sweep, ended = sweep_of(tmp_path, 4), []
    local.execute(sweep, sweep.members, Options(processes=1, ended=ended.append))
    found = [status(m) for m in sweep.members]
    assert [s.state for s in found] == ["failed", "failed", "started", "done"]  # the third just left
    assert found[0].error == "exit status 3" and found[1].error.startswith("killed by SIGKILL")
    assert ended == list(sweep.members)
    log = (sweep.members[0].path / "log.txt").read_text().splitlines()
    assert log[0].startswith("$ ") and log[-2:] == ["to the log", "and this"]

    scripted(RESULT)
    local.execute(sweep, sweep.members[:1], Options())
    assert status(sweep.members[0]).state == "done" and not (sweep.members[0].path / "error.txt").exists()
    assert "to the log" in (sweep.members[0].path / "log.txt").read_text()  # appended to


def test_members_are_asked_for_one_at_a_time(tmp_path, scripted):
    """An iterator sees what has ended before it has to decide on the next."""
    scripted(RESULT)
    sweep, story = sweep_of(tmp_path, 3), []

    def source():
        for member in sweep.members:
            story.append(f"asked {member.name}")
            yield member

    local.execute(sweep, source(), Options(processes=1, ended=lambda m: story.append(f"ended {m.name}")))
    assert story == [f"{what} seed={s}" for s in range(3) for what in ("asked", "ended")]


SAVING = """
def save(number, frame):
    open(path + "/saved", "a").write("x")
    if seed == 0: sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(path + "/ready", "w")
while True: time.sleep(0.02)
"""


def interrupt(member, number: int, times: int) -> threading.Thread:
    """Send this process the signal once the member is ready, and again after it has saved."""

    def send():
        for name in ("ready", "saved")[:times]:
            while not (member.path / name).exists():
                time.sleep(0.02)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_sweep_lets_its_members_save(tmp_path, scripted, number):
    scripted(SAVING)
    sweep = sweep_of(tmp_path, 2)
    original = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        thread = interrupt(sweep.members[0], number, 1)
        with pytest.raises(Preempted, match=f"asked to stop by {number.name}"):
            local.execute(sweep, sweep.members, Options(processes=1))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, original)
    thread.join()
    assert (sweep.members[0].path / "saved").read_text() == "x"
    assert [status(m).state for m in sweep.members] == ["started", "waiting"]  # not failed, and no other begun


def test_a_second_interrupt_does_not_wait(tmp_path, scripted):
    scripted(SAVING.replace("if seed == 0: sys.exit(0)", ""))
    sweep = sweep_of(tmp_path, 1)
    original = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        thread = interrupt(sweep.members[0], signal.SIGINT, 2)
        with pytest.raises(Preempted, match="SIGINT"):
            local.execute(sweep, sweep.members, Options())
    finally:
        signal.signal(signal.SIGINT, original)
    thread.join()
    assert (sweep.members[0].path / "saved").exists() and status(sweep.members[0]).state == "started"


def test_an_error_of_the_sweep_leaves_no_process(tmp_path, scripted, monkeypatch):
    scripted(
        "other = os.path.dirname(path) + '/pid'\n"
        "if seed == 1:\n    while not os.path.exists(other): time.sleep(0.02)\n    sys.exit()\n"
        "open(other + '.new', 'w').write(str(os.getpid())); os.rename(other + '.new', other); time.sleep(60)"
    )
    monkeypatch.setattr(local, "devices", lambda environment: ("gpu", ("0", "1")))  # two at once, even on one core
    sweep = sweep_of(tmp_path, 2)

    def full(member):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        local.execute(sweep, sweep.members, Options(ended=full))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_members_inherit_what_keeps_the_folder_locked(tmp_path, scripted):
    scripted("os.fstat(int(os.environ['KEPT']))\n" + RESULT)
    sweep = sweep_of(tmp_path, 1)
    with open(tmp_path / ".lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEPT", str(lock.fileno()))
        local.execute(sweep, sweep.members, Options(keep_open=(lock.fileno(),)))
    assert status(sweep.members[0]).state == "done"


def test_dividing_cores():
    divide = lambda *args: [slot.cores for slot in local.divide("cpu", (), *args)]
    assert divide(range(8), 0, 100) == [(i,) for i in range(8)]
    assert divide(range(8), 0, 3) == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert divide([4, 6, 9], 2, 100) == [(4,), (6, 9)]
    assert divide(range(2), 0, 0) == []
    with pytest.raises(SweepError, match=r"--processes=3, but there are 2 cores here; take at most 2"):
        divide(range(2), 3, 100)


def test_dividing_gpus():
    divide = lambda *args: [(dict(s.environment), len(s.cores)) for s in local.divide("gpu", *args)]
    visible = lambda names: {"CUDA_VISIBLE_DEVICES": names}
    assert divide("0123", range(16), 0, 100) == [(visible(g), 4) for g in "0123"]
    assert divide("0123", range(16), 0, 2) == [(visible(g), 8) for g in "01"]  # one each: as with many members
    assert divide("0123", range(16), 2, 100) == [(visible("0,1"), 8), (visible("2,3"), 8)]
    assert divide(["GPU-a", "MIG-b"], range(2), 0, 2) == [(visible("GPU-a"), 1), (visible("MIG-b"), 1)]
    together = divide("01", range(16), 3, 100)
    assert [e["CUDA_VISIBLE_DEVICES"] for e, _ in together] == ["0", "1", "0"]
    assert all(0.4 < float(e["XLA_PYTHON_CLIENT_MEM_FRACTION"]) < 0.5 for e, _ in together)


def test_dividing_tpu_chips():
    slots = local.divide("tpu", "0123", range(8), 0, 100)
    assert [s.environment["TPU_VISIBLE_CHIPS"] for s in slots] == list("0123")
    assert all(s.environment["TPU_PROCESS_BOUNDS"] == "1,1,1" for s in slots)
    with pytest.raises(SweepError, match="4 TPU chips"):
        local.divide("tpu", "0123", range(8), 5, 100)


def test_devices_are_asked_of_another_process(monkeypatch):
    assert local.devices({"JAX_PLATFORMS": "cpu"}) == ("cpu", ())
    monkeypatch.setattr(local, "_PROBE", "print('a warning')\nprint('[\"gpu\", 3]')")
    assert local.devices({}) == ("gpu", ("0", "1", "2"))
    assert local.devices({"CUDA_VISIBLE_DEVICES": "5, 7,MIG-1"}) == ("gpu", ("5", "7", "MIG-1"))
    monkeypatch.setattr(local, "_PROBE", "import sys; sys.exit('no driver')")
    with pytest.raises(SweepError, match="JAX does not start here:\nno driver"):
        local.devices({})
    monkeypatch.setattr(local, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(local, "_PROBE_TIMEOUT", 0.2)
    with pytest.raises(SweepError, match="JAX found no devices"):
        local.devices({})


def test_the_real_question():
    """JAX's own answer, on whatever is here."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": ""}
    platform, names = local.devices(os.environ | flags)
    assert platform in ("cpu", "gpu", "tpu") and (platform != "cpu" or names == ("0", "1", "2"))
