"""Claims on a sweep folder: one sweep per folder, run by one process at a time."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from launch.files import load_json, sweep_leftovers
from launch.run import difference, lock, plain
from launch.sweeps.members import DEFINITION, Member, Sweep, SweepError, config_of, load, save, status, store_path


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[int]:
    """Make the folder and lock it; yields the file descriptor of the lock.

    Processes that inherit the descriptor keep the folder locked if this one is killed.

    Raises:
      SweepError: the folder is not writable, or a sweep is running in it.
    """
    path = Path(workdir)
    left = f"or members that a killed one has left (`fuser {path}/.lock` lists their processes)"
    with lock(path, SweepError, f"another sweep is running in {path}, {left}") as held:
        yield held.fileno()


def claim(sweep: Sweep) -> Sweep:
    """Define a sweep in its folder, or continue the one that is in it; call it within `locked`.

    A sweep may get more members, with the same base config, and lose those that were refused. A search keeps the
    members that it has proposed, and accepts another objective as long as no result has the earlier one.

    Returns:
      The sweep with all members, as written to sweep.json.

    Raises:
      SweepError: the folder holds another sweep, or other runs.
    """
    sweep = checked(sweep)
    sweep_leftovers(sweep.path)
    save(sweep)
    return sweep


def checked(sweep: Sweep) -> Sweep:
    """`claim` without writing anything."""
    if (sweep.path / DEFINITION).exists():
        stored = load(sweep.path)
        _check_same(stored, sweep)
        sweep = dataclasses.replace(sweep, store=stored.store)
        if sweep.search:
            sweep = dataclasses.replace(sweep, members=stored.members)
    names = {member.name for member in sweep.members}
    others = [p.name for p in sorted(sweep.path.iterdir()) if p.is_dir() and p.name not in names]
    others = [name for name in others if (sweep.path / name / "config.json").exists()]
    if (sweep.path / "config.json").exists() or others:
        shown = ", ".join(others) if others else "a single run"
        raise SweepError(f"{sweep.path} holds runs that do not belong to this sweep: {shown}; choose another --workdir")
    for member in sweep.members:
        _check_config(member)
    return sweep


def _check_same(stored: Sweep, asked: Sweep) -> None:
    """Raise unless a sweep equals the stored one or only adds members to it."""
    lines = [f"base {line}" for line in difference(stored.base, asked.base)]
    if asked.store and store_path(asked) != store_path(stored):
        lines.append(f"--store: {str(store_path(stored))!r} -> {str(asked.store)!r}")
    before = {member.name: member for member in stored.members}
    for member in asked.members:  # one with its own config file has its own base
        if member.name in before and member.config_file != asked.config_file:
            lines += [f"{member.name}: {line}" for line in difference(before[member.name].base, member.base)]
    if (stored.search is None) != (asked.search is None):
        lines.append("one is a --search, the other is not")
    elif stored.search and asked.search:
        before_it = dict(stored.search)
        if not any(before_it.get("objective") in (status(member).result or {}) for member in stored.members):
            before_it["objective"] = asked.search.get("objective")  # no result has it, so it may still be corrected
        lines += [f"search {line}" for line in difference(before_it, asked.search)]
    else:
        missing = {m.name for m in stored.members if not _was_refused(m)} - {m.name for m in asked.members}
        lines += [f"{name}: a member -> (absent)" for name in sorted(missing)]
    if lines:
        raise SweepError(
            f"{asked.path} holds another sweep (stored -> given):\n  "
            + "\n  ".join(lines)
            + "\nRun the same sweep, add members to it, or choose another --workdir."
        )


def _was_refused(member: Member) -> bool:
    """Whether a member has failed before it touched its run directory."""
    return status(member).state == "failed" and not (member.path / "config.json").exists()


def _check_config(member: Member) -> None:
    """Raise if a member's folder holds a run of another config."""
    path = member.path / "config.json"
    if not path.exists():
        return
    lines = difference(load_json(path), plain(config_of(member)))
    if lines:
        raise SweepError(
            f"{member.path} holds a run of another sweep (stored -> given):\n  "
            + "\n  ".join(lines)
            + "\nChoose another --workdir."
        )
