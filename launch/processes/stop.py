"""Stopping a run where nothing is lost: on SIGTERM or Ctrl-C, on all processes at the same place."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from launch.processes import interrupts


class Preempted(Exception):
    """The run was asked to stop, has saved what it had, and can be continued.

    Attributes:
      number: of the signal that asked; None if something else did.
    """

    def __init__(self, text: str, number: int | None = None):
        super().__init__(text)
        self.number = number


class Stop:
    """Whether to stop; asked at every place where nothing would be lost.

    Attributes:
      asked: set to ask for a stop.
      number: of the signal that asked, if one did.
      advance: called, in a run of several processes, whenever one asks whether to stop; see `launch.processes.hosts`.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.number: int | None = None
        self.advance: Callable[[], None] = lambda: None
        self._count = itertools.count(1)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C ask the run to stop at the next safe place; a second Ctrl-C interrupts it."""
        alone = jax.process_count() == 1

        def ask(number: int, frame: object = None) -> None:
            del frame
            if self.number == number == signal.SIGINT:
                raise KeyboardInterrupt
            self.number = number
            interrupts.say(f"received {signal.Signals(number).name}: saving and stopping")
            self.asked.set()
            if not alone:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX's handler: the processes agree on where to stop

        before = {number: signal.signal(number, ask) for number in interrupts.STOPPING[0 if alone else 1 :]}
        try:
            if interrupts.received:
                self.number = interrupts.received[0]
                self.asked.set()
            yield
        except Preempted as stop:
            stop.number = stop.number or self.number
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop here. In a run of several processes all must ask equally often; all get the same answer."""
        if jax.process_count() == 1:
            return self.asked.is_set()
        self.advance()
        # The agreement is on a count that only grows, whichever stage asks.
        return multihost_utils.reached_preemption_sync_point(next(self._count))

    def check(self) -> None:
        """Raise `Preempted` if the run was asked to stop."""
        if self.requested():
            raise Preempted("stopped on request; all that was finished is kept")


def process_0_says(answer: bool) -> bool:
    """Process 0's answer, on every process: they must not diverge over a file that only some of them see yet."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def wait_for_all(name: str) -> None:
    """Return once every process has arrived here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
