"""Processes that are lost, stuck or failed, as the others see them: mostly on a dictionary instead of JAX's service."""

import signal
import socket
import threading
import time

import pytest

from launch.processes import hosts
from launch.processes.hosts import Sign
from tests.commands import finish, start

LIMITS = {"stuck_after": 100.0, "lost_after": 20.0}


def sign(progress=5, *, beat_since=1000.0, progress_since=1000.0, state="alive", host="n"):
    return Sign(host, 7, progress, state, beat_since, progress_since)


def judged(*signs, now=1000.0, **limits):
    return hosts.verdict(dict(enumerate(signs)), now, **(LIMITS | limits))


def test_all_is_well():
    assert judged(sign(5), sign(6)) is None
    assert judged(sign(), sign(beat_since=980.0)) is None  # at the limit
    assert judged(sign(5, progress_since=900.0), sign(6)) is None


def test_a_process_without_a_sign_is_lost():
    found = judged(sign(), sign(beat_since=979.0, host="n1"), sign(beat_since=900.0, host=""))
    assert found.startswith("no sign of life for 20 s from process 1 on n1, process 2:")
    assert judged(sign(), sign(beat_since=0.0, state="left")) is None


def test_the_one_behind_is_stuck_and_not_those_that_wait_for_it():
    waiting = sign(6, progress_since=890.0)
    found = judged(waiting, sign(5, progress_since=880.0, host="n7"), waiting)
    assert found.startswith("no progress for 100 s of process 1 on n7: stuck?") and "--stuck_after" in found
    assert judged(waiting, sign(5, progress_since=901.0)) is None  # it has moved since
    assert judged(waiting, sign(5, progress_since=0.0), stuck_after=0.0) is None


def test_nobody_ahead_may_be_a_long_stage():
    assert judged(sign(5, progress_since=401.0), sign(5, progress_since=401.0)) is None
    found = judged(sign(5, progress_since=399.0), sign(5, progress_since=399.0))
    assert found.startswith("no progress for 600 s of none of the processes")


def test_a_failure_counts_once_the_others_have_had_time_to_fail_alike():
    failed = sign(state="ValueError: no such file", beat_since=997.0, host="n1")
    assert judged(sign(), failed) is None
    assert judged(sign(), failed, now=1002.0) == "process 1 on n1 has failed: ValueError: no such file"


def test_signs_are_read_as_they_were_written():
    first = Sign("", -1, 0, "alive", 0.0, 0.0)
    heard = first.heard(hosts.encode(3, 0, "n1", "alive"), 10.0)
    assert (heard.host, heard.beat, heard.beat_since, heard.progress_since) == ("n1", 3, 10.0, 0.0)
    heard = heard.heard(hosts.encode(3, 2, "n1", "KeyError: 'a\n b'"), 20.0)
    assert (heard.beat_since, heard.progress_since, heard.state) == (10.0, 20.0, "KeyError: 'a b'")


class Shared(dict):
    """A store of several monitors, that can be made to fail."""

    broken = False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.broken:
            raise RuntimeError("UNAVAILABLE: failed to connect\nmore")
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_dir_get(self, key):
        if self.broken:
            raise RuntimeError("UNAVAILABLE: failed to connect\nmore")
        return [(k, v) for k, v in list(self.items()) if k.startswith(key)]


@pytest.fixture
def group():
    """Three monitors over one store, and what each ended with."""
    store, ended = Shared(), {}
    told = [threading.Event() for _ in range(3)]

    def make(process):
        def end(why):
            ended[process] = why
            told[process].set()

        return hosts.Monitor(store, process, 3, stuck_after=0.3, lost_after=1.0, interval=0.02, end=end)

    monitors = [make(p) for p in range(3)]
    yield store, monitors, told, ended
    for monitor in monitors:
        monitor.closed.set()


def wait(*events):
    assert all(event.wait(20) for event in events)


def test_a_process_that_never_came_is_missed_by_all(group):
    store, (first, second, _), told, ended = group
    first.stuck_after = 0.0
    first.start(), second.start()
    wait(told[0], told[1])
    assert ended[0] == ended[1] and "no sign of life for 1 s from process 2" in ended[0]


def test_a_stuck_process_ends_all_itself_too(group):
    _, monitors, told, ended = group
    for monitor in monitors:
        monitor.start()
    deadline = time.monotonic() + 20
    while len(ended) < 3 and time.monotonic() < deadline:
        monitors[0].advance(), monitors[2].advance()
        time.sleep(0.01)
    assert len(ended) == 3 and len(set(ended.values())) == 1
    assert ended[0].startswith("no progress for 0 s of process 1 on ")


def test_without_process_0_the_others_end(group):
    store, (_, second, third), told, ended = group
    second.start(), third.start()
    wait(told[1])
    assert "no sign of life for 1 s from process 0" in ended[1]


def test_a_service_that_does_not_answer(group):
    store, (_, second, _), told, ended = group
    store.broken = True
    second.start()
    wait(told[1])
    assert ended[1] == "process 0 cannot be reached: UNAVAILABLE: failed to connect"


def test_leaving_is_no_loss_and_failing_is_told(group):
    store, monitors, told, ended = group
    for monitor in monitors[:2]:
        monitor.start()
    monitors[2].post()
    monitors[2].close()
    monitors[1].close("ArithmeticError: was not to be")
    wait(told[0])
    assert ended[0].startswith("process 1 on ") and ended[0].endswith("has failed: ArithmeticError: was not to be")


def test_the_last_word_stands(group):
    store, (_, second, _), _, _ = group
    second.close("KeyError: 'x'")
    second.post()  # its thread, in the middle of a round
    assert store["alignax/signs/1"].endswith("KeyError: 'x'")


def test_one_process_needs_no_watch():
    before = threading.active_count()
    with hosts.watched() as advance:
        advance()
        assert threading.active_count() == before


# -- two processes ----------------------------------------------------------------------------


@pytest.fixture
def pair(monkeypatch):
    """Starts two real processes that watch each other; waits until both do."""
    started = []

    def start_pair(what):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", address)
        started.extend(start("-m", "tests.launch.processes.hosts_worker", address, str(i), what) for i in range(2))
        for process in started:
            while (line := process.stdout.readline()) and "watching" not in line:
                pass
        return started

    yield start_pair
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_process_that_is_gone_ends_the_other(pair):
    first, second = pair("stay")
    second.send_signal(signal.SIGKILL)
    output = finish(first, hosts.EXIT_STATUS, timeout=60)
    assert f"The run ends: no sign of life for 2 s from process 1 on {socket.gethostname()}: killed" in output
    assert "The same command continues" in output


def test_a_process_that_fails_ends_the_other(pair):
    first, second = pair("fail")
    output = finish(first, hosts.EXIT_STATUS, timeout=60)
    assert f"process 1 on {socket.gethostname()} has failed: ArithmeticError: was not to be" in output
    assert "ArithmeticError: was not to be" in finish(second, None, timeout=60)
