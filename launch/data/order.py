"""The order of examples, a pure function of the seed: nothing has to be saved to resume a run."""

import functools
from typing import Protocol

import numpy as np


class EpochOrder(Protocol):
    """The order of an epoch's examples: int32, (n,)."""

    def __call__(self, epoch: int, /) -> np.ndarray: ...


def permutation(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Draw the order of an epoch from (seed, epoch): int32, (n,)."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    return rng.permutation(n).astype(np.int32)


def index_batch(n: int, *, seed: int, step: int, batch_size: int, epoch_order: EpochOrder | None = None) -> np.ndarray:
    """The rows of the global batch of a step.

    Epochs follow each other without a gap: position p = step * batch_size + i belongs to epoch p // n and is
    row permutation(epoch)[p % n], so nothing is dropped or padded and an epoch may end inside a batch.

    Args:
      n: examples in the split.
      seed: of the order.
      step: 0 for the first batch.
      batch_size: global; may exceed n.
      epoch_order: `permutation` of this n and seed; by default drawn again in every call. See `remembered_order`.

    Returns:
      int32, (batch_size,).

    Raises:
      ValueError: n or batch_size below 1, or a negative step.
    """
    check_positive(n, batch_size, step)
    epoch_order = epoch_order or functools.partial(_order, n, seed)
    rows = np.empty(batch_size, np.int32)
    first = step * batch_size
    filled = 0
    while filled < batch_size:
        epoch, offset = divmod(first + filled, n)
        part = epoch_order(epoch)[offset : offset + batch_size - filled]
        rows[filled : filled + len(part)] = part
        filled += len(part)
    return rows


def remembered_order(n: int, seed: int) -> EpochOrder:
    """`permutation` with the last epoch cached, for use by one iterator."""
    return functools.lru_cache(maxsize=1)(functools.partial(_order, n, seed))


def check_positive(n: int, batch_size: int, step: int = 0) -> None:
    """Raise ValueError for an empty split, a batch size below 1, or a negative step."""
    if n < 1:
        raise ValueError("the split is empty: no batch can be drawn from it")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if step < 0:
        raise ValueError(f"step={step} must not be negative")


def share(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    """First position and number of examples of this process's contiguous part of a global batch.

    Raises:
      ValueError: the batch cannot be divided equally, or the process does not exist.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} of {process_count} processes")
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} is not divisible by the {process_count} processes: "
            f"take {batch_size // process_count * process_count or process_count} "
            f"or {-(-batch_size // process_count) * process_count}"
        )
    size = batch_size // process_count
    return process_index * size, size


def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(n, seed=seed, epoch=epoch)
