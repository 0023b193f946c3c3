"""What the loop logs about its steps: means of their metrics, and how fast the devices run.

Rates count steps that ran undisturbed: a window in which something was compiled or profiled has none, and the time of
evaluations and checkpoints is in no window. FLOP/s are those of matrix products and convolutions, as
`launch.networks.flops` counts them, on all devices; `peak_share` relates them to the devices' peak rate of dense
products in bfloat16, where `launch.processes.chips` knows it. `peak_memory` is the largest of any device of process 0
since it began, in GB.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from launch.journal import Journal
from launch.processes import chips
from launch.training.places import Place
from launch.training.program import LOSS
from launch.training.sharding import Device


class NonFiniteLoss(FloatingPointError):
    """The loss or another metric of a step, the gradient's norm for example, is NaN or infinite; it is not saved."""


NEVER = np.iinfo(np.int32).max  # sentinel: no such step


@jax.jit
def _gather(total: dict, metrics: dict[str, jax.Array], step: jax.Array) -> dict:
    """Add one step's metrics to a window's sums; remember the first step where one of them was not finite.

    Metrics are scalars, or arrays of one shape: then entry by entry.
    """
    bad = jnp.any(jnp.stack([~jnp.isfinite(value) for value in metrics.values()]), axis=0)
    first = jnp.minimum(total["bad"], jnp.where(bad, step, NEVER))
    return {"sums": {k: total["sums"][k] + v for k, v in metrics.items()}, "bad": first}


@jax.jit
def _gather_all(total: dict, metrics: dict[str, jax.Array], first: jax.Array) -> dict:
    """`_gather` for several steps from `first` on, one after the other, along the last axis of their metrics."""
    by_step = {name: jnp.moveaxis(value, -1, 0) for name, value in metrics.items()}
    numbers = first + jnp.arange(len(next(iter(by_step.values()))), dtype=first.dtype)
    return jax.lax.scan(lambda total, own: (_gather(total, *own), None), total, (by_step, numbers))[0]


def not_finite(step: int, sums: Mapping[str, float]) -> NonFiniteLoss:
    """The error for metrics, summed in `sums`, that were not finite from `step` on."""
    names = ", ".join(f"{k} is {v}" for k, v in sums.items() if not np.isfinite(v))
    return NonFiniteLoss(
        f"not finite at step {step}: {names}; the last checkpoint is from before that step. A lower "
        "learning rate, a smaller regulariser weight or a clip_norm may help (in another --workdir)"
    )


@dataclass
class _Window:
    """Steps up to `step`, summed on the devices.

    Attributes:
      steps: how many.
      flops: of all of them, on all devices.
      total: sums of metrics, and the first step that was not finite.
      undisturbed: whether nothing but steps happened since the start of the window.
      compile_seconds: time spent compiling.
      begins: when the first step could start: a time, or the window before it, whose end it is.
      ends: when the devices were done, set by the watch.
    """

    step: int
    steps: int
    flops: float
    total: Any
    undisturbed: bool
    compile_seconds: float
    begins: "float | _Window"
    ends: float = 0.0

    def seconds(self) -> float:
        """How long the devices took."""
        return self.ends - (self.begins.ends if isinstance(self.begins, _Window) else self.begins)


class Watch:
    """A thread that notes when the devices are done with something, without holding up the host."""

    def __init__(self) -> None:
        self._waiting: queue.Queue = queue.Queue()
        self._done = threading.Condition()
        self._thread = threading.Thread(target=self._look, daemon=True, name="watch")
        self._thread.start()

    def note(self, window: _Window) -> None:
        """Set `window.ends` once its sums are computed."""
        self._waiting.put(window)

    def wait(self, window: _Window) -> None:
        """Return when `window.ends` is set."""
        with self._done:
            self._done.wait_for(lambda: window.ends > 0)

    def close(self) -> None:
        """End the thread."""
        self._waiting.put(None)
        self._thread.join(timeout=5)

    def _look(self) -> None:
        while (window := self._waiting.get()) is not None:
            with contextlib.suppress(Exception):  # an error of the computation is raised where its result is read
                jax.block_until_ready(window.total)
            with self._done:
                window.ends = time.perf_counter()
                self._done.notify_all()


