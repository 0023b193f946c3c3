"""The one training loop, of one run and of a stack: dispatch ahead of the host, log, evaluate, save, resume, stop."""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from launch.journal import Journal
from launch.processes.profiling import Profile, Tracing
from launch.processes.stop import Preempted, Stop
from launch.stages import Stage, about, free, require_known, require_number
from launch.store import Store
from launch.training import duration
from launch.training.checkpoint import Checkpoints, abstract
from launch.training.optim import ToSteps
from launch.training.pace import NonFiniteLoss, Windows
from launch.training.places import Place
from launch.training.prefetch import calls, prefetch
from launch.training.program import Batch, Numbers, Pass, Program, Step
from launch.training.sharding import Device

Values = list[dict[str, float]]
Failures = dict[int, NonFiniteLoss]
_MOST_STEPS, _MOST_BYTES = 16, 64 << 20  # of one call; of its batches, and of a state for which there are several
CHECKPOINTS = "checkpoints"  # of a trained stage, in its folder of the store


class Evaluate(Protocol):
    """Metrics of every member; numbers, state and resident arrays are on the devices, as the place puts them."""

    def __call__(self, numbers: Numbers, state: Any, resident: Any) -> Values: ...


@dataclass(frozen=True)
class Cadence:
    """How often something happens, in steps; 0 is only at the end (for logging: never in between).

    `steps_per_call` is that of `Loop`.
    """

    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 0
    steps_per_call: int = 0


@dataclass(frozen=True)
class Loop:
    """How often a training logs, evaluates and saves: the section `loop` of a config.

    Evaluations count for the result, as one of the evaluated states may be it.

    Attributes:
      log_every: steps.
      eval_every, checkpoint_every: durations such as "1 epoch"; "0 steps" for the end alone.
      steps_per_call: steps that one call of a compiled program runs, as a loop on the devices, wherever so many are
        left before the next log, evaluation or checkpoint; others come one by one. A request to stop waits for the end
        of a call. The devices hold the batches of four calls or more: two wait, one is on its way, and those of every
        call that was dispatched and has not ended. 0: 1 on a CPU, where convolutions inside a loop are slow, and for
        large networks; up to 16 for those whose steps are short beside the host's work for each, see
        `automatic_steps_per_call`.
    """

    log_every: int = free(50)
    eval_every: str = "0 steps"
    checkpoint_every: str = free("0 steps")
    steps_per_call: int = free(0)

    def __post_init__(self) -> None:
        require_number(self, "log_every", "steps_per_call", least=0)
        duration.check(self, "eval_every", "checkpoint_every")

    def cadence(self, to_steps: ToSteps) -> Cadence:
        """The same in steps; raises `SettingError` for a duration that no training has."""
        every = {}
        for name in ("eval_every", "checkpoint_every"):
            with about(name):
                every[name] = to_steps(getattr(self, name))
        return Cadence(self.log_every, **every, steps_per_call=self.steps_per_call)


@dataclass(frozen=True)
class BestLoop(Loop):
    """A loop whose best state is the result, by one of the metrics in `METRICS`.

    Attributes:
      best_metric: that states are evaluated by.
      best_mode: one of `MODES`.
    """

    METRICS: ClassVar[Sequence[str]]
    MODES: ClassVar[Sequence[str]] = ("max", "min")

    best_metric: str = ""
    best_mode: str = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, "best_metric", self.METRICS)
        require_known(self, "best_mode", self.MODES)


