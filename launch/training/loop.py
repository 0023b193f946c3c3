"""The one training loop: dispatch steps ahead of the host, look at the numbers now and then, save, resume, stop."""

import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from launch.run import Preempted, Run
from launch.training import sharding
from launch.training.checkpoint import Checkpoints, abstract

LOSS = "loss"  # the metric that every step has; all of them must stay finite


class NonFiniteLoss(FloatingPointError):
    """The loss or another metric of a step, the gradient's norm say, is NaN or infinite; what was saved is older."""


def prefetch(batches: Iterable[Any], put: Callable[[Any], Any], depth: int = 2) -> Iterator[Any]:
    """Build batches and start their transfer to the devices in a thread: `depth` wait, one more is in its hand.

    An exception in the thread is raised where the next batch is asked for. Closing the generator ends the
    thread.
    """
    buffer: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def offer(item) -> bool:
        while not closed.is_set():
            try:
                buffer.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for batch in batches:
                if not offer((put(batch), None)):
                    return
        except BaseException as error:  # handed over to the consumer, who raises it
            offer((None, error))
        else:
            offer((None, StopIteration()))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            batch, error = buffer.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        closed.set()
        thread.join(timeout=5)


NEVER = np.iinfo(np.int32).max  # a step that does not come


@jax.jit
def _gather(total: dict, metrics: dict[str, jax.Array], step: jax.Array) -> dict:
    """Add one step's metrics to a window's sums; remember the first step where one of them was not finite.

    Metrics are scalars, or arrays of one shape: then entry by entry.
    """
    bad = jnp.any(jnp.stack([~jnp.isfinite(value) for value in metrics.values()]), axis=0)
    first = jnp.minimum(total["bad"], jnp.where(bad, step, NEVER))
    return {"sums": {k: total["sums"][k] + v for k, v in metrics.items()}, "bad": first}


class Windows:
    """Metrics of the steps since the last look, summed on the device, and those that are on their way to the host.

    A window is read one window after it was closed, so the device never waits for the host; reading it also keeps the
    host from running more than two windows ahead.
    """

    def __init__(self, emit: Callable[[int, dict[str, float]], None], start: int):
        self.emit = emit
        self.total: dict | None = None
        self.pending: list[tuple[int, Any]] = []
        self.closed = self.step = start
        self.seen = (start, time.perf_counter())

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self.step += 1
        if self.total is None:
            self.total = {"sums": jax.tree.map(jnp.zeros_like, metrics), "bad": np.int32(NEVER)}
        self.total = _gather(self.total, metrics, np.int32(self.step))

    def turn(self, step: int, *, wait: bool = False) -> None:
        """Close the window at `step`; read the one closed before, or with `wait` this one too."""
        if self.total is not None:
            jax.tree.map(lambda a: a.copy_to_host_async(), self.total)
            self.pending.append((step, self.total))
            self.total = None
        while self.pending and (wait or len(self.pending) > 1):
            self.read(*self.pending.pop(0))

    def read(self, step: int, total) -> None:
        """Emit the means of a window that ends at `step`.

        Raises:
          NonFiniteLoss: a metric of one of its steps is not finite.
        """
        total = jax.device_get(total)
        if total["bad"] != NEVER:
            raise not_finite(total["bad"], total["sums"])
        count, rate = self.advance(step)
        means = {k: float(v) / count for k, v in total["sums"].items()}
        self.emit(step, means | {"steps_per_second": rate})

    def advance(self, step: int) -> tuple[int, float]:
        """How many steps the window that ends at `step` has, and how many were done in a second."""
        count, self.closed = step - self.closed, step
        before, then = self.seen
        now = time.perf_counter()
        self.seen = (step, now)
        return count, (step - before) / (now - then)


def not_finite(step: int, sums: Mapping[str, float]) -> NonFiniteLoss:
    """The error to raise where metrics, of which `sums` are sums, first were not finite at `step`."""
    names = ", ".join(f"{k} is {v}" for k, v in sums.items() if not np.isfinite(v))
    return NonFiniteLoss(
        f"not finite at step {step}: {names}; the last checkpoint is from before that step. A lower "
        "learning rate, a smaller regulariser weight or a clip_norm may help (in another --workdir)"
    )