class Windows:
    """Metrics of the steps since the last reading, summed on the devices, and those on their way to the host.

    A window is read one window after it was closed, so the devices never wait for the host; reading it also keeps the
    host from running more than two windows ahead.

    Args:
      place: of the members.
      journals: of the members.
      start: the step before the first.
      batch_size: examples per step and member.
      progress: the bar.

    Attributes:
      failures: members whose metrics were not finite, and why they were given up.
    """

    def __init__(self, place: Place, journals: Sequence[Journal], start: int, batch_size: int, progress: tqdm):
        self.place, self.journals, self.batch_size, self.progress = place, journals, batch_size, progress
        self.failures: dict[int, NonFiniteLoss] = {}
        self._total: Any = None
        self._pending: list[_Window] = []
        self._step = self._closed = start
        self._flops = 0.0
        self._begins: float | _Window = time.perf_counter()
        self._undisturbed, self._compile_seconds = True, 0.0
        self._watch = Watch()

    @property
    def alive(self) -> list[int]:
        """Members whose metrics have been finite so far."""
        return [index for index in range(len(self.journals)) if index not in self.failures]

    def prepare(self, compiled: Any, *arguments: Any) -> None:
        """Compile a `places` program for these arguments if necessary; log the time, and keep it out of the rate."""
        start = time.perf_counter()
        if compiled.prepare(*arguments):
            seconds = time.perf_counter() - start
            self.disturb()
            self._compile_seconds += seconds
            logging.info("compiled the step in %.1f s", seconds)

    def disturb(self) -> None:
        """Leave this window out of the rates."""
        self._undisturbed = False

    def add(self, metrics: dict[str, jax.Array], steps: int, flops: float) -> None:
        """Add the metrics of a call: of the next step, or of several along their last axis; `flops` are of all."""
        if self._total is None:
            sums = {k: jnp.zeros_like(v[..., 0] if steps > 1 else v) for k, v in metrics.items()}
            self._total = {"sums": sums, "bad": jnp.full_like(sums[LOSS], NEVER, np.int32)}
        gather = _gather if steps == 1 else _gather_all
        self._total = gather(self._total, metrics, np.int32(self._step + 1))
        self._step += steps
        self._flops += flops

    def turn(self, step: int, *, wait: bool = False) -> None:
        """Close the window at `step`; read the one closed before, or with `wait` this one too."""
        if self._total is not None:
            jax.tree.map(lambda a: a.copy_to_host_async(), self._total)
            window = _Window(
                *(step, step - self._closed, self._flops, self._total),
                *(self._undisturbed, self._compile_seconds, self._begins),
            )
            self._watch.note(window)
            self._pending.append(window)
            self._begins, self._closed, self._total = window, step, None
            self._undisturbed, self._compile_seconds, self._flops = True, 0.0, 0.0
        while self._pending and (wait or len(self._pending) > 1):
            self._read(self._pending.pop(0))

    def resume(self) -> None:
        """Continue after an evaluation or a checkpoint, once all windows have been read."""
        self._begins = time.perf_counter()

    def close(self) -> None:
        """End the watch."""
        self._watch.close()

    def _read(self, window: _Window) -> None:
        """Log the means of a window; give up members with a metric that is not finite."""
        total = jax.device_get(window.total)
        self._watch.wait(window)
        rates = self._rates(window)
        for index in self.alive:
            part = self.place.select(total, index)
            if part["bad"] != NEVER:
                self.failures[index] = not_finite(int(part["bad"]), part["sums"])
                logging.warning("%s: %s", self.journals[index].path, self.failures[index])
                continue
            means = {f"train/{name}": float(value) / window.steps for name, value in part["sums"].items()}
            self.journals[index].log(window.step, means | {f"train/{name}": rate for name, rate in rates.items()})
            self.progress.set_postfix({LOSS: f"{means[f'train/{LOSS}']:.4g}"}, refresh=False)
        self.progress.update(window.step - self.progress.n)

    def _rates(self, window: _Window) -> dict[str, float]:
        """How fast the steps of a window ran, and what they took of the devices."""
        rates = {}
        if window.undisturbed:
            rates["steps_per_second"] = window.steps / window.seconds()
            rates["examples_per_second"] = rates["steps_per_second"] * self.batch_size
            if window.flops:
                rates["flops_per_second"] = window.flops / window.seconds()
            if window.flops and (chip := chips.of_device(self.place.used[0])):
                rates["peak_share"] = rates["flops_per_second"] / (chip.flops * len(self.place.used))
        if window.compile_seconds:
            rates["compile_seconds"] = window.compile_seconds
        if most := max(map(_peak_memory, self.place.used)):
            rates["peak_memory"] = most / 1e9
        return rates


def _peak_memory(device: Device) -> int:
    """The most bytes that were in use on a device of this process; 0 for others, and for a CPU, which does not say."""
    stats = device.memory_stats() if device.process_index == jax.process_index() else None
    return (stats or {}).get("peak_bytes_in_use", 0)
