"""Members as one program: stages that differ only in stackable numbers are made together, in this process.

Every member is planned; members whose plans are equal up to stackable numbers form a stack. Their plans are walked side
by side: where the class of the stages at one place has `STACKS = True`, those that the store lacks are made by one
program (`launch.stages.Stage.make_together`). Then each member is finished as `launch.train` does it, and either can
continue what the other has left.

Stacks are trained one after the other; what keeps them apart is printed. One that does not fit into the devices' memory
is trained in waves. A member that cannot be trained is refused before any is.
"""

import contextlib
import gc
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
from absl import logging

from launch import train
from launch.processes import commands, compiling, interrupts
from launch.processes.stop import Preempted, Stop
from launch.run import Run, RunDirectoryError
from launch.stages import Stage, children, walk
from launch.store import Store
from launch.sweeps.local import handled
from launch.sweeps.members import Member, OnRunning, Options, Sweep, SweepError, config_of, fail, start, store_path
from launch.sweeps.stacks import PlannedMember, explain, group

_POLL = 1.0  # seconds

Failures = dict[int, Exception]


def execute(sweep: Sweep, members: Iterable[Member], options: Options) -> None:
    """Train the members, stack by stack; see `launch.sweeps.members.Executor`.

    SIGTERM, SIGINT and SIGHUP let the stack save and end; a second SIGINT interrupts at once.

    Args:
      options: `processes` is the largest number of members that train together; 0 for all of a stack.

    Raises:
      SweepError: the experiment does not stack, or no two of the sweep's members can be stacked.
      Preempted: the sweep was asked to stop.
    """
    plans, refused = planned(sweep.members)
    stacks = group(plans)
    if stacks and (text := explain(stacks)):
        print(text, flush=True)
    waiting = {member.name for member in members}
    running: set[str] = set()
    with _asked() as stop, _watched(options.watch, running):
        store = Store(store_path(sweep), stop)
        parts: list[list[PlannedMember]] = []
        for stack in stacks:
            left = [planned for planned in stack if planned.member.name in waiting]
            size = options.processes or len(left) or 1
            parts += (left[first : first + size] for first in range(0, len(left), size))
        unfit = _preflight(parts, store)
        for member, error in refused + unfit:
            if member.name in waiting:
                start(member)
                _fail(member, error)
                options.ended(member)
        lost = {member.name for member, _ in unfit}
        for part in parts:
            left = [planned for planned in part if planned.member.name not in lost]
            with compiling.products(compiling.precision_of(config_of(part[0].member))):  # in the key of the stack
                _train(left, store, running, options)
            if stop.asked.is_set():
                raise Preempted("asked to stop; the members that were running have saved", stop.number)


def planned(members: Iterable[Member]) -> tuple[list[PlannedMember], list[tuple[Member, ValueError]]]:
    """The members with their plans, and those with invalid settings.

    Raises:
      SweepError: there is no such experiment, or it has no `plan`.
    """
    plans, refused = [], []
    for member in members:
        try:
            experiment = train.module_of(member.base["experiment"])
        except ValueError as error:
            raise SweepError(str(error)) from error
        if not hasattr(experiment, "plan"):
            name = experiment.__name__
            raise SweepError(
                f"--executor=vmap: {name} cannot train several configs as one program; use --executor=local"
            )
        try:
            plans.append(PlannedMember(member, experiment, experiment.plan(config_of(member))))
        except ValueError as error:  # of this member alone
            refused.append((member, error))
    return plans, refused


def _preflight(parts: Sequence[Sequence[PlannedMember]], store: Store) -> list[tuple[Member, Exception]]:
    """The members of which files or devices show that they cannot be trained, each with the reason.

    Args:
      parts: members that are trained together.

    Raises:
      Preempted: the sweep was asked to stop.
    """
    unfit: list[tuple[Member, Exception]] = []
    read: set[str] = set()  # a data set is read once, not for the seed of every member
    for part in parts:
        for planned in part:
            _keep({0: planned}, store)
            if store.stop.asked.is_set():
                raise Preempted("asked to stop before any member was trained", store.stop.number)
            try:
                train.preflight(planned.root, store, stacked=len(part) > 1, read=read)
                read |= {stage.stack_key for stage in walk(planned.root) if not stage.KEPT}
            except Preempted:
                raise
            except Exception as error:  # of this member alone
                unfit.append((planned.member, error))
    return unfit


def _train(stack: Sequence[PlannedMember], store: Store, running: set[str], options: Options) -> None:
    """Train members together, and note in each one's folder how it ended."""
    running |= {planned.member.name for planned in stack}
    left = dict(enumerate(stack))
    _keep(left, store)

    def end(index: int, error: Exception | None = None) -> None:
        member = left.pop(index).member
        if error is not None:
            _fail(member, error)
        running.discard(member.name)
        options.ended(member)

    with contextlib.ExitStack() as opened:
        try:
            runs = {}
            for index, planned in enumerate(stack):
                with open(start(planned.member), "a") as log:
                    log.write(f"$ launch.sweep --executor=vmap: one of a stack of {len(stack)}\n")
                try:
                    runs[index] = _open(planned, store)
                    opened.callback(runs[index].close)
                except RunDirectoryError as error:
                    end(index, error)
            failures: Failures = {}
            make_stacks({index: stack[index].root for index in runs}, store, failures)
            for index, run in runs.items():
                failure = failures.get(index)
                try:
                    if failure is None:
                        train.make(stack[index].experiment, stack[index].root, run, store)
                except Preempted:
                    raise
                except Exception as error:  # the others can still be finished
                    failure = error
                end(index, failure)
                _keep(left, store)
        except Preempted as stop:
            logging.info("%s", stop)
            store.stop.asked.set()
        except Exception as error:
            for index in list(left):
                end(index, error)
        finally:
            running -= {planned.member.name for planned in stack}
    for planned in left.values():
        options.ended(planned.member)


