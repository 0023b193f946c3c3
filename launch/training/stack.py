"""Several runs as one program: states stacked along a leading axis, a vmapped step, the stack divided over devices.

Members differ in numbers, which are traced, and in their batches; each keeps a run directory of its own, with the
metrics and checkpoints that it would have alone. Every member lives on one device, as if trained on that one: no number
goes from one device to another.
"""

import functools
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from launch.run import Preempted, Run, flatten
from launch.training import loop, sharding
from launch.training.checkpoint import Checkpoints, abstract

Numbers = Mapping[str, np.ndarray]
Batch = Mapping[str, np.ndarray]
Values = list[dict[str, float]]
Failures = dict[int, loop.NonFiniteLoss]


# -- what members differ in -----------------------------------------------------------------------------------------


def varying(configs: Sequence[Mapping]) -> list[str]:
    """The fields, by dotted name, in which some of the configs differ, or which some do not have."""
    flat, absent = [flatten(config) for config in configs], object()
    keys = dict.fromkeys(key for own in flat for key in own)
    return [key for key in keys if any(own.get(key, absent) != flat[0].get(key, absent) for own in flat)]


def numbers(configs: Sequence[Mapping], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """{field: (k,)}, the values of fields of k configs: int32, or JAX's default float.

    Raises:
      ValueError: a value is no number, or an integer of more than 32 bits.
    """
    found = {}
    for key in keys:
        values = [flatten(config)[key] for config in configs]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{key}={value!r} is no number: members that differ in it are no stack")
            if isinstance(value, int) and abs(value) >= 2**31:
                raise ValueError(f"{key}={value}: in a stack integers have 32 bits; take one below {2**31}")
        whole = all(isinstance(value, int) for value in values)
        found[key] = np.asarray(values, np.int32 if whole else jnp.result_type(float))
    return found


def substituted(config: Mapping, values: Mapping[str, Any]) -> ConfigDict:
    """The config with some fields, by dotted name, set to other values, traced ones for example."""
    nested = config.to_dict()
    for name, value in values.items():
        *parents, leaf = name.split(".")
        functools.reduce(operator.getitem, parents, nested)[leaf] = value
    return ConfigDict(nested)


# -- where they are -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Where k members are: in equal parts on some devices, the last place filled up with copies of the last member.

    Attributes:
      members: k.
      devices: the first ones are used, as many as have a member of their own.
    """

    members: int
    devices: tuple[jax.Device, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(devices d, members on each m), d · m at least k."""
        each = -(-self.members // min(len(self.devices), self.members))
        return -(-self.members // each), each

    @property
    def used(self) -> tuple[jax.Device, ...]:
        return self.devices[: self.shape[0]]

    @property
    def _sharding(self) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.used), ("members",), axis_types=(AxisType.Auto,)), P("members"))

    def place(self, state: Any) -> Any:
        """`put` a state, into buffers of its own, safe to donate: on a CPU `put` may share the host array's memory."""
        return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(self.put(state))

    def put(self, tree: Any) -> Any:
        """Host arrays (k, …) -> arrays (d, m, …) over the devices."""
        places = np.minimum(np.arange(math.prod(self.shape)), self.members - 1).reshape(self.shape)
        return jax.device_put(jax.tree.map(lambda a: np.asarray(a)[places], tree), self._sharding)

    def share(self, tree: Any) -> Any:
        """Host arrays (…) -> arrays (d, …), a copy on each device."""
        count, sharding = self.shape[0], self._sharding
        copy = lambda a: jax.make_array_from_callback((count, *a.shape), sharding, lambda index: a[None])
        return jax.tree.map(copy, tree)

    def pull(self, tree: Any) -> Any:
        """Arrays (d, m, …) -> host arrays (k, …), copied: `device_get` may share a buffer that is donated."""
        return jax.tree.map(lambda a: np.array(a).reshape(-1, *a.shape[2:])[: self.members], jax.device_get(tree))

    def compile(self, fn: Callable, *, donate: Sequence[int] = ()) -> Callable:
        """`fn(numbers, state, batch, resident)` of one member -> the same of all, as one program over the devices.

        The program takes the first three as `put` places them, and what members share, `resident`, as `share` does.
        """
        mapped = jax.vmap(fn, (0, 0, 0, None))
        return jax.pmap(mapped, axis_name="members", devices=self.used, donate_argnums=tuple(donate))


def stack(members: int, devices: Sequence[jax.Device] | None = None) -> Stack:
    """A stack of so many members over `devices`, by default all of this process."""
    return Stack(members, tuple(jax.local_devices() if devices is None else devices))


def member(tree: Any, index: int) -> Any:
    """One member's part of host arrays (k, …)."""
    return jax.tree.map(lambda a: np.asarray(a[index]), tree)


# -- training -------------------------------------------------------------------------------------------------------


def restore(states: Any, checkpoints: Sequence[Checkpoints]) -> dict[int, tuple[list[int], Any]]:
    """The newest checkpoints, where there are any.

    Args:
      states: the initial ones, host arrays (k, …).
      checkpoints: of the k members.

    Returns:
      {step: (members that go on from there, their states stacked)}. Members that were saved together are at one step,
      unless a kill came in between.
    """
    found: dict[int, list[tuple[int, Any]]] = {}
    for index, own in enumerate(checkpoints):
        initial = member(states, index)
        state, at = own.restore_latest(abstract(initial)) or (initial, 0)
        found.setdefault(at, []).append((index, state))
    joined = {}
    for at, parts in sorted(found.items()):
        indices, own = zip(*parts, strict=True)
        joined[at] = list(indices), jax.tree.map(lambda *leaves: np.stack(leaves), *own)
    return joined


