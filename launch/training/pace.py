"""What the loop logs about its steps: means of their metrics, and how fast the devices run.

The rate counts steps that ran undisturbed: a window in which something was compiled, or that an evaluation or a
checkpoint interrupted, has none.
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
from launch.training.places import Place
from launch.training.program import LOSS


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
      total: sums of metrics, and the first step that was not finite.
      undisturbed: whether nothing but steps happened since the start of the window.
      compile_seconds: time spent compiling.
      begins: when the first step could start: a time, or the window before it, whose end it is.
      ends: when the devices were done, set by the watch.
    """

    step: int
    steps: int
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
            self._undisturbed = False
            self._compile_seconds += seconds
            logging.info("compiled the step in %.1f s", seconds)

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of the next step."""
        self._step += 1
        if self._total is None:
            self._total = {"sums": jax.tree.map(jnp.zeros_like, metrics), "bad": np.int32(NEVER)}
        self._total = _gather(self._total, metrics, np.int32(self._step))

    def turn(self, step: int, *, wait: bool = False) -> None:
        """Close the window at `step`; read the one closed before, or with `wait` this one too."""
        if self._total is not None:
            jax.tree.map(lambda a: a.copy_to_host_async(), self._total)
            window = _Window(
                step, step - self._closed, self._total, self._undisturbed, self._compile_seconds, self._begins
            )
            self._watch.note(window)
            self._pending.append(window)
            self._begins, self._closed, self._total = window, step, None
            self._undisturbed, self._compile_seconds = True, 0.0
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
        rates = {}
        if window.undisturbed:
            rates["steps_per_second"] = window.steps / window.seconds()
            rates["examples_per_second"] = rates["steps_per_second"] * self.batch_size
        if window.compile_seconds:
            rates["compile_seconds"] = window.compile_seconds
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
