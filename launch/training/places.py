"""Where a training lives: one member over a mesh of devices, or a stack of members divided over devices.

`One` and `Stack` have the same interface, which `One` documents: put numbers, state, batches and resident arrays on
devices, compile a step for them, and take one member's part of a tree. Members of a stack differ in numbers, which are
traced, and in their batches; each lives on one device, as if trained there alone: nothing passes between devices.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.networks import flops
from launch.training.checkpoint import Checkpoints, abstract
from launch.training.program import Batch, Pass, Program, Step, repeated
from launch.training.sharding import RESIDENT, Device, Layout

Restored = list[tuple[int, list[int], Any]]


@dataclass(frozen=True)
class One:
    """One member over all devices of a layout."""

    layout: Layout
    members: int = 1

    @property
    def used(self) -> tuple[Device, ...]:
        """The devices that it runs on, of all processes."""
        return tuple(self.layout.mesh.devices.flat)

    def put(self, batch: Batch, *, stacked: bool = False) -> Any:
        """A batch from the host to the devices; `stacked`: those of several steps (steps, …)."""
        return self.layout.put(dict(batch), stacked=stacked)

    def put_numbers(self, numbers: Mapping[str, np.ndarray]) -> Any:
        """The members' numbers on the devices."""
        return self.layout.replicate(dict(numbers))

    def share(self, resident: Any) -> Any:
        """Arrays that every device keeps whole."""
        return None if resident is None else self.layout.replicate(resident)

    def begin(self, state: Any) -> Any:
        """What `restore` gave, on the devices, in buffers of its own, safe to donate."""
        return state

    def jit(self, step: Step, state: Any, *, stacked: bool = False) -> "Compiled":
        """`(numbers, state, batch, resident) -> (state, metrics)`; consumes the state.

        With `stacked` it runs one step after the other on batches that `put` has stacked, and gives metrics (steps,).
        """
        with_resident = lambda batch, resident: batch if resident is None else {**batch, RESIDENT: resident}
        return Compiled(self._jitted(step, state, stacked=stacked), lambda n, s, b, r: (n, s, with_resident(b, r)))

    def _jitted(self, step: Step, state: Any, *, stacked: bool) -> Any:
        return self.layout.jit(repeated(step) if stacked else step, state, stacked=stacked)

    def fed(self, batch: Batch) -> Any:
        """The shapes of what a process feeds, from those of a global batch."""
        parts = self.layout.share["process_count"]
        return {k: jax.ShapeDtypeStruct((a.shape[0] // parts, *a.shape[1:]), a.dtype) for k, a in batch.items()}

    def outline(self, name: str, program: Program, *, steps: int = 1) -> Pass:
        """What `jit` compiles for a program: shapes, placed as `put` and its like place arrays.

        Args:
          steps: of one call; several are `stacked`.
        """
        stacked, layout = steps > 1, self.layout
        before = (steps,) if stacked else ()
        batch = _on(program.batch, layout.batches(stacked=stacked), lambda shape: (*before, *shape))
        if program.resident is not None:
            batch |= {RESIDENT: _on(program.resident, layout.replicated)}
        numbers = _on(dict(program.numbers), layout.replicated)
        jitted = self._jitted(program.step, program.state, stacked=stacked)
        return Pass(name, jitted, (numbers, layout.abstract(program.state), batch))

    def restore(self, state: Any, checkpoints: Sequence[Checkpoints]) -> Restored:
        """(step, members that continue from there, their state): from the newest checkpoints, or the initial state."""
        target = self.layout.abstract(state)
        restored = checkpoints[0].restore_latest(target)
        if restored is None:
            return [(0, [0], self.layout.place(state))]
        return [(restored[1], [0], restored[0])]

    def select(self, tree: Any, index: int) -> Any:
        """One member's part of metrics or numbers that were fetched to the host."""
        del index
        return tree

    def each(self, state: Any) -> Sequence[Any]:
        """Every member's state, as a checkpoint takes it."""
        return [state]


@dataclass(frozen=True)
class Stack:
    """k members in equal parts on some devices; the last places are filled up with copies of the last member.

    Attributes:
      members: k.
      devices: only the first ones are used, those that get a member.
    """

    members: int
    devices: tuple[Device, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(devices d, members on each m), d · m at least k."""
        each = -(-self.members // min(len(self.devices), self.members))
        return -(-self.members // each), each

    @property
    def used(self) -> tuple[Device, ...]:
        """The devices that get a member."""
        return self.devices[: self.shape[0]]

    @property
    def _sharding(self) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.used), ("members",), axis_types=(AxisType.Auto,)), P("members"))

    def put(self, batch: Any, *, stacked: bool = False) -> Any:
        """Host arrays (k, …) -> arrays (d, m, …) over the devices; `stacked`: (steps, k, …) -> (d, m, steps, …)."""
        places = np.minimum(np.arange(math.prod(self.shape)), self.members - 1).reshape(self.shape)
        by_member = lambda a: np.moveaxis(a, 0, 1) if stacked else a
        return jax.device_put(jax.tree.map(lambda a: by_member(np.asarray(a))[places], batch), self._sharding)

    def put_numbers(self, numbers: Mapping[str, np.ndarray]) -> Any:
        return self.put(dict(numbers))

    def share(self, resident: Any) -> Any:
        """Host arrays (…) -> arrays (d, …), a copy on each device."""
        count, sharding = self.shape[0], self._sharding
        copy = lambda a: jax.make_array_from_callback((count, *a.shape), sharding, lambda index: a[None])
        return jax.tree.map(copy, {} if resident is None else resident)

    def begin(self, state: Any) -> Any:
        """As `put`, into its own buffers: on a CPU `put` may share the host array's memory."""
        return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(self.put(state))

    def pull(self, tree: Any) -> Any:
        """Arrays (d, m, …) -> host arrays (k, …), copied: `device_get` may share a buffer that is donated."""
        return jax.tree.map(lambda a: np.array(a).reshape(-1, *a.shape[2:])[: self.members], jax.device_get(tree))

    def map(self, fn: Callable, *, donate: Sequence[int] = ()) -> Any:
        """`fn(numbers, state, batch, resident)` of one member -> the same of all, as one program over the devices."""
        mapped = jax.vmap(fn, (0, 0, 0, None))
        return jax.pmap(mapped, axis_name="members", devices=self.used, donate_argnums=tuple(donate))

    def jit(self, step: Step, state: Any, *, stacked: bool = False) -> "Compiled":
        del state
        return Compiled(self._jitted(step, stacked=stacked), lambda n, s, b, r: (n, s, b, r))

    def _jitted(self, step: Step, *, stacked: bool) -> Any:
        whole = repeated(step) if stacked else step
        return self.map(lambda n, s, b, r: whole(n, s, {**b, RESIDENT: r} if r else b), donate=(1,))

    def fed(self, batch: Batch) -> Any:
        """The shapes of what the process feeds, from those of a member's batch."""
        return {k: jax.ShapeDtypeStruct((self.members, *a.shape), a.dtype) for k, a in batch.items()}

    def outline(self, name: str, program: Program, *, steps: int = 1) -> Pass:
        """What `jit` compiles: the program of one member, but for its numbers, which are arrays (k,)."""
        (d, m), stacked = self.shape, steps > 1
        before = (steps,) if stacked else ()
        share = lambda tree: _on(tree, self._sharding, lambda shape: (d, *shape))
        each = lambda tree: _on(tree, self._sharding, lambda shape: (d, m, *shape))
        numbers = _on(dict(program.numbers), self._sharding, lambda shape: (d, m, *shape[1:]))
        resident = share({} if program.resident is None else program.resident)
        batch = _on(dict(program.batch), self._sharding, lambda shape: (d, m, *before, *shape))
        jitted = self._jitted(program.step, stacked=stacked)
        return Pass(name, jitted, (numbers, each(program.state), batch, resident))

    def restore(self, state: Any, checkpoints: Sequence[Checkpoints]) -> Restored:
        """The initial state is on the host, (k, …); members that were saved together continue together."""
        by_step: dict[int, list[tuple[int, Any]]] = {}
        for index, kept in enumerate(checkpoints):
            initial = member(state, index)
            restored, at = kept.restore_latest(abstract(initial)) or (initial, 0)
            by_step.setdefault(at, []).append((index, restored))
        groups: Restored = []
        for at, parts in sorted(by_step.items()):
            states = [part for _, part in parts]
            groups.append((at, [i for i, _ in parts], jax.tree.map(lambda *leaves: np.stack(leaves), *states)))
        return groups

    def select(self, tree: Any, index: int) -> Any:
        return jax.tree.map(lambda a: np.asarray(a).reshape(-1, *np.shape(a)[2:])[index], tree)

    def each(self, state: Any) -> Sequence[Any]:
        whole = self.pull(state)
        return [member(whole, index) for index in range(self.members)]


Place: TypeAlias = One | Stack


def stack(members: int, devices: Sequence[Device] | None = None) -> Stack:
    """A stack of `members` members over `devices`, by default all of this process."""
    return Stack(members, tuple(jax.local_devices() if devices is None else devices))


def member(tree: Any, index: int) -> Any:
    """One member's part of host arrays (k, …)."""
    return jax.tree.map(lambda a: np.asarray(a[index]), tree)


def _on(tree: Any, sharding: NamedSharding, placed: Callable[[tuple], tuple] = lambda shape: shape) -> Any:
    """The shapes of a tree's leaves, on the devices."""
    shape = lambda a: jax.ShapeDtypeStruct(placed(np.shape(a)), jax.dtypes.result_type(a), sharding=sharding)
    return jax.tree.map(shape, tree)


class Compiled:
    """A jitted function of arranged arguments, compiled ahead of its first call for every shape of batch.

    Compiling apart from calling is what lets the loop keep compilation out of its timings.
    """

    def __init__(self, jitted: Any, arrange: Callable):
        self._jitted, self._arrange, self._compiled = jitted, arrange, {}
        self._flops: dict[tuple, float] = {}

    def prepare(self, numbers: Any, state: Any, batch: Any, resident: Any) -> bool:
        """Compile for these arguments unless that is done; returns whether it was necessary."""
        key = self._key(batch)
        if key in self._compiled:
            return False
        arguments = self._arrange(numbers, state, batch, resident)
        self._flops[key] = flops.count(jax.make_jaxpr(self._jitted)(*arguments))  # JAX keeps the trace for `lower`
        self._compiled[key] = self._jitted.lower(*arguments).compile()
        return True

    def flops(self, batch: Any) -> float:
        """Of a call with a batch of this shape, on all devices together; it is prepared."""
        return self._flops[self._key(batch)]

    def __call__(self, numbers: Any, state: Any, batch: Any, resident: Any) -> Any:
        return self._compiled[self._key(batch)](*self._arrange(numbers, state, batch, resident))

    @staticmethod
    def _key(batch: Any) -> tuple:
        return tuple((name, leaf.shape, str(leaf.dtype)) for name, leaf in sorted(batch.items()))