class _Windows(loop.Windows):
    """`loop.Windows` of a stack: each member's means go to its own run, and one that is not finite is given up.

    Attributes:
      failures: by member, why it was.
    """

    def __init__(self, runs: Sequence[Run], stack: Stack, start: int):
        super().__init__(lambda step, means: None, start)
        self.runs, self.stack, self.failures = runs, stack, {}

    @property
    def alive(self) -> list[int]:
        return [index for index in range(len(self.runs)) if index not in self.failures]

    def read(self, step: int, total) -> None:
        total, alive = self.stack.pull(total), self.alive
        for index in alive:
            if total["bad"][index] != loop.NEVER:
                sums = {name: values[index] for name, values in total["sums"].items()}
                self.failures[index] = loop.not_finite(int(total["bad"][index]), sums)
                logging.warning("%s: %s", self.runs[index].path, self.failures[index])
        count, rate = self.advance(step)
        for index in self.alive:
            means = {f"train/{k}": float(v[index]) / count for k, v in total["sums"].items()}
            self.runs[index].log(step, means | {"train/steps_per_second": rate})


def fit(
    runs: Sequence[Run],
    *,
    stack: Stack,
    numbers: Numbers,
    states: Any,
    start: int,
    step: Callable,
    batches: Callable[[int], Iterable[Batch]],
    steps: int,
    checkpoints: Sequence[Checkpoints],
    evaluate: Callable[[Any, Any, Any], Values] | None = None,
    resident: Any = None,
    log_every: int = 50,
    eval_every: int = 0,
    checkpoint_every: int = 0,
) -> Failures:
    """Train a stack of k members from step `start` to `steps`; `launch.training.loop.fit` for many.

    Args:
      runs: of the members: where metrics go, and who says when to stop.
      stack: of k members.
      numbers: host arrays (k,), what members differ in.
      states: host arrays (k, …).
      step: `(numbers, state, batch, resident) -> (state, metrics)` of one member, pure; metrics are scalars.
      batches: `start -> iterable` of batches (k, b, …) from step `start` on.
      checkpoints: of the members.
      evaluate: `(numbers, states, resident) -> [values of each member]`, called with arrays as `Stack` places them.
      resident: arrays that all members share.
      log_every, eval_every, checkpoint_every: as in `launch.training.loop.fit`.

    Returns:
      {member: why it was given up}. Of the others the last state is saved.

    Raises:
      Preempted: a run was asked to stop; all are saved.
    """
    for run in runs:
        run.rewind(start)
    numbers, state = stack.put(numbers), stack.place(states)
    resident = stack.share({} if resident is None else resident)
    compiled = stack.compile(step, donate=(1,))
    windows = _Windows(runs, stack, start)
    feed = loop.prefetch(itertools.islice(batches(start), steps - start), stack.put)
    try:
        for at, batch in zip(range(start + 1, steps + 1), feed, strict=True):
            with jax.transfer_guard("disallow"):
                state, metrics = compiled(numbers, state, batch, resident)
            windows.add(metrics)
            stop = any([run.stop_requested() for run in runs])
            evaluates = evaluate is not None and loop.due(at, eval_every, steps)
            saves = stop or evaluates or loop.due(at, checkpoint_every, steps)
            if saves or (log_every > 0 and at % log_every == 0):
                windows.turn(at, wait=saves)
            if not windows.alive:
                break
            if evaluates:
                values = evaluate(numbers, state, resident)
                for index in windows.alive:
                    runs[index].log(at, values[index])
                windows.seen = (at, time.perf_counter())
            if saves:
                whole = stack.pull(state)
                for index in windows.alive:
                    checkpoints[index].save(at, member(whole, index), values[index] if evaluates else None)
            if stop and at < steps:
                raise Preempted(f"{len(windows.alive)} members saved at step {at} of {steps}")
    finally:
        feed.close()
        for own in checkpoints:
            own.wait()
    return windows.failures


# -- evaluating -----------------------------------------------------------------------------------------------------


def evaluator(stack: Stack, fn: Callable[..., dict[str, jax.Array]]) -> Callable[..., Values]:
    """Means over data sets of what `fn` gives for every example, of all members; `loop.masked_means` for many.

    Args:
      stack: where the members are.
      fn: `(numbers, state, batch) -> {name: (n,)}` of one member, pure; `batch` has "mask" and "resident".

    Returns:
      `(numbers, states, resident, batches) -> [{name: mean, "examples": how many} of each member]`: the first three as
      `Stack` places them, batches on the host, (k, n, …).
    """

    def sums(numbers, state, batch, resident):
        values = fn(numbers, state, batch | {sharding.RESIDENT: resident}) | {"examples": batch["mask"]}
        wide = lambda v: v.astype(jnp.promote_types(v.dtype, jnp.float32))
        return {k: jnp.where(batch["mask"], wide(v), 0).sum() for k, v in values.items()}

    compiled = stack.compile(sums)

    def means(numbers, states, resident, batches: Iterable[Batch]) -> Values:
        total = None
        for batch in loop.prefetch(batches, stack.put):
            new = compiled(numbers, states, batch, resident)
            total = new if total is None else loop.add(total, new)
        if total is None:
            raise ValueError("there is no example to evaluate")
        total = stack.pull(total)
        return [
            {k: float(v[i]) / float(total["examples"][i]) for k, v in total.items() if k != "examples"}
            | {"examples": float(total["examples"][i])}
            for i in range(stack.members)
        ]

    return means
