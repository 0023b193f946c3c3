"""Where arrays live, and how a pure step becomes one compiled program over the devices.

Two modes with the same layout of the state, so that they can continue each other's checkpoints:
  "jit"   one program over the global batch; batch norm and other statistics over examples use all of it.
  "pmap"  each device runs the step on its share and gradients are averaged over the axis "data", like
          DistributedDataParallel: batch statistics and in-batch negatives are per device. Built on `shard_map`, like
          `jax.pmap` itself.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.settings import SettingError

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm] - of a compiled module without stubs
MODES = ("jit", "pmap")
RESIDENT = "resident"  # the key of a batch under which every device keeps the whole: an in-memory data set
SPLIT_LEAST = 1 << 16  # numbers in an array that fsdp splits: smaller ones take longer to collect than they are worth


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    automatic: bool = False,
) -> None:
    """Join the other processes of this run, if any, through `jax.distributed.initialize`.

    They are known from the arguments; from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; or to
    JAX itself in a SLURM step or under mpirun with more than one task, on a TPU slice that names its workers in the
    environment, in a Kubernetes indexed job (which needs `pip install jax[k8s]`), and wherever `automatic` is set. A
    single process starts nothing. Call it before anything else uses JAX's devices.

    Raises:
      ValueError: only some of coordinator, number of processes and process id are given.
    """
    env = os.environ
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    if coordinator or num_processes is not None or process_id is not None:
        count = num_processes if num_processes is not None else int(env.get("JAX_NUM_PROCESSES", -1))
        this = process_id if process_id is not None else int(env.get("JAX_PROCESS_ID", -1))
        if not coordinator or count < 1 or not 0 <= this < count:
            raise ValueError(
                f"several processes need --coordinator=HOST:PORT (got {coordinator}), --num_processes (got {count}) "
                f"and --process_id from 0 to one less (got {this}), or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
                "and JAX_PROCESS_ID"
            )
        jax.distributed.initialize(coordinator, count, this)
    elif automatic or _is_one_of_many(env):
        jax.distributed.initialize()
    else:
        return
    logging.info("process %d of %d, %d devices", jax.process_index(), jax.process_count(), jax.device_count())


def _is_one_of_many(env: Mapping[str, str]) -> bool:
    """Whether the environment says that a scheduler has started several processes."""
    return (
        int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1  # of the step, not the allocation: a bare command is alone
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "") + env.get("TPU_PROCESS_ADDRESSES", "")
        or ("KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env)
    )


def _path(path) -> str:
    """A pytree path as 'params/conv1/kernel'."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