def _reporter(run: Run, start: int, steps: int) -> tuple[tqdm, Callable[[int, dict[str, float]], None]]:
    """A progress bar, and what moves it and logs the means of the steps up to one."""
    progress = tqdm(
        total=steps, initial=start, unit="step", dynamic_ncols=True, disable=not run.writes, mininterval=1.0
    )

    def emit(at: int, values: dict[str, float]) -> None:
        run.log(at, {f"train/{k}": v for k, v in values.items()})
        progress.set_postfix({LOSS: f"{values[LOSS]:.4g}"}, refresh=False)
        progress.update(at - progress.n)

    return progress, emit


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens every so many steps (0: never in between) and at the end does at `step`."""
    return step == total or (every > 0 and step % every == 0)


def fit(
    run: Run,
    *,
    state: Any,
    step: Callable,
    batches: Callable[[int], Iterable[Mapping[str, np.ndarray]]],
    steps: int,
    layout: sharding.Layout,
    checkpoints: Checkpoints,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    resident: Any = None,
    log_every: int = 50,
    eval_every: int = 0,
    checkpoint_every: int = 0,
) -> Any:
    """Train until `state.step == steps`, from the newest checkpoint if there is one.

    Args:
      run: where metrics go, and who says when to stop.
      state: a pytree with an integer scalar `step`, the initial state, on the host or on the devices.
      step: `(state, batch, *, axis_name=None) -> (state, metrics)`, pure; metrics are scalars and hold "loss".
      batches: `start -> iterable` of this process's batches from step `start` on.
      steps: how many steps there are in all.
      layout: devices and mode.
      checkpoints: where states are kept; its `best` names one of `evaluate`'s metrics.
      evaluate: `state -> {name: value}`, at every `eval_every` steps and at the end; each time a checkpoint follows.
      resident: arrays that every device keeps whole, handed to the step as `batch["resident"]`.
      log_every, eval_every, checkpoint_every: in steps; 0 is only at the end (for logging: never in between).

    Returns:
      The state after the last step, on the devices.

    Raises:
      NonFiniteLoss: the loss or another metric is NaN or infinite; nothing bad was saved.
      Preempted: SIGTERM came; the state is saved.
    """
    state = layout.place(state)
    restored = checkpoints.restore_latest(abstract(state))
    if restored is not None:
        state, at = restored
        logging.info("continuing from step %d of %d", at, steps)
    start = int(state.step)
    if start >= steps:
        return state
    run.rewind(start)
    compiled = layout.compile(step, state)
    extra = {} if resident is None else {sharding.RESIDENT: layout.replicate(resident)}
    progress, emit = _reporter(run, start, steps)
    windows = Windows(emit, start)
    feed = prefetch(itertools.islice(batches(start), steps - start), layout.put)
    try:
        for at, batch in zip(range(start + 1, steps + 1), feed, strict=True):
            with jax.transfer_guard("disallow"):  # a hidden copy in the step's arguments would cost every step
                state, metrics = compiled(state, batch | extra)
            windows.add(metrics)
            stop = run.stop_requested()
            evaluates = evaluate is not None and due(at, eval_every, steps)
            saves = stop or evaluates or due(at, checkpoint_every, steps)
            if saves or (log_every > 0 and at % log_every == 0):
                windows.turn(at, wait=saves)  # before a save every loss so far has been seen to be finite
            if evaluates:
                values = evaluate(state)
                run.log(at, values)
                logging.info("step %d: %s", at, ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
                windows.seen = (at, time.perf_counter())
            if saves:
                checkpoints.save(at, state, values if evaluates else None)
            if stop and at < steps:
                checkpoints.wait()
                raise Preempted(f"saved at step {at} of {steps} in {run.path}")
    finally:
        feed.close()
        progress.close()
        checkpoints.wait()
    return state


@functools.partial(jax.jit, static_argnames="fn")
def _draw(fn: Callable, variables, batch, repeat) -> dict[str, jax.Array]:
    # Module-level, with `fn` static: the evaluations of one training run share one compiled program.
    values = fn(variables, batch, repeat)
    for name, value in values.items():
        if value.shape != batch["mask"].shape:
            raise ValueError(f"{name} has shape {value.shape}, the batch's mask {batch['mask'].shape}")
    return values


@functools.partial(jax.jit, static_argnames="fn")
def _once(fn: Callable, variables, batch):
    return fn(variables, batch)


@functools.partial(jax.jit, static_argnames=("finish", "repeats", "sharding"))
def _fold(values: dict[str, jax.Array], mask: jax.Array, *, finish: Callable, repeats: int, sharding):
    """Sums over a batch of what `finish` makes of each example's mean over the repeats."""
    values = finish({k: v / repeats for k, v in values.items()})
    # where, not a product: whatever the padding's value is, it must not reach the sum
    values = {k: jnp.where(mask, v, 0) for k, v in values.items()} | {"examples": mask}
    dtype = functools.reduce(jnp.promote_types, (v.dtype for v in values.values()), jnp.float32)
    totals = jnp.stack([v.astype(dtype) for v in values.values()]).sum(1)  # one sum over devices for all
    totals = jax.lax.with_sharding_constraint(totals, sharding)
    return dict(zip(values, totals, strict=True))


