"""Stopping a run where nothing is lost: on SIGTERM, on all processes at the same place."""

import itertools
import signal
import threading
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was asked to stop (SIGTERM), has saved what it had, and can be continued."""


class Stop:
    """Whether to stop; asked at every place where nothing would be lost.

    Attributes:
      asked: set to ask for a stop.
      advance: called, in a run of several processes, whenever one asks whether to stop; see `launch.processes.hosts`.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.advance: Callable[[], None] = lambda: None
        self._count = itertools.count(1)

    def on_sigterm(self) -> None:
        """From now on SIGTERM asks the run to stop at the next safe place instead of ending the process."""
        if jax.process_count() > 1:
            return  # JAX's own handler is in place: it makes the processes agree on the step to stop after

        def ask(signum, frame):
            del frame
            logging.warning("received %s: saving and stopping", signal.Signals(signum).name)
            self.asked.set()

        signal.signal(signal.SIGTERM, ask)

    def requested(self) -> bool:
        """Whether to stop here. In a run of several processes all must ask equally often: all get the same answer."""
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
    """Process 0's answer, on every process: a file that only some of them see yet must not part their ways."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def wait_for_all(name: str) -> None:
    """Return once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