@dataclass(frozen=True)
class Layout:
    """A mesh with axes ("data", "model"), a mode, and what says which parameters are split.

    Attributes:
      mesh: devices, shape (data, model); model is 1 unless parameters are split.
      mode: "jit" or "pmap".
      rules: (regex over a leaf's path, PartitionSpec) pairs, the first match wins; leaves without a match are
        replicated. Paths of optimiser states end in those of their parameters, so one rule covers both.
      fsdp: whether large arrays of the state are split over "data" too; see `also_over_data`.
    """

    mesh: Mesh
    mode: str = "jit"
    rules: Sequence[tuple[str, P]] = ()
    fsdp: bool = False

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    @property
    def data_shards(self) -> int:
        return self.mesh.shape["data"]

    def batches(self, *, stacked: bool = False) -> NamedSharding:
        """Where `put` puts a batch, or several that are stacked."""
        return NamedSharding(self.mesh, _examples(stacked))

    @functools.cached_property
    def share(self) -> dict[str, int]:
        """Which part of every global batch this process feeds, as arguments of feeds: `process_index` and
        `process_count`, counted over the parts. Processes that hold parts of the same replicas feed the same rows.
        """
        rows = _rows(self.mesh.devices)[jax.process_index()]
        return {"process_index": rows.start // len(rows), "process_count": self.data_shards // len(rows)}

    def check_batch(self, batch_size: int, name: str = "batch_size") -> None:
        """Raise SettingError unless a global batch divides evenly over the devices."""
        if batch_size < 1 or batch_size % self.data_shards:
            below = batch_size // self.data_shards * self.data_shards
            raise SettingError(
                name,
                f"={batch_size} does not divide evenly over {self.data_shards} devices; "
                f"take {below or self.data_shards} or {below + self.data_shards}",
            )

    def state_shardings(self, state) -> Any:
        """A NamedSharding for every leaf of `state`, by the rules.

        Raises:
          ValueError: a rule matches no leaf, or splits an axis into unequal parts; the error names the rule or leaf.
        """
        unused = {pattern for pattern, _ in self.rules}

        def sharding(path, leaf):
            name = _path(path)
            pattern, spec = next((rule for rule in self.rules if re.search(rule[0], name)), ("", P()))
            unused.discard(pattern)
            try:
                NamedSharding(self.mesh, spec).shard_shape(np.shape(leaf))
            except (ValueError, IndexError) as error:  # IndexError: more axes than the leaf has
                raise ValueError(f"rule {pattern!r} -> {spec} does not fit {name} of shape {leaf.shape}") from error
            if self.fsdp:
                spec = also_over_data(spec, np.shape(leaf), self.data_shards)
            return NamedSharding(self.mesh, spec)

        shardings = jax.tree_util.tree_map_with_path(sharding, state)
        if unused:
            raise ValueError(f"no parameter matches the partition rules {sorted(unused)}")
        return shardings

    def place(self, state) -> Any:
        """Put a state (the same on every process) on the devices, in buffers that may be donated."""
        copy = jax.jit(lambda tree: tree, out_shardings=self.state_shardings(state))
        return copy(jax.tree.map(np.asarray, state))

    def put(self, batch: dict[str, np.ndarray], *, stacked: bool = False) -> dict[str, jax.Array]:
        """This process's `share` of a global batch (b, …), or of k `stacked` ones (k, b, …), split over "data"."""
        sharding = self.batches(stacked=stacked)
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        joined = lambda own: _joined(np.asarray(own), sharding, axis=int(stacked), **self.share)
        return {name: joined(own) for name, own in batch.items()}

    def replicate(self, tree) -> Any:
        """The same host arrays on every process -> one copy on every device."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(lambda array: on_devices(array, self.replicated), tree)

    def abstract(self, state) -> Any:
        """The state's shapes with the shardings that `place` gives it."""
        shaped = lambda leaf, sharding: jax.ShapeDtypeStruct(
            np.shape(leaf), jax.dtypes.result_type(leaf), sharding=sharding
        )
        return jax.tree.map(shaped, state, self.state_shardings(state))

    def jit(self, step: Callable, state, *, stacked: bool = False) -> Any:
        """`step(numbers, state, batch, *, axis_name=None)` as one donated, sharded program.

        Args:
          step: a `launch.training.program.Step`.
          state: an example state, arrays or shapes, for its shardings.
          stacked: the step takes k batches, as `put` stacks them.

        Returns:
          The jitted `(numbers, state, batch) -> (state, metrics)`; the state that goes in is consumed, metrics are
          replicated scalars.
        """
        if self.mode == "jit":
            return jax.jit(step, donate_argnums=1, out_shardings=(self.state_shardings(state), self.replicated))

        def sharded(numbers, state, batch):
            specs = {k: P() if k == RESIDENT else _examples(stacked) for k in batch}
            # check_vma=False: the step averages its own gradients; with the check on, those of replicated
            # parameters would come out summed over the devices before that.
            mapped = jax.shard_map(
                lambda numbers, state, batch: step(numbers, state, batch, axis_name="data"),
                mesh=self.mesh,
                in_specs=(P(), P(), specs),
                out_specs=(P(), P()),
                check_vma=False,
            )
            return mapped(numbers, state, batch)

        return jax.jit(sharded, donate_argnums=1)


def _examples(stacked: bool) -> P:
    """How a batch is split, or a stack of them."""
    return P(None, "data") if stacked else P("data")


def layout(
    mode: str = "jit", *, model: int = 1, rules: Sequence[tuple[str, P]] = (), fsdp: bool = False, devices=None
) -> Layout:
    """A layout over all devices (of all processes) or over `devices`.

    Args:
      mode: "jit" or "pmap".
      model: how many devices share one copy of the parameters ("jit" only).
      rules: which parameters are split; see `Layout`.
      fsdp: split large arrays of the state over the devices of "data" too ("jit" only).

    Raises:
      ValueError: an unknown mode, a `model` that does not divide the devices or that cuts across processes, or split
        parameters in "pmap".
    """
    if mode not in MODES:
        raise ValueError(f"unknown sharding mode {mode!r}; valid modes: {', '.join(MODES)}")
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise ValueError(f"model={model} does not divide {len(devices)} devices")
    if mode == "pmap" and (model > 1 or rules or fsdp):
        raise ValueError("mode 'pmap' keeps whole parameters on every device; split them in mode 'jit'")
    # Auto axes: GSPMD decides inside jit.
    mesh = Mesh(_grid(devices, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    return Layout(mesh, mode, tuple(rules), fsdp)


def also_over_data(spec: P, shape: Sequence[int], shards: int) -> P:
    """A partition that splits the longest axis that is whole and divides, too; the same one if there is none.

    For fully sharded data parallelism, where parameters and optimiser states are split over the axis "data": XLA
    collects a layer's weights where they are used, and gives each device its part of the summed gradients (Rajbhandari
    et al. 2020, https://arxiv.org/abs/1910.02054, stage 3). The numbers are those of whole copies, up to the order of
    sums.

    Args:
      spec: the partition of an array over other axes of the mesh.
      shape: of the array.
      shards: size of the mesh's axis "data".
    """
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    fit = [i for i, size in enumerate(shape) if axes[i] is None and size % shards == 0]
    if math.prod(shape) < SPLIT_LEAST or not fit:
        return spec
    axes[max(fit, key=lambda i: shape[i])] = "data"
    return P(*axes)


def _joined(
    own: np.ndarray, sharding: NamedSharding, *, axis: int, process_index: int, process_count: int
) -> jax.Array:
    """The global array of which this process has one of `process_count` parts along an axis."""
    size, shape = own.shape[axis], list(own.shape)
    shape[axis] = size * process_count
    start = size * process_index

    def part(place: Any) -> np.ndarray:
        first, last, _ = place[axis].indices(size * process_count)
        return own[(slice(None),) * axis + (slice(first - start, last - start),)]

    return jax.make_array_from_callback(tuple(shape), sharding, part)


def _grid(devices: Sequence[Device], model: int) -> np.ndarray:
    """Devices by (data, model): near ones share a replica, and each process has one contiguous part of "data".

    Raises:
      ValueError: no order gives every process replicas of its own, or the same parts of replicas as its neighbours.
    """
    for grid in _orders(devices, model):
        # Replicas of the same processes together; sums over "data" do not care which replica is where.
        grid = grid[sorted(range(len(grid)), key=lambda row: sorted({d.process_index for d in grid[row]}))]
        if all(_rows(grid).values()):
            return grid
    processes = len({device.process_index for device in devices})
    each = len(devices) // processes
    raise ValueError(
        f"model={model} cuts across the {processes} processes with {each} devices each: one would hold parts of "
        f"several replicas; take a divisor of {each} or a multiple of it"
    )


def _orders(devices: Sequence[Device], model: int) -> Iterator[np.ndarray]:
    """Devices by (data, model): by the topology of every slice if replicas fit into slices, and as they are given."""
    slices: dict[int, list[Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    one_a_chip = not any(getattr(device, "core_on_chip", 0) for device in devices)  # the others have no such order
    if one_a_chip and not any(len(part) % model for part in slices.values()):
        # As `jax.make_mesh`, which takes neither several slices nor, on most TPUs, a part of an axis of the torus.
        near = functools.partial(mesh_utils.create_device_mesh, allow_split_physical_axes=True)
        yield np.concatenate([near((len(part) // model, model), part) for part in slices.values()])
    yield np.array(devices).reshape(-1, model)


def _rows(grid: np.ndarray) -> dict[int, range]:
    """The rows of a grid in which each process has devices; empty unless they are one of several equal parts of it."""
    found: dict[int, list[int]] = {}
    for row, devices in enumerate(grid):
        for process in {device.process_index for device in devices}:
            found.setdefault(process, []).append(row)

    def part(rows: list[int]) -> range:
        first, count = rows[0], len(rows)
        equal = rows[-1] - first < count and not first % count and not len(grid) % count
        return range(first, first + count) if equal else range(0)

    return {process: part(rows) for process, rows in found.items()}


def on_devices(array: np.ndarray, where: NamedSharding) -> jax.Array:
    """An array that every process has whole, split over the devices of all."""
    return jax.make_array_from_callback(array.shape, where, lambda place: array[place])


def of_one_process(devices: Sequence[Device]) -> list[Device]:
    """Those of the first device's process: what `jax.local_devices` gives there."""
    return [device for device in devices if device.process_index == devices[0].process_index]


def local(params: Any) -> Any:
    """Parameters with which this process can compute alone; with several processes, all of them call it."""
    if jax.process_count() == 1:
        return params

    def whole(leaf: jax.Array) -> Any:
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, params)
