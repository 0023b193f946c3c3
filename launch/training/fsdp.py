"""Fully sharded data parallelism: parameters and optimiser states split over the axis "data" too.

Each device keeps a part of every large array; XLA collects a layer's weights where they are used, and gives each device
its part of the summed gradients (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, stage 3). The numbers are
those of whole copies, up to the order of sums.
"""

import math
from collections.abc import Sequence

from jax.sharding import PartitionSpec as P

LEAST = 1 << 16  # numbers in an array that is split: smaller ones take longer to collect than they are worth


def also_over_data(spec: P, shape: Sequence[int], shards: int) -> P:
    """A partition that splits the longest axis that is whole and divides, too; the same one if there is none.

    Args:
      spec: the partition of an array over other axes of the mesh.
      shape: of the array.
      shards: size of the mesh's axis "data".
    """
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    fit = [i for i, size in enumerate(shape) if axes[i] is None and size % shards == 0]
    if math.prod(shape) < LEAST or not fit:
        return spec
    axes[max(fit, key=lambda i: shape[i])] = "data"
    return P(*axes)