@jax.jit
def add(a, b):
    """The sum of two pytrees, on the devices."""
    return jax.tree.map(jnp.add, a, b)


def masked_means(
    layout: sharding.Layout,
    fn: Callable[..., dict[str, jax.Array]],
    variables: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    resident: Any = None,
    repeats: int = 1,
    once: Callable[[Any, Mapping[str, jax.Array]], Any] | None = None,
    compile_once: bool = True,
    finish: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = dict,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Means over a data set of what `fn` gives for every example: summed under the mask on the devices, divided once.

    Args:
      fn: `(variables, batch, repeat) -> {name: (n,) array}`, pure; compiled once for as long as it is the same object.
      variables: handed to `fn`, on the devices.
      batches: padded evaluation batches with a "mask".
      resident: handed to `fn` as `batch["resident"]`, on the devices.
      repeats: how often each batch is gone through, with repeat = 0, 1, …: the draws of a random perturbation, say. A
        loop on the host, one compiled program a draw: XLA on CPU runs second-order convolutions inside its own loops
        several times slower.
      once: `(variables, batch) -> pytree`, what a batch's repeats have in common, for `fn` in `batch["once"]`.
      compile_once: whether `once` is compiled as one program. False calls it as it is, on device arrays, for what is
        a loop of compiled calls on the host.
      finish: applied to each example's mean over the repeats: a root, say.
      check_stop: called between batches; may raise.

    Returns:
      {name: mean over examples} and "examples", their number.

    Raises:
      ValueError: there are no examples, or `fn` gives an array of another shape than the mask.
    """
    extra = {} if resident is None else {sharding.RESIDENT: resident}
    numbers = [layout.replicate(np.int32(i)) for i in range(repeats)]
    # The devices of a CPU share few threads: with several programs under way, the sums over devices of one can take
    # them all, and wait for ever for the part of a device that has none left.
    shared = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    one_at_a_time = jax.block_until_ready if shared else lambda values: values
    sums = None
    for batch in prefetch(batches, layout.put):
        check_stop()
        values, batch = None, batch | extra
        if once is not None:
            common = _once(once, variables, batch) if compile_once else once(variables, batch)
            batch |= {"once": common}
        for number in numbers:
            new = one_at_a_time(_draw(fn, variables, batch, number))
            values = new if values is None else add(values, new)
        totals = _fold(values, batch["mask"], finish=finish, repeats=repeats, sharding=layout.replicated)
        sums = totals if sums is None else add(sums, totals)
    if sums is None or not sums["examples"]:
        raise ValueError("there is no example to evaluate")
    sums = {k: float(v) for k, v in jax.device_get(sums).items()}
    return {k: v / sums["examples"] for k, v in sums.items() if k != "examples"} | {"examples": sums["examples"]}
