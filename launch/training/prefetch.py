"""Batches for the calls of a compiled step, which a thread builds and moves to the devices ahead of their use."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from launch.training.program import Batch


def calls(
    batches: Iterable[Batch], start: int, total: int, most: int, ends: Callable[[int], bool]
) -> Iterator[tuple[int, Batch]]:
    """(1, a batch) of each step from `start` + 1 to `total`, or (`most`, those of so many stacked).

    Every call has one of these two lengths, so that two programs suffice: where fewer steps are left before the next at
    which a call `ends`, or batches differ in shape, the steps come one by one.

    Raises:
      ValueError: there are too few batches.
    """
    batches, at = iter(batches), start
    while at < total:
        whole = at + most <= total and not any(map(ends, range(at + 1, at + most)))
        part = list(itertools.islice(batches, most if whole else 1))
        if not part or (whole and len(part) < most):
            raise ValueError(f"the batches end after step {at + len(part)} of {total}")
        if len(part) > 1 and len({_shapes(batch) for batch in part}) == 1:
            yield most, {name: np.stack([batch[name] for batch in part]) for name in part[0]}
        else:
            yield from ((1, batch) for batch in part)
        at += len(part)


def _shapes(batch: Batch) -> tuple:
    return tuple((name, np.shape(batch[name]), np.asarray(batch[name]).dtype) for name in sorted(batch))


def prefetch(batches: Iterable[Any], put: Callable[[Any], Any], depth: int = 2) -> Generator[Any, None, None]:
    """Build batches and start their transfer to the devices in a thread: `depth` batches wait, one more is being built.

    An exception in the thread is raised when the next batch is requested. Closing the generator ends the
    thread.
    """
    buffer: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def offer(item) -> bool:
        while not closed.is_set():
            try:
                buffer.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for batch in batches:
                if not offer((put(batch), None)):
                    return
        except BaseException as error:  # handed over to the consumer, who raises it
            offer((None, error))
        else:
            offer((None, StopIteration()))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            batch, error = buffer.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        closed.set()
        thread.join(timeout=5)
