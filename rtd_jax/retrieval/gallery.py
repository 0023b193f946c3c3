"""Where a gallery lies, and its chunks: each device has rows of its own, behind those of the device before it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.training.prefetch import prefetch
from launch.training.sharding import Device, on_devices

_ROUND = 128  # chunks of more rows have a multiple of them, which `scoring` can divide into blocks


@dataclass(frozen=True, eq=False)
class Gallery:
    """A gallery that lies on devices, its rows split over them; see `place`.

    Attributes:
      shape: (n, d).
      mesh: the devices, along "data".
      rows: (devices * s, d), split. s is the same for all, so that rows may be repeated, or filling.
      spans: int32 (devices, 3): the number of a device's first row in the gallery; begin and end of those, among its s,
        that it is to search.
    """

    shape: tuple[int, int]
    mesh: Mesh
    rows: jax.Array
    spans: np.ndarray

    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def share(self) -> int:
        """The most rows that a device searches."""
        return int((self.spans[:, 2] - self.spans[:, 1]).max())


def place(gallery: np.ndarray | jax.Array, devices: Sequence[Device] | None = None) -> Gallery:
    """Put a gallery (n, d) on the devices, its rows split over them, for searches to come.

    A `jax.Array` stays as it is on the devices that have it, unless its columns are split: then its rows will be, in a
    copy.

    Args:
      gallery: float (n, d). One that spans processes is given by all of them.
      devices: of this process; by default all of them.
    """
    if isinstance(gallery, jax.Array):
        return _as_it_lies(gallery)
    mesh = row_mesh(jax.local_devices() if devices is None else devices)
    share, first, held = _shares(len(gallery), mesh.size)
    return _split(mesh, _load(gallery, mesh, share, first, held), len(gallery))


def _shares(rows: int, devices: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many rows a device has at most; the first of each and their number."""
    share = -(-rows // devices)
    first = np.arange(devices) * share
    return share, first, np.clip(rows - first, 0, share)


def _split(mesh: Mesh, rows: jax.Array, count: int) -> Gallery:
    """Of `count` rows and filling behind them, split evenly."""
    _, first, held = _shares(count, mesh.size)
    return Gallery((count, rows.shape[1]), mesh, rows, _spans(first, np.zeros_like(first), held))


def _as_it_lies(gallery: jax.Array) -> Gallery:
    """The same buffers, with each device's span; devices that have the same rows share their work."""
    count, width = gallery.shape
    pieces = gallery.sharding.devices_indices_map(gallery.shape).items()
    if any(columns.indices(width)[:2] != (0, width) for _, (_, columns) in pieces):
        mesh = row_mesh(sorted(gallery.devices(), key=lambda device: device.id))
        filled = jnp.pad(gallery, ((0, -count % mesh.size), (0, 0)))
        return _split(mesh, jax.device_put(filled, NamedSharding(mesh, P("data"))), count)
    bounds = {device: rows.indices(count)[:2] for device, (rows, _) in pieces}
    devices = sorted(bounds, key=lambda device: (bounds[device], device.id))
    spans = []
    for (begin, end), group in itertools.groupby(devices, key=lambda device: bounds[device]):
        held, copies = end - begin, len(list(group))
        share = -(-held // copies)
        spans += [(begin, min(i * share, held), min((i + 1) * share, held)) for i in range(copies)]
    mesh, held = row_mesh(devices), bounds[devices[0]][1] - bounds[devices[0]][0]
    here = {shard.device: shard.data for shard in gallery.addressable_shards}
    rows = jax.make_array_from_single_device_arrays(
        (len(devices) * held, width),
        NamedSharding(mesh, P("data")),
        [here[device] for device in devices if device in here],
    )
    return Gallery((count, width), mesh, rows, np.array(spans, np.int32))


def chunks(gallery: Gallery, size: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """(gallery, spans) of each chunk, as `scoring.search` takes them: no more than `size` rows a device."""
    first, begin, end = gallery.spans.T
    for offset in range(0, gallery.share, size):
        low = np.minimum(begin + offset, end)
        yield gallery.rows, put(gallery.mesh, _spans(first, low, np.minimum(low + size, end)), "data")


def read(gallery: np.ndarray, size: int, mesh: Mesh) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The same of a gallery on the host, perhaps mapped from a file, read ahead in a thread."""
    share, first, held = _shares(len(gallery), mesh.size)

    def parts():
        for offset in range(0, share, size):
            now = np.clip(held - offset, 0, size)
            rows = _load(gallery, mesh, size, first + offset, now)
            yield rows, put(mesh, _spans(first + offset, np.zeros_like(now), now), "data")

    yield from prefetch(parts(), lambda part: part)


def _load(gallery: np.ndarray, mesh: Mesh, size: int, first: np.ndarray, held: np.ndarray) -> jax.Array:
    """(devices * size, d): of each device the rows from its `first` on, zeros behind the `held` ones."""
    shape = (mesh.size * size, gallery.shape[1])

    def rows(index) -> np.ndarray:
        device = index[0].indices(shape[0])[0] // size
        return _filled(gallery[first[device] : first[device] + held[device]], size)

    return jax.make_array_from_callback(shape, NamedSharding(mesh, P("data")), rows)


def chunk_rows(rows: int, most: int) -> int:
    """Rows of a chunk: `most` or less, so that the last chunk of a device's rows is about as full as the others."""
    size = -(-rows // -(-rows // most))
    return -(-size // _ROUND) * _ROUND if size > _ROUND else size


def row_mesh(devices: Sequence[Device]) -> Mesh:
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def put(mesh: Mesh, array: np.ndarray, *spec: str) -> jax.Array:
    """An array that every process has -> its shards on the devices."""
    return on_devices(array, NamedSharding(mesh, P(*spec)))


def _spans(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1).astype(np.int32)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Float32 or half rows, zeros behind them up to `size`."""
    rows = np.asarray(rows)
    rows = rows if rows.dtype in (np.float16, np.float32) or rows.dtype.name == "bfloat16" else rows.astype(np.float32)
    missing = size - len(rows)
    return np.concatenate([rows, np.zeros((missing, rows.shape[1]), rows.dtype)]) if missing else rows
