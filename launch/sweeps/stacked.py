"""Members as one program: those that differ only in numbers are stacked and trained together, in this process.

An experiment takes part by a module attribute `STACKED`, the dotted name of a module with

    STACKABLE     config fields, by dotted name, in which the members of a stack may differ
    OFF_AT_ZERO   those of them whose zero is another program: members with and without it are two stacks
    run(configs, runs)    a generator that trains a stack and yields (member, its result or an Exception) as each ends;
                          raises `launch.run.Preempted` if a run was asked to stop

Members that differ in other fields are stacks of their own, trained one after the other; what keeps them apart is
printed. Each member's run directory is what `launch.train` makes of it, and either can go on with what the other left.
"""

import contextlib
import importlib
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from absl import logging

from launch import train
from launch.run import Preempted, Run, RunDirectoryError, flatten
from launch.sweeps.local import handled
from launch.sweeps.members import Member, Options, Sweep, SweepError, config_of, fail, start
from launch.training.stack import varying

_POLL = 1.0  # seconds


@dataclass(frozen=True)
class Stackable:
    """How an experiment stacks: see the module's docstring."""

    experiment: ModuleType
    fields: tuple[str, ...]
    off_at_zero: tuple[str, ...]
    run: Callable[[Sequence[Any], Sequence[Run]], Iterator[tuple[int, dict[str, float] | Exception]]]


def execute(sweep: Sweep, members: Iterable[Member], options: Options) -> None:
    """Train the members, stack by stack; see `launch.sweeps.members` for the contract.

    SIGTERM, SIGINT and SIGHUP let the stack save and end; a second SIGINT interrupts at once.

    Args:
      options: `processes` is the most members of a stack; 0: no limit.

    Raises:
      SweepError: the experiment does not stack, or no two of the sweep's members can be stacked.
      Preempted: the sweep was asked to stop.
    """
    stackable = _stackable(sweep)
    _explain(sweep, stackable)
    waiting = {member.name for member in members}
    running: set[str] = set()
    with _asked() as asked, _watched(options.watch, running):
        for stack in apart(sweep.members, stackable):
            left = [member for member in stack if member.name in waiting]
            size = options.processes or len(left) or 1
            for first in range(0, len(left), size):
                _train(left[first : first + size], stackable, asked, running, options)
                if asked.is_set():
                    raise Preempted("asked to stop; the members that were running have saved")


def apart(members: Iterable[Member], stackable: Stackable) -> list[list[Member]]:
    """The stacks: members that agree in every field that does not stack, in their order."""
    stacks: dict[Any, list[Member]] = {}
    for member in members:
        flat = flatten(config_of(member))
        key = {name: value for name, value in flat.items() if name not in stackable.fields}
        key |= {name: flat.get(name) == 0 for name in stackable.off_at_zero}
        stacks.setdefault(repr(sorted(key.items())), []).append(member)
    return list(stacks.values())


def _stackable(sweep: Sweep) -> Stackable:
    names = list(dict.fromkeys(member.base["experiment"] for member in sweep.members))
    if len(names) > 1:
        raise SweepError(f"--executor=vmap trains one experiment, this sweep has {', '.join(names)}; take local")
    (name,) = names
    try:
        train.find(name)
    except ValueError as error:
        raise SweepError(str(error)) from error
    experiment = importlib.import_module(name)
    if not hasattr(experiment, "STACKED"):
        raise SweepError(f"--executor=vmap: {name} cannot train several configs as one program; take --executor=local")
    module = importlib.import_module(experiment.STACKED)
    return Stackable(experiment, tuple(module.STACKABLE), tuple(module.OFF_AT_ZERO), module.run)


def _explain(sweep: Sweep, stackable: Stackable) -> None:
    """Say why there is more than one stack.

    Raises:
      SweepError: every stack has one member only.
    """
    stacks = apart(sweep.members, stackable)
    if len(stacks) == 1:
        return
    differing = varying([config_of(member) for member in sweep.members])
    keys = [key for key in differing if key not in stackable.fields]
    reasons = [f"{key} cannot be stacked" for key in keys]
    reasons += [f"{key}=0 is another program than the rest" for key in differing if key in stackable.off_at_zero]
    known = f"{stackable.experiment.__name__} stacks members that differ in {', '.join(stackable.fields)}"
    if len(stacks) == len(sweep.members):
        raise SweepError(
            f"--executor=vmap: no two members make one program: {'; '.join(reasons)}. {known}; take --executor=local"
        )
    print(f"{len(stacks)} stacks: {'; '.join(reasons)}\n{known}", flush=True)
    for stack in stacks:
        flat = flatten(config_of(stack[0]))
        shared = {key: flat.get(key) for key in (*keys, *stackable.off_at_zero) if key in differing}
        own = ",".join(f"{key}={value}" for key, value in shared.items() if key in keys or value == 0)
        print(f"  {len(stack)} members  {own or 'the others'}", flush=True)


def _train(
    members: Sequence[Member], stackable: Stackable, asked: threading.Event, running: set[str], options: Options
) -> None:
    """Train one stack; what becomes of each member is noted in its folder."""
    running |= {member.name for member in members}
    left: dict[int, Member] = {}
    with contextlib.ExitStack() as opened:
        try:
            runs = []
            for member in members:
                with open(start(member), "a") as log:
                    log.write(f"$ launch.sweep --executor=vmap: one of a stack of {len(members)}\n")
                if (run := _open(member, stackable)) is not None:
                    opened.callback(run.close)
                    run.stop_asked, left[len(runs)] = asked, member
                    runs.append(run)
            for index, result in stackable.run([run.config for run in runs], runs) if runs else ():
                member = left[index]
                if isinstance(result, Exception):
                    _fail(member, result)
                else:
                    runs[index].finish(result)
                del left[index]
                running.discard(member.name)
                options.ended(member)
        except Preempted as stop:
            logging.info("%s", stop)
            asked.set()
        except Exception as error:
            for member in left.values():
                _fail(member, error)
        finally:
            running -= {member.name for member in members}
    for member in left.values():
        options.ended(member)


def _open(member: Member, stackable: Stackable) -> Run | None:
    """The run directory of a member; None if it cannot be used, which the member has then failed by."""
    try:
        revisable = getattr(stackable.experiment, "REVISABLE", ())
        return Run.open(member.path, config_of(member), revisable=revisable)
    except RunDirectoryError as error:
        _fail(member, error)
        return None


def _fail(member: Member, error: Exception) -> None:
    """Note an error as a process of the member's own would: in error.txt and, with where it came from, in its log."""
    with open(member.path / "log.txt", "a") as log:
        log.writelines(traceback.format_exception(error))
    fail(member, "error")


@contextlib.contextmanager
def _asked() -> Iterator[threading.Event]:
    """Set by the signals that ask the sweep to stop."""
    asked = threading.Event()

    def ask(number: int) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    with handled(ask):
        yield asked


@contextlib.contextmanager
def _watched(watch: Callable[[Collection[str]], None], running: set[str]) -> Iterator[None]:
    """Let `watch` see what is running about once a second, from a thread, and at last that nothing is."""
    ended = threading.Event()
    errors: list[Exception] = []

    def look() -> None:
        try:
            while not ended.wait(_POLL):
                watch(set(running))
        except Exception as error:  # raised below, where somebody listens
            errors.append(error)

    thread = threading.Thread(target=look, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        watch(set())
    if errors:
        raise errors[0]
