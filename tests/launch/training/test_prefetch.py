"""Batches that are built ahead: order, errors, depth, the end of the thread."""

import threading
import time

import pytest

from launch.training.prefetch import prefetch


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not workers()
    yield
    until(lambda: not workers())


# -- prefetch ---------------------------------------------------------------------------------


def test_prefetch_keeps_the_order():
    feed = prefetch(iter(range(50)), lambda i: 10 * i, depth=3)
    assert list(feed) == [10 * i for i in range(50)]


@pytest.mark.parametrize("where", ["batches", "put"])
def test_prefetch_raises_where_the_batch_is_asked_for(where):
    def fail(i):
        if i == 2:
            raise OSError("image 2 is damaged")
        return i

    batches, put = (map(fail, range(5)), lambda i: i) if where == "batches" else (range(5), fail)
    feed = prefetch(batches, put)
    assert [next(feed), next(feed)] == [0, 1]  # what came before is not lost
    with pytest.raises(OSError, match="image 2 is damaged"):
        next(feed)


def test_prefetch_runs_ahead_so_far_and_no_further():
    built = []
    feed = prefetch(range(100), built.append, depth=3)
    assert not built  # nothing is built before the first is asked for
    next(feed)
    until(lambda: len(built) == 1 + 3 + 1)  # taken, waiting, in hand
    time.sleep(0.3)
    assert len(built) == 5
    next(feed)
    until(lambda: len(built) == 6)
    feed.close()


def test_closing_ends_the_thread():
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield len(asked)

    feed = prefetch(endless(), lambda i: i)
    next(feed)
    assert len(workers()) == 1
    feed.close()
    assert not workers()
    before = len(asked)
    time.sleep(0.05)
    assert len(asked) == before
