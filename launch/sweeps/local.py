"""Members as processes on this machine, each with its own devices and cores.

GPUs and TPU chips are assigned by environment variables (`CUDA_VISIBLE_DEVICES`, `TPU_VISIBLE_CHIPS`), one per member
unless `processes` says otherwise. Cores are divided by CPU affinity, which XLA's thread pools respect.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

from launch.processes import interrupts
from launch.processes.stop import Preempted
from launch.sweeps.members import Member, Options, Sweep, SweepError, command, fail, start

T = TypeVar("T")
_POLL = 0.5  # seconds
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GRACE = 120  # seconds for members to save when the sweep ends in an error
_PASSED_ON = 0  # no signal has this number
_PROBE_TIMEOUT = 180  # seconds; a TPU is slow to start, and hangs if another process holds it
_PROBE = """
import json, jax
devices = jax.local_devices()
units = {str(getattr(d, "coords", d.id)) for d in devices}  # two cores of a TPU chip are one
print(json.dumps([jax.default_backend(), len(units)]))
"""


@dataclass(frozen=True)
class ProcessSlot:
    """What one member at a time runs on: additions to the environment, and CPU cores (none means all)."""

    environment: Mapping[str, str]
    cores: tuple[int, ...]


@dataclass(frozen=True)
class _Running:
    """A member's process, and what it runs on."""

    member: Member
    slot: ProcessSlot
    process: subprocess.Popen


def execute(sweep: Sweep, members: Iterable[Member], options: Options) -> None:
    """Train the members, as many at once as there are slots; see `launch.sweeps.members.Executor`.

    SIGTERM, SIGINT and SIGHUP are passed on as SIGTERM: the members save and end. A second SIGINT kills them.

    Args:
      sweep: the sweep that the members belong to.
      members: the next one is taken when a slot is free, so that an iterator can choose it by what has ended so far.
      options: `processes` is the number of slots; 0 is one per device, or per core on a CPU.

    Raises:
      SweepError: there are more processes than cores, or JAX does not start.
      Preempted: the sweep was asked to stop.
    """
    platform, names = devices(os.environ)
    number = len(members) if isinstance(members, Sized) else sys.maxsize
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    free = list(divide(platform, names, cores or tuple(range(os.cpu_count() or 1)), options.processes, number))
    source: Iterator[Member] = iter(members)
    running: list[_Running] = []
    exhausted = False
    with stopping() as asked:
        try:
            while True:
                while free and not exhausted and not asked:
                    member = next(source, None)
                    exhausted = member is None
                    if member is not None:
                        running.append(_begin(sweep, member, free.pop(0), options, pinned=bool(cores)))
                options.watch({r.member.name for r in running})
                if not running:
                    break
                time.sleep(_POLL)
                _pass_on(asked, running)
                for ended in [r for r in running if r.process.poll() is not None]:
                    running.remove(ended)
                    free.append(ended.slot)
                    if ended.process.returncode and not asked:
                        fail(ended.member, _reason(ended.process.returncode))
                    options.ended(ended.member)
        finally:
            _stop(running)
    if asked:
        why = f"asked to stop by {signal.Signals(asked[0]).name}; the members that were running have saved"
        raise Preempted(why, asked[0])


def devices(environment: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """JAX's platform, and its devices as named in the environment variable that selects them.

    A separate process looks for them, since a process that has seen a GPU or a TPU keeps hold of it.

    Raises:
      SweepError: JAX does not start.
    """
    if environment.get("JAX_PLATFORMS") == "cpu":
        return "cpu", ()
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
            check=True,
        )
        platform, count = json.loads(probe.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise SweepError(f"JAX found no devices within {_PROBE_TIMEOUT} s; is another process using them?") from error
    except subprocess.CalledProcessError as error:
        raise SweepError(f"JAX does not start here:\n{error.stderr.strip()}") from error
    visible = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}.get(platform)
    names = [name.strip() for name in environment.get(visible or "", "").split(",") if name.strip()]
    return platform, tuple(names or map(str, range(count)))


