"""From a split to batches: which examples a step sees on this process, and how they become images on device.

    place = feed.resident(split)                        # once, placed on the device
    for batch in feed.train_batches(split, seed=0, batch_size=128, start=step):
        ...                                             # inside jit: feed.materialize(batch, place)

Every batch is a pure function of (seed, step). The shares of the processes, joined in their order, are the same global
batch for any number of processes.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from launch.data import order
from launch.data.order import index_batch
from launch.data.splits import Arrays, Split

__all__ = [
    "Table",
    "eval_batches",
    "index_batch",
    "materialize",
    "moved",
    "num_eval_batches",
    "pooled",
    "resident",
    "train_batches",
]

Batch = dict[str, np.ndarray]
_COLUMNS = 128  # of a vector register on a TPU


@struct.dataclass
class Table:
    """Rows that stay on a device, laid out so that gathering some of them reads no others.

    XLA keeps an array such as uint8 (50000, 32, 32, 3) on a TPU with the examples innermost, and copies the whole of it
    before it gathers rows. Rows made of whole vectors of 128 columns stay together.

    Attributes:
      data: (n, k, 128), or (m, 128) where a vector holds one row or several; the rest of a vector is filled with zeros.
      row_shape: of a row, without the filling.
      count: of the rows, n.
    """

    data: Any
    row_shape: tuple[int, ...] = struct.field(pytree_node=False)
    count: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, array: np.ndarray) -> "Table":
        """From rows (n, …) on the host; without a copy where the size of a row is a multiple of 128."""
        n, width, shape = len(array), math.prod(array.shape[1:]), _padded(array.shape)
        together = _together(width)
        flat = array.reshape(n, width)
        if n % together:
            flat = np.pad(flat, ((0, -n % together), (0, 0)))
        flat = flat.reshape(shape[0], together * width)
        if width * together % _COLUMNS:
            flat = np.pad(flat, ((0, 0), (0, -width * together % _COLUMNS)))
        return cls(flat.reshape(shape), array.shape[1:], n)

    @classmethod
    def shapes(cls, array: jax.ShapeDtypeStruct) -> "Table":
        """The shapes of `of`, from the shape of the rows."""
        return cls(jax.ShapeDtypeStruct(_padded(array.shape), array.dtype), array.shape[1:], array.shape[0])

    def __len__(self) -> int:
        return self.count

    def gather(self, rows: jax.Array) -> jax.Array:
        """Rows (b, …) by their indices, int (b,); pure. An index past the end gives the last row."""
        width = math.prod(self.row_shape)
        together = _together(width)
        rows = jnp.clip(rows, 0, self.count - 1)
        gathered = jnp.take(self.data, rows // together, axis=0, mode="clip").reshape(len(rows), -1)
        parts = gathered[:, : together * width].reshape(len(rows), together, width)
        if together > 1:
            chosen = (rows % together)[:, None] == jnp.arange(together)
            parts = jnp.where(chosen[..., None], parts, 0).sum(1, dtype=parts.dtype)
        return parts.reshape(len(rows), *self.row_shape)


def _together(width: int) -> int:
    """How many rows one vector holds."""
    return max(1, _COLUMNS // width)


def _padded(shape: Sequence[int]) -> tuple[int, ...]:
    width = math.prod(shape[1:])
    vectors = -(-width // _COLUMNS)
    return (shape[0], vectors, _COLUMNS) if vectors > 1 else (-(-shape[0] // _together(width)), _COLUMNS)


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield batches of training examples endlessly, from step `start` on.

    Args:
      split: Arrays or Stream.
      seed: of the order, and of a stream's random crops.
      batch_size: global; may exceed the split.
      start: step of the first batch; earlier ones are not read.
      process_index: the part of every batch that this process feeds; see `launch.training.sharding.Layout.share`.
      process_count: number of parts; divides `batch_size`.

    Yields:
      This process's b = batch_size / process_count examples. Arrays: `row`, int32 (b,), indices into the
      resident arrays. Stream: `image`, uint8 (b, h, w, c), and `label`, int32 (b,). Both: `slot`, int32 (b,),
      the position in the global batch, from which keys of single examples are derived.

    Raises:
      ValueError: empty split, batch_size < 1, start < 0, or a batch that the processes cannot share equally.
    """
    order.check_positive(len(split), batch_size, start)
    first, size = order.share(batch_size, process_index, process_count)
    if isinstance(split, Arrays):
        return _train_rows(len(split), seed, batch_size, start, slice(first, first + size))
    from launch.data import stream  # Grain takes seconds to import, and sets in memory do not need it

    return stream.train_batches(split, seed=seed, batch_size=batch_size, start=start, first=first, size=size)


