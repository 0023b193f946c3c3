"""What training on texts is fed: rows of precomputed embeddings beside token ids, in batches of like length.

Text towers cost what the longest text of a batch costs. Rows of several batches are therefore drawn together, sorted by
length and dealt out; which rows a step sees stays a pure function of (seed, step).
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from clip_jax import model
from clip_jax.config import ClipConfig
from launch.data import order

WINDOW = 16  # batches whose rows are drawn together
_DEAL = 0xDEA1  # a stream of random numbers drawn from one seed


@dataclass(frozen=True, eq=False)
class Table:
    """n examples.

    Attributes:
      arrays: by name, (n, ...): embeddings, perhaps mapped from a file.
      ids: by name, int32 (n, t): token ids, cut batch by batch.
      lengths: int32 (n,), of the longest of an example's texts.
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


def table(config: ClipConfig, arrays: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> Table:
    """A table that knows how long its texts are, counted to the end token."""
    ends = [model.end_positions(config, column) + 1 for column in ids.values()]
    return Table(arrays, ids, np.max(ends, axis=0).astype(np.int32) if ends else None)


def grouped_rows(
    n: int, *, seed: int, batch_size: int, lengths: np.ndarray | None = None, window: int = WINDOW
) -> Callable[[int], np.ndarray]:
    """`step -> rows`, int32 (batch_size,): shuffled epochs, batches of like length.

    No batch holds an example twice, which would be its own negative: what is left of an epoch when its last batch is
    full is left out, other examples each time.

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
        raise ValueError(f"batch_size={batch_size} is more than the {n} examples that there are")
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
    table: Table,
    rows_at: Callable[[int], np.ndarray],
    *,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end, from step `start` on: this process's share of each.

    Yields:
      The table's columns, ids cut to the shortest static length that holds the global batch, and `slot`, int32 (b,),
      the places in the global batch, which random numbers go by.
    """
    for step in itertools.count(start):
        rows = rows_at(step)
        first, size = order.share(len(rows), process_index, process_count)
        own = slice(first, first + size)
        batch = {name: np.ascontiguousarray(column[rows[own]]) for name, column in table.arrays.items()}
        # Cut by the global batch: every process has to give the same shapes.
        batch |= {name: model.cut(config, column[rows])[own] for name, column in table.ids.items()}
        yield batch | {"slot": np.arange(first, first + size, dtype=np.int32)}
