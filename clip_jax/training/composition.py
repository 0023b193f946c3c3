"""The images of every step: shuffled epochs, or batches of groups whose members are hard to tell apart.

In a shuffled batch the most conspicuous attributes distinguish an image from the others, and a contrastive loss learns
these first and the rest slowly. In a group whose members agree in some attributes, only the rest distinguishes them.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from launch.data import order

_KIND, _MEMBERS = 0xBA7C, 0x6207  # streams of random numbers from one seed


class RowsAt(Protocol):
    """The rows of a step's global batch, int32 (b,): a pure function of the seed that it was made with and the step."""

    def __call__(self, step: int, /) -> np.ndarray: ...


def composer(
    n: int,
    *,
    seed: int,
    batch_size: int,
    alike: Sequence[Sequence[int]] = ((),),
    group: int = 1,
    attributes: np.ndarray | None = None,
) -> RowsAt:
    """The rows of every step.

    Args:
      n: images.
      seed: of the order.
      batch_size: global.
      alike: kinds of batch, drawn equally often: the columns of `attributes` in which the members of a group agree;
        () for a shuffled batch.
      group: members of a group, no two of them with the same attributes.
      attributes: int (n, a); required by kinds with groups.

    Raises:
      ValueError: no kinds, groups that do not fill the batch evenly, or no group with `group` different members.
    """
    if not alike:
        raise ValueError("alike=() names no kind of batch; use ((),) for shuffled batches")
    epoch_order = order.remembered_order(n, seed)
    pools: dict[tuple[int, ...], list[list[np.ndarray]]] = {}
    for columns in map(tuple, alike):
        if not columns or columns in pools:
            continue
        if attributes is None:
            raise ValueError(f"the images have no attributes in which a group could agree: {columns}")
        if group < 1 or batch_size % group:
            raise ValueError(f"batch_size={batch_size} does not divide into groups of {group}")
        pools[columns] = groups(attributes, columns, group)

    def rows(step: int) -> np.ndarray:
        order.check_positive(n, batch_size, step)
        kind = tuple(alike[int(_generator(seed, _KIND, step).integers(len(alike)))])
        if not kind:
            return order.index_batch(n, seed=seed, step=step, batch_size=batch_size, epoch_order=epoch_order)
        return draw(_generator(seed, _MEMBERS, step), pools[kind], count=batch_size // group, size=group)

    return rows


def groups(attributes: np.ndarray, columns: Sequence[int], size: int) -> list[list[np.ndarray]]:
    """Groups of images that agree in `columns`, each with at least `size` different members.

    Args:
      attributes: int, (n, a).
      columns: in which all members of a group agree.
      size: smallest number of different rows of attributes in a group; smaller groups are dropped.

    Returns:
      For every group a list with one int32 array for each row of attributes that occurs in it: the images that have it.

    Raises:
      ValueError: no group is large enough.
    """
    kinds, kind = np.unique(attributes, axis=0, return_inverse=True)
    by_kind = np.argsort(kind, kind="stable").astype(np.int32)
    members = np.split(by_kind, np.cumsum(np.bincount(kind.reshape(-1)))[:-1])
    _, group_of = np.unique(kinds[:, list(columns)], axis=0, return_inverse=True)
    group_of = group_of.reshape(-1)
    every = [[members[k] for k in np.flatnonzero(group_of == g)] for g in range(group_of.max() + 1)]
    largest = max(map(len, every))
    if largest < size:
        raise ValueError(
            f"no group of images that agree in the columns {tuple(columns)} has {size} different members, "
            f"the largest has {largest}: take a smaller group or more images"
        )
    return [group for group in every if len(group) >= size]


def draw(generator: np.random.Generator, pool: Sequence[Sequence[np.ndarray]], *, count: int, size: int) -> np.ndarray:
    """`size` different members of each of `count` groups, int32 (count * size,); none repeats before all are drawn."""
    chosen = np.concatenate([generator.permutation(len(pool)) for _ in range(-(-count // len(pool)))])[:count]
    rows = []
    for g in chosen:
        group = pool[g]
        for k in generator.permutation(len(group))[:size]:
            rows.append(group[k][generator.integers(len(group[k]))])
    return np.array(rows, np.int32)


def _generator(seed: int, stream: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, step))))