def eval_batches(split: Split, *, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
    """Yield all examples once, in order; the last batch is padded with the last example, masked.

    Args: as for `train_batches`.

    Yields:
      `num_eval_batches` batches on every process: `row`, or `image` and `label`, as in `train_batches`;
      `mask`, bool (b,), False for the padding; `slot`, int32 (b,), the example's index in the split
      (counting on past its end where the mask is False).

    Raises:
      ValueError: as `train_batches`.
    """
    order.check_positive(len(split), batch_size)
    first, size = order.share(batch_size, process_index, process_count)
    if isinstance(split, Arrays):
        return _eval_rows(len(split), batch_size, first, size)
    from launch.data import stream

    return stream.eval_batches(split, batch_size=batch_size, first=first, size=size)


def num_eval_batches(split: Split, batch_size: int) -> int:
    """How many batches `eval_batches` yields."""
    return -(-len(split) // batch_size)


def resident(split: Split) -> dict[str, Any]:
    """What to place on the device once: `images`, a Table of uint8 (h, w, c), and `labels`, int32 (n, …).

    Empty for a Stream.
    """
    if not isinstance(split, Arrays):
        return {}
    return {"images": Table.of(split.images), "labels": split.labels}


def pooled(splits: Sequence[Split]) -> tuple[dict[str, Any], list[np.ndarray | None]]:
    """Join several splits in one table without repetitions, for sweep members whose seeds cut one data set.

    Args:
      splits: all in memory, or all streamed.

    Returns:
      (resident, rows): the table, as `resident` gives it, and for each split the table's rows of its examples, int32
      (n,). ({}, [None, …]) for streamed splits.
    """
    in_memory = [split for split in splits if isinstance(split, Arrays)]
    if len(in_memory) < len(splits):
        return {}, [None] * len(splits)
    known: dict[bytes, int] = {}
    images, labels, rows = [], [], []
    for split in in_memory:
        places = np.empty(len(split), np.int32)
        for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            digest = hashlib.blake2b(label.tobytes() + image.tobytes(), digest_size=20).digest()
            if (place := known.get(digest)) is None:
                place = known[digest] = len(known)
                images.append(image)
                labels.append(label)
            places[index] = place
        rows.append(places)
    return {"images": Table.of(np.stack(images)), "labels": np.array(labels, np.int32)}, rows


def moved(batch: Batch, rows: np.ndarray | None) -> Batch:
    """Turn a batch of a split into one of the table of `pooled`; `rows` are the split's."""
    return batch if rows is None else {**batch, "row": rows[batch["row"]]}


def materialize(batch: Mapping[str, Any], resident: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Complete a batch with `image`, uint8 (b, h, w, c), and `label`, int32 (b, …); pure, for use inside jit.

    Rows are gathered from what `resident` gave; without it, the batch has its images already.
    """
    if not resident:
        return dict(batch)
    rest = {name: value for name, value in batch.items() if name != "row"}
    label = jnp.take(resident["labels"], batch["row"], axis=0, mode="clip")
    return {**rest, "image": resident["images"].gather(batch["row"]), "label": label}


def _train_rows(n: int, seed: int, batch_size: int, start: int, part: slice) -> Iterator[Batch]:
    epoch_order = order.remembered_order(n, seed)
    slots = np.arange(part.start, part.stop, dtype=np.int32)
    step = start
    while True:
        rows = index_batch(n, seed=seed, step=step, batch_size=batch_size, epoch_order=epoch_order)
        yield {"row": rows[part], "slot": slots}
        step += 1


def _eval_rows(n: int, batch_size: int, first: int, size: int) -> Iterator[Batch]:
    for begin in range(0, n, batch_size):
        slots = np.arange(begin + first, begin + first + size, dtype=np.int32)
        yield {"row": np.minimum(slots, n - 1), "mask": slots < n, "slot": slots}
