"""Whether all processes of a run are there and getting on: a run that lost one says which and ends.

Collectives wait for everybody, so one host that is gone or stuck holds up all. Each process therefore posts signs of
life, and how far it is, in the key-value store of JAX's coordination service. Process 0 looks at all of them, the
others at process 0 and at its verdict.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import jax
from absl import logging

from launch.run import Preempted

EXIT_STATUS = os.EX_TEMPFAIL  # 75: the same command goes on from the last checkpoint
STUCK_AFTER = 600.0  # seconds without progress of one process while others are further
_ALL_STUCK = 6  # times that without progress of any: nobody being further, it may be a long stage
_LOST_AFTER = 75.0  # seconds without a sign of life; JAX itself gives a process up after 100, in words of its own
_INTERVAL = 5.0  # seconds between two signs
_SIGNS, _VERDICT = "alignax/signs/", "alignax/verdict/"


class Store(Protocol):
    """What is used of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


@dataclass(frozen=True)
class Sign:
    """The last that was heard of a process, by the clock of who heard it.

    Attributes:
      host: its name, or "" before it was first heard of.
      beat: grows as long as the process lives.
      progress: grows as it gets on: how often it came to a place where it could stop.
      state: "alive", "left" (as it should), or why it failed.
      beat_since: when `beat` became what it is, in seconds.
      progress_since: the same of `progress`.
    """

    host: str
    beat: int
    progress: int
    state: str
    beat_since: float
    progress_since: float

    def heard(self, value: str, now: float) -> "Sign":
        """The sign after `value`, as `encode` makes it, was read at `now`."""
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
    """Why the run cannot go on, or None.

    Args:
      signs: of every process; those that have left are passed over.
      now: seconds, by the clock of the signs.
      stuck_after: seconds without progress; 0 for any number.
      lost_after: seconds without a sign.
    """
    name = lambda process: f"process {process}" + (f" on {signs[process].host}" if signs[process].host else "")
    for process, sign in signs.items():
        if sign.state not in ("alive", "left") and now - sign.beat_since > lost_after / 5:
            return f"{name(process)} has failed: {sign.state}"
    here = {process: sign for process, sign in signs.items() if sign.state == "alive"}
    lost = [name(p) for p, sign in here.items() if now - sign.beat_since > lost_after]
    if lost:
        return f"no sign of life for {lost_after:.0f} s from {', '.join(lost)}: killed, crashed, or cut off"
    if not here or not stuck_after:
        return None
    last, first = (f(sign.progress for sign in here.values()) for f in (min, max))
    behind = [p for p, sign in here.items() if sign.progress == last]
    patience = stuck_after if last < first else _ALL_STUCK * stuck_after
    if all(now - here[p].progress_since > patience for p in behind):
        who = ", ".join(map(name, behind)) if last < first else "none of the processes"
        return f"no progress for {patience:.0f} s of {who}: stuck? (a longer stage wants a larger --stuck_after)"
    return None


class Monitor(threading.Thread):
    """Posts this process's signs, and ends the process when the run cannot go on.

    Args:
      store: JAX's coordination service.
      process: this one's number.
      count: how many there are.
      stuck_after, lost_after: as for `verdict`.
      interval: seconds between two signs.
      end: called with the message; does not return in a real run.
    """

    def __init__(
        self,
        store: Store,
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
        """This process has got one step further."""
        self.progress += 1

    def post(self, state: str = "alive") -> None:
        """Tell the others; nothing more once this process has said that it leaves."""
        with self.lock:
            if state == "alive" and self.closed.is_set():
                return
            self.beat += 1
            value = encode(self.beat, self.progress, socket.gethostname(), state)
            self.store.key_value_set(f"{_SIGNS}{self.process}", value, allow_overwrite=True)

    def look(self) -> str | None:
        """Read the signs; why the run cannot go on, or None."""
        now = time.monotonic()
        if self.process:
            said = self.store.key_value_dir_get(_VERDICT)
            if said:
                return said[0][1]
            # Process 0 alone sees how far all are; of process 0 the others see whether it lives.
            stuck_after = 0.0
        else:
            stuck_after = self.stuck_after
        found = self.store.key_value_dir_get(_SIGNS)
        for key, value in found:
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
            except RuntimeError as error:  # JAX's, of a service that does not answer
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
                time.sleep(2 * self.interval)  # the service ends with this process: let the others read it
            self.end(why)
            return

    def close(self, failure: str = "") -> None:
        """Leave; with `failure`, the others will not wait for this process."""
        self.closed.set()
        try:
            self.post(failure or "left")
        except RuntimeError as error:
            logging.warning("the other processes cannot be told that this one leaves: %s", error)


def _exit(why: str) -> None:
    """End this process at once: its main thread may be waiting in a collective that never comes back."""
    print(
        f"\nThe run ends: {why}\n"
        "It goes on from its last checkpoint by the same command, on as many hosts as there are then.",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(EXIT_STATUS)


@contextlib.contextmanager
def watched(
    stuck_after: float = STUCK_AFTER, *, lost_after: float = _LOST_AFTER, interval: float = _INTERVAL
) -> Iterator[Callable[[], None]]:
    """While in it, a run of several processes ends if one of them is lost or stuck; gives what to call at each step.

    Args:
      stuck_after, lost_after: seconds, as for `verdict`.
      interval: seconds between two signs.
    """
    if jax.process_count() == 1:
        yield lambda: None
        return
    from jax._src import distributed  # the store has no public name

    monitor = Monitor(
        distributed.global_state.client,
        jax.process_index(),
        jax.process_count(),
        stuck_after=stuck_after,
        lost_after=lost_after,
        interval=interval,
    )
    monitor.post()  # from now on the others know this host by name
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
