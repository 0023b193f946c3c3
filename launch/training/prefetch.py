"""Batches that a thread builds and moves to the devices ahead of their use."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any


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
