"""Watches the processes of a run: if one is lost or stuck, the run says which and ends.

Collectives wait for every process, so one lost or stuck host blocks all. Each process therefore posts signs of life and
its progress in the key-value store of JAX's coordination service. Process 0 reads all of them, the others read those of
process 0 and its verdict.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
from absl import logging

from launch.processes.stop import Preempted

EXIT_STATUS = os.EX_TEMPFAIL  # 75: the same command continues from the last checkpoint
STUCK_AFTER = 600.0  # seconds without progress of one process while others are further
_ALL_STUCK = 6  # times as long without progress of any process: it may be a long stage
_LOST_AFTER = 75.0  # seconds without a sign of life; JAX gives up a process after 100, with its own message
_INTERVAL = 5.0  # seconds between two signs
_SIGNS, _VERDICT = "alignax/signs/", "alignax/verdict/"


class KeyValueStore(Protocol):
    """The part of JAX's coordination service that is used here."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


@dataclass(frozen=True)
class Sign:
    """The latest sign of life of a process, by the clock of the process that reads it.

    Attributes:
      host: its name, or "" before its first sign.
      beat: increases as long as the process lives.
      progress: how often the process came to a place where it could stop.
      state: "alive", "left" (in good order), or the reason of its failure.
      beat_since: when `beat` last changed, in seconds.
      progress_since: when `progress` last changed, in seconds.
    """

    host: str
    beat: int
    progress: int
    state: str
    beat_since: float
    progress_since: float

    def heard(self, value: str, now: float) -> "Sign":
        """The sign after reading `value`, made by `encode`, at `now`."""
        beat, progress, host, state = value.split(" ", 3)
        new = replace(self, host=host, beat=int(beat), progress=int(progress), state=state)
        if new.beat != self.beat:
            new = replace(new, beat_since=now)
        if new.progress != self.progress:
            new = replace(new, progress_since=now)
        return new


def encode(beat: int, progress: int, host: str, state: str) -> str:
    """A sign as it is stored."""
    return f"{beat} {progress} {host} {' '.join(state.split())}"


def verdict(signs: Mapping[int, Sign], now: float, *, stuck_after: float, lost_after: float) -> str | None:
    """Why the run cannot continue, or None.

    Args:
      signs: of every process; those of processes that have left are ignored.
      now: seconds, by the clock of the signs.
      stuck_after: seconds without progress after which a process is stuck; 0: never.
      lost_after: seconds without a sign after which a process is lost.
    """
    name = lambda process: f"process {process}" + (f" on {signs[process].host}" if signs[process].host else "")
    for process, sign in signs.items():
        if sign.state not in ("alive", "left") and now - sign.beat_since > lost_after / 5:
            return f"{name(process)} has failed: {sign.state}"
    here = {process: sign for process, sign in signs.items() if sign.state == "alive"}
    lost = [name(p) for p, sign in here.items() if now - sign.beat_since > lost_after]
    if lost:
        return f"no sign of life for {lost_after:.0f} s from {', '.join(lost)}: killed, crashed, or disconnected"
    if not here or not stuck_after:
        return None
    last, first = (f(sign.progress for sign in here.values()) for f in (min, max))
    behind = [p for p, sign in here.items() if sign.progress == last]
    patience = stuck_after if last < first else _ALL_STUCK * stuck_after
    if all(now - here[p].progress_since > patience for p in behind):
        who = ", ".join(map(name, behind)) if last < first else "none of the processes"
        return f"no progress for {patience:.0f} s of {who}: stuck? (a longer stage needs a larger --stuck_after)"
    return None