def _keep(left: Mapping[int, PlannedMember], store: Store) -> None:
    """Drop from memory what none of these members needs."""
    store.forget(keep={stage.key for planned in left.values() for stage in walk(planned.root)})


def make_stacks(stages: Mapping[int, Stage], store: Store, failures: Failures) -> None:
    """Make what several stages need and the store lacks, several at once where the class allows it.

    What only one member needs, or a class makes one by one, is left to `store.get`.

    Args:
      stages: one per member, all at the same place in their plans and equal up to stackable numbers.
      store: keeps the results.
      failures: of members that have failed; these are skipped, and new failures are added.

    Raises:
      Preempted: the sweep was asked to stop.
    """
    missing = {i: s for i, s in stages.items() if i not in failures and not (s.KEPT and store.has(s))}
    if len(missing) < 2:
        return
    for parts in zip(*map(children, missing.values()), strict=True):
        make_stacks(dict(zip(missing, parts, strict=True)), store, failures)
    waiting = {stage.key: stage for index, stage in missing.items() if index not in failures}
    kind = type(next(iter(missing.values())))
    if not kind.STACKS or len(waiting) < 2:
        return
    errors = _make_together(kind, waiting, store)
    failures |= {index: errors[stage.key] for index, stage in missing.items() if stage.key in errors}


def _make_together(kind: type[Stage], stages: Mapping[str, Stage], store: Store) -> dict[str, Exception]:
    """Make different stages of one class as one program; returns the errors of those that failed, by key."""
    errors: dict[str, Exception] = {}
    for key, stage in stages.items():
        try:
            for child in children(stage):  # inside make_together its error would fail all of them
                store.get(child)
        except Preempted:
            raise
        except Exception as error:
            errors[key] = error
    with store.locked([stage for key, stage in stages.items() if key not in errors]):
        left = [stage for key, stage in stages.items() if key not in errors and not store.has(stage)]
        if len(left) < 2:
            return errors  # another process made the others meanwhile
        return errors | _in_waves(kind, left, store)


def _in_waves(kind: type[Stage], stages: Sequence[Stage], store: Store) -> dict[str, Exception]:
    """`make_together` of all stages at once, or of as many as fit into the devices' memory, wave by wave.

    What a wave that did not fit has saved, the next ones go on from.
    """
    errors: dict[str, Exception] = {}
    size, left = len(stages), list(stages)
    while left:
        wave = left[:size]
        store.stop.check()
        logging.info("%s and %d more: making them together", wave[0].key, len(wave) - 1)
        try:
            lost = kind.make_together(wave, store)
        except Preempted:
            raise
        except Exception as error:
            lost = None if len(wave) > 1 and _out_of_memory(error) else dict.fromkeys(range(len(wave)), error)
        if lost is None:  # outside of the handler: the error's frames hold arrays
            gc.collect()
            size = -(-len(wave) // 2)
            print(f"{len(wave)} members do not fit into the devices' memory: training {size} at a time", flush=True)
            continue
        errors |= {wave[index].key: error for index, error in lost.items()}
        left = left[len(wave) :]
    return errors


def _out_of_memory(error: Exception) -> bool:
    """Whether the devices' memory is too small, which the compiler may say or the first step."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _open(planned: PlannedMember, store: Store) -> Run:
    """The run directory of a member.

    Raises:
      RunDirectoryError: it cannot be used.
    """
    config = config_of(planned.member)
    run = Run.open(planned.member.path, config)
    run.stop = store.stop
    run.note_plan(planned.root, store)  # so that `launch.train` finds the store if the member continues alone
    return run


def _fail(member: Member, error: Exception) -> None:
    """Note an error as a process of the member's own would: in error.txt and, with its traceback, in the log.

    Raises:
      Exception: the error, if it is of a full disk, to which all members write.
    """
    if commands.full_disk(error):
        raise error
    with open(member.path / "log.txt", "a") as log:
        log.writelines(traceback.format_exception(error))
    fail(member, "error")


@contextlib.contextmanager
def _asked() -> Iterator[Stop]:
    """A stop that the signals ask for, also those that came while the members were planned."""
    stop = Stop()

    def ask(number: int) -> None:
        if stop.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = number
        stop.asked.set()

    with handled(ask):
        for number in interrupts.received:
            ask(number)
        yield stop


@contextlib.contextmanager
def _watched(watch: OnRunning, running: set[str]) -> Iterator[None]:
    """Call `watch` about once a second, from a thread, with what is running, and at the end with nothing."""
    ended = threading.Event()
    errors: list[Exception] = []

    def look() -> None:
        try:
            while not ended.wait(_POLL):
                watch(set(running))
        except Exception as error:  # raised below, in the main thread
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