@dataclass(frozen=True)
class Training:
    """Everything that defines a training, except its initial state and where it is kept.

    Attributes:
      place: where it runs: `places.One`, or a `places.Stack` of members.
      step: see `launch.training.program.Step`.
      numbers: of the member: scalars; of a stack: arrays (k,).
      batches: `start -> iterable` of this process's batches from step `start` on; of a stack (k, b, …).
      batch_size: examples per step and member, over all devices.
      steps: their number in all.
      evaluate: at every `cadence.eval_every` steps and at the end; each time a checkpoint follows.
      resident: arrays that every device keeps whole; the step gets them as `batch["resident"]`.
      cadence: of logs, evaluations and checkpoints, and how many steps are one call.
      best: the metric that chooses the state that is returned, and "max" or "min"; None for the last state.
    """

    place: Place
    step: Step
    numbers: Mapping[str, np.ndarray]
    batches: Callable[[int], Iterable[Batch]]
    batch_size: int
    steps: int
    evaluate: Evaluate | None = None
    resident: Any = None
    cadence: Cadence = Cadence()
    best: tuple[str, str] | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a training.

    Attributes:
      state: the best by `Training.best`, or the last; on the devices; for a member of a stack, on the host.
      step: the step of that state.
      metrics: the metrics that it was saved with.
    """

    state: Any
    step: int
    metrics: dict[str, float]


def alone(evaluate: Callable[[Any], Mapping[str, float]]) -> Evaluate:
    """An `Evaluate` of one member from a function of its state."""
    return lambda numbers, state, resident: [dict(evaluate(state))]


def train(store: Store, stage: Stage, state: Any, training: Training) -> Outcome:
    """Train a stage in its folder of the store, or continue its training.

    Args:
      store: keeps metrics and checkpoints while it trains.
      stage: the stage to train.
      state: the initial one, on the host or on the devices.
      training: what is trained.

    Raises:
      NonFiniteLoss: the loss or another metric is NaN or infinite; nothing bad was saved.
      Preempted: the run was asked to stop; the state is saved.
    """
    (outcome,) = train_together(store, [stage], state, lambda members: training)
    if isinstance(outcome, NonFiniteLoss):
        raise outcome
    return outcome


def train_together(
    store: Store,
    stages: Sequence[Stage],
    states: Any,
    training_of: Callable[[Sequence[int]], Training],
) -> list[Outcome | NonFiniteLoss]:
    """Train k stages as one program, each in its own folder of the store; `train` for many.

    Args:
      states: initial ones, host arrays (k, …); of one stage as in `train`.
      training_of: the training of all members, or of some: those that are at one step after a kill.

    Returns:
      For each stage its outcome, or the error for which it was given up.
    """
    whole = training_of(range(len(stages)))
    failures: Failures = {}
    last: dict[int, Any] = {}
    with contextlib.ExitStack() as opened:
        journals = [opened.enter_context(store.journal(stage)) for stage in stages]
        folders = [store.folder(stage) / CHECKPOINTS for stage in stages]
        checkpoints = [opened.enter_context(Checkpoints(folder, best=whole.best)) for folder in folders]
        for start, indices, state in whole.place.restore(states, checkpoints):
            own = whole if len(indices) == len(stages) else training_of(indices)
            if start < own.steps:
                if start:
                    logging.info("continuing from step %d of %d", start, own.steps)
                arguments = [journals[i] for i in indices], [checkpoints[i] for i in indices]
                state, lost = fit(own, state, start, *arguments, stop=store.stop, profile=store.profile)
                failures |= {indices[i]: error for i, error in lost.items()}
            else:
                state = own.place.begin(state)  # finished; only the result is missing
            last |= dict(zip(indices, own.place.each(state), strict=True))
        return [failures.get(i) or _outcome(whole, last[i], checkpoints[i]) for i in range(len(stages))]


def _outcome(training: Training, state: Any, checkpoints: Checkpoints) -> Outcome:
    if training.best is None:
        return Outcome(state, int(state.step), {})
    best, at, metrics = checkpoints.restore_best(abstract(state))
    logging.info("best at step %d of %d: %s", at, training.steps, _shown(metrics))
    return Outcome(best, at, metrics)


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens every `every` steps (0: never in between) and at step `total` is due at `step`."""
    return step == total or (every > 0 and step % every == 0)


def automatic_steps_per_call(used: Sequence[Device], log_every: int, state: Any, batch: Batch) -> int:
    """How many steps one call runs by default.

    One on a CPU; one where a device holds more than 64 MiB of the state, that of 8 million parameters with momentum,
    or 16 batches of a process take more. Otherwise 16, or fewer if a window of the log takes no more calls with them.
    """
    held = sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(state))
    stacked = _MOST_STEPS * sum(value.size * value.dtype.itemsize for value in batch.values())
    if used[0].platform == "cpu" or max(held, stacked) > _MOST_BYTES:
        return 1
    return min(range(1, _MOST_STEPS + 1), key=lambda steps: sum(divmod(log_every or _MOST_STEPS, steps)))


def outlines(place: Place, name: str, program: Program, loop: Loop) -> list[Pass]:
    """What a training compiles: one step, and where calls run several, such a call; see `Loop.steps_per_call`."""
    one = place.outline(name, program)
    fed, most = place.fed(program.batch), loop.steps_per_call
    most = most or automatic_steps_per_call(place.used, loop.log_every, one.arguments[1], fed)
    if most == 1 or 0 < loop.log_every < most:  # a log ends every call before it has so many
        return [one]
    return [one, place.outline(f"{name}, {most} steps", program, steps=most)]


