"""What a sweep shows while it runs: one line as each member begins or ends and, on a terminal, a live table below."""

import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import IO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.sweeps.members import LOG, STATES, Member, Status, last_lines, status
from launch.training.program import LOSS

_REFRESH = 1.0  # seconds
_MOST_VALUES = 4
_RUNNING = "running"


class Board:
    """The progress of a sweep's members on a text stream; a context manager.

    Members that are not running are read from the disk only once, when they end.

    Args:
      members: of the sweep; `add` takes more.
      stream: standard output by default.
    """

    def __init__(self, members: Iterable[Member], stream: IO[str] | None = None):
        self.console = Console(file=stream or sys.stdout, markup=False, highlight=False)
        self.members: dict[str, Member] = {}
        self.statuses: dict[str, Status] = {}
        self.since: dict[str, float] = {}
        self.drawn = 0.0
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        for member in members:
            self.add(member)

    def add(self, member: Member) -> None:
        """Add a member, or read its status again."""
        self.members[member.name] = member
        self.statuses[member.name] = status(member)

    def __enter__(self) -> "Board":
        self.console.print(f"{len(self.members)} members: {self._counts() or 'none yet'}", soft_wrap=True)
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        self.live.stop()

    def watch(self, running: Collection[str]) -> None:
        """Show the running members, and print which have begun or ended since the last call; see `OnRunning`."""
        now = time.monotonic()
        for name in [name for name in self.since if name not in running]:
            self.add(self.members[name])
            self._print_end(name, now - self.since.pop(name))
        for name in sorted(set(running) - self.since.keys()):
            self.since[name] = now
            self.console.print(f"{_RUNNING}  {name}", soft_wrap=True)
        if self.console.is_terminal and (now - self.drawn >= _REFRESH or not running):
            self.drawn = now
            self.live.update(self._table(now), refresh=True)

    def _print_end(self, name: str, seconds: float) -> None:
        now = self.statuses[name]
        counts = Counter(s.state for s in self.statuses.values())
        ending = {"done": "done", "failed": "failed"}.get(now.state, "stopped")
        what = shown_values(now.result or now.values)
        if now.state == "failed":
            what = ": ".join(
                [now.error, *(x for x in last_lines(self.members[name].path / LOG, 1) if not x.startswith("$ "))]
            )
        line = f"{ending:<7}  {name}  {duration(seconds)}  {what}"
        self.console.print(f"{line.rstrip()}  [{counts['done']}/{len(self.members)}]", soft_wrap=True)

    def _table(self, now: float) -> Table:
        """The running members, as many as fit, with the number of members in each state as a caption."""
        table = Table(box=box.SIMPLE_HEAD, caption=self._counts(), caption_justify="left", expand=True)
        for title in ("running", "step", "time", "last values"):
            justify = "right" if title in ("step", "time") else "left"
            table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis")
        fit = max(1, self.console.size.height - 8)
        for name in sorted(self.since)[:fit]:
            current = status(self.members[name])
            step = "" if current.step is None else str(current.step)
            table.add_row(name, step, duration(now - self.since[name]), shown_values(current.values))
        if len(self.since) > fit:
            table.add_row(f"and {len(self.since) - fit} more", "", "", "")
        return table

    def _counts(self) -> str:
        counts = Counter(_RUNNING if n in self.since else s.state for n, s in self.statuses.items())
        names = {"started": "stopped"}
        states = (_RUNNING, *STATES)
        return ", ".join(f"{counts[state]} {names.get(state, state)}" for state in states if counts[state])


def summary(members: Iterable[Member], stream: IO[str] | None = None) -> Counter:
    """Print a line for every member with its result, and the end of the log of every failed one.

    Returns:
      The number of members in each state.
    """
    console = Console(file=stream or sys.stdout, markup=False, highlight=False)
    by_name = {member.name: (member, status(member)) for member in members}
    width = max(map(len, by_name), default=0)
    console.print()
    for name, (member, now) in by_name.items():
        what = now.error if now.state == "failed" else shown_values(now.result or {})
        state = "stopped" if now.state == "started" else now.state
        console.print(f"{state:<7}  {name:<{width}}  {what}".rstrip(), soft_wrap=True)
        if now.state == "failed":
            console.print(log_end(member), soft_wrap=True)
    return Counter(now.state for _, now in by_name.values())


def log_end(member: Member) -> str:
    """The path of a member's log and, indented, its last lines."""
    log = member.path / LOG
    lines = last_lines(log) or ["(it has no log)"]
    return "\n".join([f"    {log} ends:", *(f"      {line}" for line in lines)])


def shown_values(values: Mapping[str, float | None]) -> str:
    """A few values in one line, the loss first, without speeds."""
    keys = [key for key in values if not key.endswith("_per_second")]
    keys.sort(key=lambda key: key.split("/")[-1] != LOSS)
    number = lambda value: "nan" if value is None else f"{value:.4g}"
    more = " …" if len(keys) > _MOST_VALUES else ""
    return "  ".join(f"{key} {number(values[key])}" for key in keys[:_MOST_VALUES]) + more


def duration(seconds: float) -> str:
    """ "1:02:03", "2:03" or "3 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
