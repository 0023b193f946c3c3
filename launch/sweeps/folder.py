"""Who may use a sweep folder: one sweep at a time, and always the same one."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from launch.run import difference, plain
from launch.sweeps.members import DEFINITION, Member, Sweep, SweepError, config_of, load, save


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[int]:
    """Make the folder, and keep other sweeps out of it; gives the lock's file descriptor.

    Processes that inherit the descriptor hold the lock too, should this one be killed.

    Raises:
      SweepError: it is not writable, or a sweep is running in it.
    """
    path = Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise SweepError(f"the folder {path} is not writable ({error}); choose another --workdir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SweepError(
                f"another sweep is running in {path}, or members that a killed one has left (fuser {path}/.lock tells "
                "the processes); wait for it or choose another --workdir"
            ) from error
        except OSError as error:  # some cluster file systems have no locks
            logging.warning("%s cannot be locked (%s): see to it that one sweep alone uses it", path, error)
        yield lock.fileno()


def claim(sweep: Sweep) -> Sweep:
    """Take a folder for a sweep, or take up the one that is there; to be called in `locked`.

    A sweep that is there may be given more members, with the same base config; a search keeps those it has found.

    Returns:
      The sweep with all members, written to sweep.json.

    Raises:
      SweepError: the folder holds something else: another sweep, other runs.
    """
    sweep = checked(sweep)
    save(sweep)
    return sweep


def checked(sweep: Sweep) -> Sweep:
    """`claim`, but nothing is written."""
    if (sweep.path / DEFINITION).exists():
        stored = load(sweep.path)
        _check_same(stored, sweep)
        if sweep.search:
            sweep = dataclasses.replace(sweep, members=stored.members)
    names = {member.name for member in sweep.members}
    strange = [p.name for p in sorted(sweep.path.iterdir()) if p.is_dir() and p.name not in names]
    strange = [name for name in strange if (sweep.path / name / "config.json").exists()]
    if (sweep.path / "config.json").exists() or strange:
        found = ", ".join(strange) if strange else "a run of its own"
        raise SweepError(f"{sweep.path} holds runs that are not of this sweep: {found}; choose another --workdir")
    for member in sweep.members:
        _check_config(member)
    return sweep


def _check_same(stored: Sweep, asked: Sweep) -> None:
    """Refuse a sweep that is not the stored one, or more of it."""
    lines = [f"base {line}" for line in difference(stored.base, asked.base)]
    before = {member.name: member for member in stored.members}
    for member in asked.members:  # of config files of their own
        if member.name in before and member.config_file != asked.config_file:
            lines += [f"{member.name}: {line}" for line in difference(before[member.name].base, member.base)]
    if (stored.search is None) != (asked.search is None):
        lines.append("one is a --search, the other is not")
    elif stored.search and asked.search:
        lines += [f"search {line}" for line in difference(stored.search, asked.search)]
    else:
        missing = {m.name for m in stored.members} - {m.name for m in asked.members}
        lines += [f"{name}: a member -> (absent)" for name in sorted(missing)]
    if lines:
        raise SweepError(
            f"{asked.path} holds another sweep (stored -> asked):\n  "
            + "\n  ".join(lines)
            + "\nAsk for the same again, or for more members of it, or choose another --workdir."
        )


def _check_config(member: Member) -> None:
    """Refuse a member's folder that holds a run of another config."""
    path = member.path / "config.json"
    if not path.exists():
        return
    lines = difference(json.loads(path.read_text()), plain(config_of(member)))
    if lines:
        raise SweepError(
            f"{member.path} holds a run of another sweep (stored -> asked):\n  "
            + "\n  ".join(lines)
            + "\nChoose another --workdir."
        )
