"""How a pass over many inputs is spread: each batch over all devices, each process with its own rows of it.

In a run of several processes all of them make the same pass; each reads its rows of every batch and gets all results.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.clip import Clip


@dataclass(frozen=True, eq=False)
class SharedBatches:
    """Batches of one size over devices.

    Attributes:
      size: rows of a batch.
      sharding: of a batch.
    """

    size: int
    sharding: NamedSharding

    @functools.cached_property
    def own(self) -> slice:
        """The rows of a batch that this process reads: those on its devices."""
        places = self.sharding.addressable_devices_indices_map((self.size,)).values()
        bounds = [place[0].indices(self.size) for place in places if place]
        return slice(min(first for first, *_ in bounds), max(last for _, last, _ in bounds))

    def parts(self, rows: int) -> Iterator[range]:
        """This process's rows of every batch of so many; where the last one has none for it, the last row of all."""
        for start in range(0, rows, self.size):
            first = min(start + self.own.start, rows - 1)
            yield range(first, max(first + 1, min(start + self.own.stop, rows)))

    def put(self, column: np.ndarray) -> jax.Array:
        """This process's rows of a batch on the devices, the last of them repeated where some are missing."""
        missing = self.own.stop - self.own.start - len(column)
        own = np.concatenate([column, np.repeat(column[-1:], missing, axis=0)]) if missing else column
        if self.sharding.is_fully_addressable:
            return jax.device_put(own, self.sharding)

        def part(place: Any) -> np.ndarray:
            first, last, _ = place[0].indices(self.size)
            return own[first - self.own.start : last - self.own.start]

        return jax.make_array_from_callback((self.size, *own.shape[1:]), self.sharding, part)

    def whole(self, rows: jax.Array) -> jax.Array:
        """A batch's results where this process can read all of them; nothing waits."""
        if self.sharding.is_fully_addressable:
            return rows
        rows = _copies(self.sharding.mesh)(rows)
        # On CPUs, processes that run ahead of each other may pair sums of different batches.
        return jax.block_until_ready(rows) if jax.default_backend() == "cpu" else rows


def placed(clip: Clip) -> Clip:
    """The same CLIP with its parameters on every device: several passes then copy them once."""
    return replace(clip, params=copied(clip.params))


def copied(params: Any, *, alone: bool = False) -> Any:
    """Parameters on every device.

    Args:
      alone: on the devices of this process, which makes its passes without the others.
    """
    return _everywhere(params, _mesh(jax.local_devices() if alone else jax.devices()))


def prepare(params: Any, rows: int, batch_size: int) -> tuple[SharedBatches, Any]:
    """How batches of at most `batch_size` rows a process are spread, and the parameters on the devices.

    Parameters that are on a mesh stay there, and batches are split over its axis "data"; others are copied to all
    devices of all processes. Few rows make a smaller batch, a power of two.
    """
    mesh = _mesh_of(params)
    if mesh is None:
        mesh = _mesh(jax.devices())
        params = _everywhere(params, mesh)
    processes = len({device.process_index for device in mesh.devices.flat})
    return _batches(mesh, min(batch_size * processes, 1 << max(rows - 1, 0).bit_length())), params


def outline(params: Any, batch_size: int, devices: Sequence[Any]) -> tuple[int, Any, NamedSharding]:
    """As `prepare` for full batches on some devices, from shapes: rows of a batch, parameters, sharding of a batch."""
    mesh = _mesh_of(params)
    if mesh is None:
        mesh = _mesh(devices)
        copy = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P()))
        params = jax.tree.map(copy, params)
    over = _batches(mesh, batch_size)
    return over.size, params, over.sharding


def _mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters, arrays or shapes, are on; None for those of the host."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh)), None)


def _batches(mesh: Mesh, rows: int) -> SharedBatches:
    """Batches of so many rows or more, split over the axis "data" if there is one."""
    axis = "data" if "data" in mesh.axis_names else None
    shards = mesh.shape[axis] if axis else 1
    return SharedBatches(-(-rows // shards) * shards, NamedSharding(mesh, P(axis)))


def _mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def _everywhere(params: Any, mesh: Mesh) -> Any:
    sharding = NamedSharding(mesh, P())
    if jax.process_count() == 1:
        return jax.device_put(params, sharding)
    host = jax.tree.map(np.asarray, params)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda place: a[place]), host)


@functools.cache
def _copies(mesh: Mesh) -> Any:
    """Copies an array of a mesh to all its devices."""
    return jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, P()))