def fit(
    training: Training,
    state: Any,
    start: int,
    journals: Sequence[Journal],
    checkpoints: Sequence[Checkpoints],
    *,
    stop: Stop,
    profile: Profile | None = None,
) -> tuple[Any, Failures]:
    """Train from step `start` to the end.

    Args:
      training: what is trained.
      state: at step `start`, as the place's `restore` gives it.
      journals, checkpoints: of the members.
      stop: says when to stop.
      profile: steps to trace.

    Returns:
      The state after the last step, on the devices, and the members that were given up because a metric was not
      finite; the last state of the others is saved.

    Raises:
      Preempted: the run was asked to stop; the states of all members are saved.
    """
    place, cadence, steps = training.place, training.cadence, training.steps
    for journal in journals:
        journal.rewind(start)
    state = place.begin(state)
    numbers, resident = place.put_numbers(training.numbers), place.share(training.resident)
    compiled = {stacked: place.jit(training.step, state, stacked=stacked) for stacked in (False, True)}
    progress = _progress(start, steps, shown=journals[0].writes)
    windows = Windows(place, journals, start, training.batch_size, progress)
    tracing = Tracing(profile, journals[0].path.name, start, steps)
    feed, at = _feed(training, state, start, tracing), start
    try:
        for count, batch in feed:
            program = compiled[count > 1]
            windows.prepare(program, numbers, state, batch, resident)
            if tracing.before(at + 1, state):
                windows.disturb()
            with jax.transfer_guard("disallow"):  # a hidden copy in the step's arguments would cost every step
                state, metrics = program(numbers, state, batch, resident)
            at += count
            windows.add(metrics, count, program.flops(batch))
            if tracing.after(at, state):
                windows.disturb()
            stops = stop.requested()
            evaluate = training.evaluate if due(at, cadence.eval_every, steps) else None
            saves = stops or evaluate is not None or due(at, cadence.checkpoint_every, steps)
            if saves or _logs(cadence, at):
                windows.turn(at, wait=saves)  # before a save every loss so far has been seen to be finite
            if not windows.alive:
                break
            if saves:
                values = None if evaluate is None else evaluate(numbers, state, resident)
                _keep(place, state, at, values, windows.alive, journals, checkpoints)
                windows.resume()
            if stops and at < steps:
                for kept in checkpoints:
                    kept.wait()
                raise Preempted(f"saved at step {at} of {steps} in {journals[0].path}")
    finally:
        feed.close()
        tracing.close()
        progress.close()
        windows.close()
        for kept in checkpoints:
            kept.wait()
    return state, windows.failures


def _logs(cadence: Cadence, at: int) -> bool:
    return cadence.log_every > 0 and at % cadence.log_every == 0


def _feed(training: Training, state: Any, start: int, tracing: Tracing) -> Generator[tuple[int, Any], None, None]:
    """(number of steps, their batches on the devices) of every call from step `start` on."""
    place, cadence, steps = training.place, training.cadence, training.steps
    batches = iter(training.batches(start))
    most = cadence.steps_per_call
    if not most and (first := next(batches, None)) is not None:
        most = automatic_steps_per_call(place.used, cadence.log_every, state, first)
        batches = itertools.chain([first], batches)

    def ends(at: int) -> bool:
        saves = due(at, cadence.eval_every, steps) or due(at, cadence.checkpoint_every, steps)
        return saves or _logs(cadence, at) or tracing.ends(at)

    queued = calls(batches, start, steps, most, ends)
    return prefetch(queued, lambda call: (call[0], place.put(call[1], stacked=call[0] > 1)))


def _keep(
    place: Place,
    state: Any,
    at: int,
    values: Values | None,
    alive: Sequence[int],
    journals: Sequence[Journal],
    checkpoints: Sequence[Checkpoints],
) -> None:
    """Log the metrics of an evaluation, if there was one, and save the states of the members that are alive."""
    states = place.each(state)
    for index in alive:
        if values is not None:
            journals[index].log(at, values[index])
            logging.info("step %d: %s", at, _shown(values[index]))
        checkpoints[index].save(at, states[index], values[index] if values is not None else None)


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def _progress(start: int, steps: int, *, shown: bool) -> tqdm:
    return tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, disable=not shown, mininterval=1.0)