def divide(
    platform: str, names: Sequence[str], cores: Sequence[int], processes: int, members: int
) -> tuple[ProcessSlot, ...]:
    """The slots of this machine.

    Args:
      platform: "cpu", "gpu" or "tpu".
      names: of the GPUs or TPU chips.
      cores: of the CPU, by number.
      processes: the number of slots; 0 is one per device, or per core on a CPU.
      members: their number; the fewer, the more cores each gets.

    Raises:
      SweepError: there are more processes than cores or TPU chips.
    """
    units = len(cores) if platform == "cpu" else len(names)
    count = processes or min(units, members)
    if platform != "gpu" and count > units:
        what = "cores" if platform == "cpu" else "TPU chips"
        raise SweepError(f"--processes={count}, but there are {units} {what} here; take at most {units}")
    shares = [tuple(_share(cores, i, count)) for i in range(count)]
    if platform == "cpu":
        return tuple(ProcessSlot({}, share) for share in shares)
    if platform == "tpu":
        alone = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
        return tuple(ProcessSlot({"TPU_VISIBLE_CHIPS": names[i], **alone}, shares[i]) for i in range(count))
    if count <= units:
        gpus = [names[i : i + 1] if not processes else _share(names, i, count) for i in range(count)]
        return tuple(ProcessSlot({"CUDA_VISIBLE_DEVICES": ",".join(g)}, s) for g, s in zip(gpus, shares, strict=True))
    together = -(-count // units)  # members on one GPU; by default each would take three quarters of its memory
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / together:.3f}"}
    visible = [{"CUDA_VISIBLE_DEVICES": names[i % units]} for i in range(count)]
    return tuple(ProcessSlot(own | memory, share) for own, share in zip(visible, shares, strict=True))


def _share(things: Sequence[T], index: int, count: int) -> Sequence[T]:
    """Part `index` of `things` divided into `count` contiguous parts of nearly equal size."""
    return things[index * len(things) // count : (index + 1) * len(things) // count]


def _begin(sweep: Sweep, member: Member, slot: ProcessSlot, options: Options, *, pinned: bool) -> _Running:
    """Start a member's process, with its output appended to its log."""
    line = command(sweep, member, options.flags)
    with open(start(member), "ab") as log, _on(slot.cores if pinned else ()):
        log.write(f"$ {shlex.join(line)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            line,
            env={"PYTHONUNBUFFERED": "1", **os.environ, **slot.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the sweep, which passes it on once
            pass_fds=options.keep_open,
        )
    return _Running(member, slot, process)


@contextlib.contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """Start processes on these cores: they inherit the affinity of the thread that starts them."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """Collect the signals that ask the sweep to stop in a list."""
    asked = list(interrupts.received)
    with handled(asked.append):
        yield asked


@contextlib.contextmanager
def handled(ask: Callable[[int], object]) -> Iterator[None]:
    """Call `ask` at the signals that ask the sweep to stop."""
    numbers = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    handlers = {number: signal.signal(number, lambda number, frame: ask(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _pass_on(asked: list[int], running: Sequence[_Running]) -> None:
    """Ask the members to stop if the sweep was asked; a second Ctrl-C kills them."""
    if asked and asked[-1] != _PASSED_ON:
        for r in running:
            r.process.kill() if asked.count(signal.SIGINT) > 1 else r.process.terminate()
        asked.append(_PASSED_ON)


def _stop(running: Sequence[_Running]) -> None:
    """Stop all processes when the sweep ends in an error."""
    for r in running:
        r.process.terminate()
    deadline = time.monotonic() + _GRACE
    for r in running:
        try:
            r.process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            r.process.kill()
            r.process.wait()


def _reason(code: int) -> str:
    """Why a process ended, from its exit status."""
    if code > 0:
        return f"exit status {code}"
    hint = " (out of memory? try fewer --processes)" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"
