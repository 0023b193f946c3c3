"""From a split to batches: which examples a step sees on this process, and how they become images on device.

    place = feed.resident(split)                        # once, placed on the device
    for batch in feed.train_batches(split, seed=0, batch_size=128, start=step):
        ...                                             # inside jit: feed.materialize(batch, place)

Every batch is a pure function of (seed, step). The shares of the processes, joined in their order, are the same global
batch for any number of processes.
"""

import hashlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from launch.data import order
from launch.data.order import index_batch
from launch.data.splits import Arrays, Split

__all__ = [
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
      process_index: this process.
      process_count: number of processes; divides `batch_size`.

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


def resident(split: Split) -> dict[str, np.ndarray]:
    """The arrays to place on the device once: `images`, uint8 (n, h, w, c), and `labels`, int32 (n,).

    Empty for a Stream.
    """
    if not isinstance(split, Arrays):
        return {}
    return {"images": split.images, "labels": split.labels}


def pooled(splits: Sequence[Split]) -> tuple[dict[str, np.ndarray], list[np.ndarray | None]]:
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
    return {"images": np.stack(images), "labels": np.array(labels, np.int32)}, rows


def moved(batch: Batch, rows: np.ndarray | None) -> Batch:
    """Turn a batch of a split into one of the table of `pooled`; `rows` are the split's."""
    return batch if rows is None else {**batch, "row": rows[batch["row"]]}


def materialize(batch: dict[str, jax.Array], resident: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Complete a batch with `image`, uint8 (b, h, w, c), and `label`, int32 (b,); pure, for use inside jit.

    Rows are gathered from the resident arrays; without them, the batch has its images already.
    """
    if not resident:
        return dict(batch)
    rest = {name: value for name, value in batch.items() if name != "row"}
    image, label = (jnp.take(resident[name], batch["row"], axis=0, mode="clip") for name in ("images", "labels"))
    return {**rest, "image": image, "label": label}


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
