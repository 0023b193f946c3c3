"""Batches for training on texts: rows of precomputed embeddings beside token ids, cut to the longest of a batch.

Text towers cost what the longest text of a batch costs. Shuffled batches nearly always hold a long one. Where texts of
similar length go together, rows of several batches are drawn together, sorted by length and dealt out; in-batch
negatives then are texts of one length too, which the published trainings do not have. Which rows a step sees is a pure
function of (seed, step) either way.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from clip_jax import model
from clip_jax.config import ClipConfig
from launch.data import order

WINDOW = 16  # batches whose rows are drawn together
_DEAL = 0xDEA1  # a stream of random numbers drawn from one seed


@dataclass(frozen=True, eq=False)
class TextTable:
    """n examples by column.

    Attributes:
      arrays: by name, (n, ...): embeddings, perhaps mapped from a file.
      ids: by name, int32 (n, t): token ids, cut batch by batch.
      lengths: int32 (n,), tokens of the longest of an example's texts; None for examples without texts.
    """

    arrays: Mapping[str, np.ndarray]
    ids: Mapping[str, np.ndarray] = field(default_factory=dict)
    lengths: np.ndarray | None = None

    def __post_init__(self):
        sizes = {name: len(column) for name, column in {**self.arrays, **self.ids}.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"columns of different lengths: {sizes}")

    def __len__(self) -> int:
        return len(next(iter({**self.arrays, **self.ids}.values())))


def table(config: ClipConfig, arrays: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> TextTable:
    """A table with the lengths of its texts, counted to the end token."""
    ends = [model.end_positions(config, column) + 1 for column in ids.values()]
    return TextTable(arrays, ids, np.max(ends, axis=0).astype(np.int32) if ends else None)


class BatchRows(Protocol):
    """The rows of the table, int32 (b,), that the global batch of a step consists of."""

    def __call__(self, step: int, /) -> np.ndarray: ...


def grouped_rows(
    n: int, *, seed: int, batch_size: int, lengths: np.ndarray | None = None, window: int = WINDOW
) -> BatchRows:
    """`step -> rows`, int32 (batch_size,): shuffled epochs; with `lengths`, batches of texts of similar length.

    No batch holds an example twice, as it would be its own negative: the examples left over when an epoch's last
    batch is full are left out, other ones each time.

    Args:
      n: examples.
      seed: of the order.
      batch_size: global.
      lengths: int (n,); None for shuffled batches.
      window: batches drawn together.

    Raises:
      ValueError: no examples, or fewer than a batch.
    """
    order.check_positive(n, batch_size)
    if n < batch_size:
        raise ValueError(f"batch_size={batch_size} is more than the {n} examples; use a smaller one")
    per_epoch = n // batch_size

    @functools.lru_cache(maxsize=1)
    def epoch(number: int) -> np.ndarray:
        rows = order.permutation(n, seed=seed, epoch=number)[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        if lengths is None:
            return rows
        dealt = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _DEAL, number))))
        parts = [_grouped(rows[i : i + window], lengths, dealt) for i in range(0, per_epoch, window)]
        return np.concatenate(parts)

    return lambda step: epoch(step // per_epoch)[step % per_epoch]


def _grouped(rows: np.ndarray, lengths: np.ndarray, dealt: np.random.Generator) -> np.ndarray:
    """The same rows (k, b), sorted by length into k batches in random order."""
    together = rows.reshape(-1)
    batches = together[np.argsort(lengths[together], kind="stable")].reshape(rows.shape)
    return batches[dealt.permutation(len(rows))]


def batches(
    config: ClipConfig,
    table: TextTable,
    rows_at: BatchRows,
    *,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's shares of endless batches, from step `start` on.

    Yields:
      The table's columns, ids cut to the shortest static length that holds the global batch, and `slot`, int32 (b,),
      the places in the global batch, from which random numbers follow.
    """
    for step in itertools.count(start):
        rows = rows_at(step)
        first, size = order.share(len(rows), process_index, process_count)
        share = slice(first, first + size)
        batch = {name: np.ascontiguousarray(column[rows[share]]) for name, column in table.arrays.items()}
        # Cut by the global batch: every process must have the same shapes.
        batch |= {name: model.cut(config, column[rows])[share] for name, column in table.ids.items()}
        yield batch | {"slot": np.arange(first, first + size, dtype=np.int32)}
