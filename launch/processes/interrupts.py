"""Signals that ask a command to stop, noted from the very start: before the imports, which take seconds."""

import os
import signal
import sys

STOPPING = (signal.SIGTERM, signal.SIGINT)
received: list[int] = []  # the signals that came before the work began


def listen() -> None:
    """Note SIGTERM and Ctrl-C in `received`; a second Ctrl-C ends the process."""
    for number in STOPPING:
        signal.signal(number, _note)


def say(text: str) -> None:
    """Write a line to standard error from a signal handler, where buffered files may be in use."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


def _note(number: int, frame: object) -> None:
    if number == signal.SIGINT and number in received:
        os._exit(128 + signal.SIGINT)
    received.append(number)
    say(f"received {signal.Signals(number).name}: stopping before the work begins")
