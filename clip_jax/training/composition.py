"""Which images a step sees: shuffled epochs, or batches made of groups whose members are hard to tell apart.

An image of a shuffled batch is told from the others by its most conspicuous attributes, and a contrastive loss learns
those first and the others slowly. In a group whose members agree in some attributes, only the others tell.
"""

from collections.abc import Callable, Sequence

import numpy as np

from launch.data import order

_KIND, _MEMBERS = 0xBA7C, 0x6207  # streams of random numbers drawn from one seed


def composer(
    n: int,
    *,
    seed: int,
    batch_size: int,
    alike: Sequence[Sequence[int]] = ((),),
    group: int = 1,
    attributes: np.ndarray | None = None,
) -> Callable[[int], np.ndarray]:
    """`step -> rows`, int32 (batch_size,): a pure function of (seed, step).

    Args:
      n: images.
      seed: of the order.
      batch_size: global.
      alike: kinds of batch, drawn equally often: the columns of `attributes` in which the members of a group agree;
        () for a shuffled batch.
      group: members of a group, no two of them with the same attributes.
      attributes: int (n, a); only kinds with groups need them.

    Raises:
      ValueError: no kinds, groups that do not fill the batch evenly, or none that has `group` different members.
    """
    if not alike:
        raise ValueError("alike=() names no kind of batch; ((),) is shuffled batches")
    epoch_order = order.remembered_order(n, seed)
    pools: dict[tuple[int, ...], list[list[np.ndarray]]] = {}
    for columns in map(tuple, alike):
        if not columns or columns in pools:
            continue
        if group < 1 or batch_size % group:
            raise ValueError(f"batch_size={batch_size} does not divide into groups of {group}")
        pools[columns] = groups(attributes, columns, group)

    def rows(step: int) -> np.ndarray:
        order.check_positive(n, batch_size, step)
        kind = tuple(alike[_generator(seed, _KIND, step).integers(len(alike))])
        if not kind:
            return order.index_batch(n, seed=seed, step=step, batch_size=batch_size, epoch_order=epoch_order)
        return draw(_generator(seed, _MEMBERS, step), pools[kind], count=batch_size // group, size=group)

    return rows


def groups(attributes: np.ndarray, columns: Sequence[int], size: int) -> list[list[np.ndarray]]:
    """The images that agree in `columns`, in groups of at least `size` different members.

    Args:
      attributes: int, (n, a).
      columns: in which all of a group agree.
      size: how many different rows of attributes a group has at least; smaller ones are left out.

    Returns:
      For every group a list with, for each row of attributes that occurs in it, the images that have it: int32 arrays.

    Raises:
      ValueError: no group is large enough.
    """
    kinds, kind = np.unique(attributes, axis=0, return_inverse=True)
    order_ = np.argsort(kind, kind="stable").astype(np.int32)
    members = np.split(order_, np.cumsum(np.bincount(kind.reshape(-1)))[:-1])
    _, where = np.unique(kinds[:, list(columns)], axis=0, return_inverse=True)
    where = where.reshape(-1)
    found = [[members[k] for k in np.flatnonzero(where == g)] for g in range(where.max() + 1)]
    largest = max(map(len, found))
    if largest < size:
        raise ValueError(
            f"no group of images that agree in the columns {tuple(columns)} has {size} different members, "
            f"the largest has {largest}: take a smaller group or more images"
        )
    return [group for group in found if len(group) >= size]


def draw(generator: np.random.Generator, pool: Sequence[Sequence[np.ndarray]], *, count: int, size: int) -> np.ndarray:
    """`size` different members of each of `count` groups: int32 (count * size,). No group twice before all came."""
    chosen = np.concatenate([generator.permutation(len(pool)) for _ in range(-(-count // len(pool)))])[:count]
    rows = []
    for g in chosen:
        group = pool[g]
        for k in generator.permutation(len(group))[:size]:
            rows.append(group[k][generator.integers(len(group[k]))])
    return np.array(rows, np.int32)


def _generator(seed: int, stream: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, step))))
