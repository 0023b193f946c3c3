"""The heads of a sweep: the settings in which they differ, and their places in one program."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Members(NamedTuple):
    """The settings in which the k members of a sweep differ, arrays (k,).

    Attributes:
      learning_rate, weight_decay: AdamW's.
      seed: of the draws of words and templates, and of the initial head.
      projector: which of the stacked projectors.
    """

    learning_rate: np.ndarray
    weight_decay: np.ndarray
    seed: np.ndarray
    projector: np.ndarray


class Arranged(NamedTuple):
    """Members as a dense grid (projectors p, seeds s, members m), gaps filled with copies.

    Attributes:
      member: int (p, s, m), the member at each place.
      place: int (k,), a place of each member, in the flat grid.
      axis: of the grid, its length a multiple of the number of devices: it is divided among them.
    """

    member: np.ndarray
    place: np.ndarray
    axis: int

    def sharding(self, devices: Sequence[Any], dimensions: int) -> NamedSharding:
        """Of an array that begins with so many dimensions of the grid."""
        mesh = Mesh(np.array(devices), ("members",), axis_types=(AxisType.Auto,))
        spec = ["members" if axis == self.axis else None for axis in range(dimensions)]
        return NamedSharding(mesh, P(*spec))


def grid(
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int] = (0,),
    projectors: Sequence[int] = (0,),
) -> Members:
    """All combinations, projectors slowest, the learning rate fastest.

    Raises:
      ValueError: a setting without values.
    """
    axes = {"projectors": projectors, "seeds": seeds, "weight_decays": weight_decays, "learning_rates": learning_rates}
    if empty := [name for name, values in axes.items() if not len(values)]:
        raise ValueError(f"a sweep needs at least one value in {', '.join(empty)}")
    projector, seed, decay, rate = zip(*itertools.product(*axes.values()), strict=True)
    return Members(np.array(rate, np.float32), np.array(decay, np.float32), np.array(seed), np.array(projector))


def arrange(members: Members, projectors: int, devices: int) -> Arranged:
    """The members as a dense grid (p, s, m): by projector, then seed; shorter rows repeat their first entry."""
    shapes = {np.shape(a) for a in members}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
        raise ValueError(f"members must be arrays of one length (k,), got {[np.shape(a) for a in members]}")
    for name in ("learning_rate", "weight_decay"):
        if not np.all(np.isfinite(values := getattr(members, name)) & (np.asarray(values) >= 0)):
            raise ValueError(f"{name} must be finite and at least 0, got {values}")
    if (chosen := np.asarray(members.projector)).min() < 0 or chosen.max() >= projectors:
        raise ValueError(f"members use projectors {np.unique(chosen)}, but {projectors} are stacked, counted from 0")
    by_projector: dict[int, dict[int, list[int]]] = {}
    for member, (projector, seed) in enumerate(zip(chosen, np.asarray(members.seed), strict=True)):
        by_projector.setdefault(int(projector), {}).setdefault(int(seed), []).append(member)
    columns = max(map(len, by_projector.values()))
    depth = max(len(own) for seeds in by_projector.values() for own in seeds.values())
    sizes = (len(by_projector), columns, depth)
    axis = next((axis for axis, length in enumerate(sizes) if length % devices == 0), 2)
    if axis == 2:
        depth = -(-depth // devices) * devices
    grid, place = [], np.zeros(len(chosen), np.int64)
    for p, projector in enumerate(sorted(by_projector)):
        rows = list(by_projector[projector].values())
        for s, own in enumerate(rows):
            place[own] = (p * columns + s) * depth + np.arange(len(own))
        rows = [own + own[:1] * (depth - len(own)) for own in rows]
        grid.append(rows + rows[:1] * (columns - len(rows)))
    return Arranged(np.array(grid), place, axis)