class Monitor(threading.Thread):
    """Posts this process's signs, and ends the process when the run cannot continue.

    Args:
      store: JAX's coordination service.
      process: number of this process.
      count: number of processes.
      stuck_after, lost_after: as for `verdict`.
      interval: seconds between two signs.
      end: ends the run; by default this process, at once.
    """

    def __init__(
        self,
        store: KeyValueStore,
        process: int,
        count: int,
        *,
        stuck_after: float = STUCK_AFTER,
        lost_after: float = _LOST_AFTER,
        interval: float = _INTERVAL,
        end: Callable[[str], None] | None = None,
    ):
        super().__init__(name="hosts", daemon=True)
        self.store, self.process = store, process
        self.stuck_after, self.lost_after, self.interval = stuck_after, lost_after, interval
        self.end = end or _exit
        self.beat = self.progress = 0
        self.closed, self.lock = threading.Event(), threading.Lock()
        now = time.monotonic()
        watched = range(count) if process == 0 else (0,)
        self.signs = {p: Sign("", -1, 0, "alive", now, now) for p in watched}
        self.reached = now

    def advance(self) -> None:
        """Note that this process has made progress."""
        self.progress += 1

    def post(self, state: str = "alive") -> None:
        """Post a sign; none after this process has announced that it leaves."""
        with self.lock:
            if state == "alive" and self.closed.is_set():
                return
            self.beat += 1
            value = encode(self.beat, self.progress, socket.gethostname(), state)
            self.store.key_value_set(f"{_SIGNS}{self.process}", value, allow_overwrite=True)

    def look(self) -> str | None:
        """Read the signs; returns why the run cannot continue, or None."""
        now = time.monotonic()
        if self.process:
            verdicts = self.store.key_value_dir_get(_VERDICT)
            if verdicts:
                return verdicts[0][1]
            # Only process 0 sees the progress of all; the others see whether process 0 lives.
            stuck_after = 0.0
        else:
            stuck_after = self.stuck_after
        for key, value in self.store.key_value_dir_get(_SIGNS):
            process = int(key.rsplit("/", 1)[1])
            if process in self.signs:
                self.signs[process] = self.signs[process].heard(value, now)
        return verdict(self.signs, now, stuck_after=stuck_after, lost_after=self.lost_after)

    def run(self) -> None:
        while not self.closed.is_set():
            try:
                self.post()
                why = self.look()
                self.reached = time.monotonic()
            except RuntimeError as error:  # raised by JAX if the service does not answer
                why = None
                if time.monotonic() - self.reached > self.lost_after:
                    why = f"process 0 cannot be reached: {str(error).splitlines()[0]}"
            if why is None:
                self.closed.wait(self.interval)
                continue
            if self.closed.is_set():
                return
            if self.process == 0:
                with contextlib.suppress(RuntimeError):
                    self.store.key_value_set(f"{_VERDICT}0", why, allow_overwrite=True)
                time.sleep(2 * self.interval)  # the service ends with this process: let the others read the verdict
            self.end(why)
            return

    def close(self, failure: str = "") -> None:
        """Leave; with `failure`, the others do not wait for this process."""
        self.closed.set()
        try:
            self.post(failure or "left")
        except RuntimeError as error:
            logging.warning("cannot announce to the other processes that this one leaves: %s", error)


def _exit(why: str) -> None:
    """End this process at once: its main thread may be waiting in a collective that never returns."""
    print(
        f"\nThe run ends: {why}\nThe same command continues from its last checkpoint, on any number of hosts.",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(EXIT_STATUS)


@contextlib.contextmanager
def watched(
    stuck_after: float = STUCK_AFTER, *, lost_after: float = _LOST_AFTER, interval: float = _INTERVAL
) -> Iterator[Callable[[], None]]:
    """Within it, a run of several processes ends if one is lost or stuck; gives the function to call at each step.

    Args:
      stuck_after, lost_after: seconds, as for `verdict`.
      interval: seconds between two signs.
    """
    if jax.process_count() == 1:
        yield lambda: None
        return
    from jax._src import distributed  # the store has no public name

    client: Any = distributed.global_state.client
    monitor = Monitor(
        client,
        jax.process_index(),
        jax.process_count(),
        stuck_after=stuck_after,
        lost_after=lost_after,
        interval=interval,
    )
    monitor.post()  # from now on the others know the name of this host
    monitor.start()
    failure = ""
    try:
        yield monitor.advance
    except Preempted:
        raise
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"[:500]
        raise
    finally:
        monitor.close(failure)
