"""The compiled half of a search: a chunk's best rows on every device, and the one exchange that merges the devices'.

Every device scores rows that lie on it, and keeps the best that it has seen for each query. Nothing passes between
devices before the merge, and there k rows a query do.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.losses import normalize

PADDING = -1
LEAST = np.finfo(np.float32).min  # stands for a row's score of -inf, so that only padding has -inf
_LANES = 128  # of a TPU's vectors


class Lists(NamedTuple):
    """Each device's best rows of q queries, best first, split over the devices.

    Attributes:
      rows: int32 (devices, q, k); -1 behind the last.
      scores: float32 (devices, q, k); `LEAST` for a row's -inf, -inf behind the last.
    """

    rows: Any
    scores: Any


@dataclass(frozen=True)
class Scoring:
    """What is compiled into a search, besides shapes.

    Attributes:
      mesh: the devices, along "data".
      size: rows that a device scores at a time.
      k: how many it keeps a query.
      cosine: normalise queries and rows.
      dtype: of the factors; sums are float32.
      recall_target: see `top_k`.
    """

    mesh: Mesh
    size: int
    k: int
    cosine: bool = False
    dtype: str = "float32"
    recall_target: float | None = None

    def sharding(self, *spec: str) -> NamedSharding:
        return NamedSharding(self.mesh, P(*spec))


@functools.cache
def search(scoring: Scoring) -> Any:
    """The jitted (best, queries, gallery, spans) -> best, with no exchange between devices.

    Of its arguments `best` is consumed: `Lists`, split over the devices; `queries` (q, d) are on every device;
    `gallery` (devices * s, d) is split; `spans` int32 (devices, 3), split, says of each device's s rows: the first
    one's number in the whole gallery, and begin and end, among the s, of at most `size` rows to be scored now.
    """

    def local(best, queries, gallery, spans):
        (ranked, scores), (first, begin, end) = jax.tree.map(lambda x: x[0], best), spans[0]
        start = jnp.clip(begin, 0, len(gallery) - scoring.size)
        part = jax.lax.dynamic_slice_in_dim(gallery, start, scoring.size)
        if scoring.cosine:
            queries, part = normalize(queries), normalize(part.astype(jnp.float32))
        products = jnp.matmul(
            queries.astype(scoring.dtype),
            part.astype(scoring.dtype).T,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        places = start + jnp.arange(scoring.size, dtype=jnp.int32)
        values, columns = _best(products, (begin <= places) & (places < end), scoring)
        numbers = jnp.where(values == -jnp.inf, PADDING, first + places[columns])
        # Rows only grow from chunk to chunk, and `top_k` keeps the order of equals.
        scores, order = jax.lax.top_k(jnp.concatenate([scores, values], axis=1), scoring.k)
        ranked = jnp.take_along_axis(jnp.concatenate([ranked, numbers], axis=1), order, 1)
        return Lists(ranked[None], scores[None])

    split = P("data")
    mapped = jax.shard_map(
        local, mesh=scoring.mesh, in_specs=(split, P(), split, split), out_specs=split, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=0)


@functools.cache
def merge(scoring: Scoring) -> Any:
    """The jitted best -> (rows, scores), (q, k) each and the same on all devices: by score, then by row.

    A score of -inf is still `LEAST`.

    Each device merges for its share of the queries: k rows a query come to it from every other, and the k best go out.
    """

    def local(best):
        rows, scores = (x[0] for x in best)
        count = len(rows)
        whole = ((0, -count % scoring.mesh.size), (0, 0))
        rows, scores = (
            jax.lax.all_to_all(jnp.pad(x, whole), "data", split_axis=0, concat_axis=1, tiled=True)
            for x in (rows, scores)
        )
        # The rows of a device come behind those of the one before, so that here, too, the order of equals stays.
        scores, order = jax.lax.top_k(scores, scoring.k)
        rows = jnp.take_along_axis(rows, order, 1)
        gather = lambda x: jax.lax.all_gather(x, "data", tiled=True)[:count]
        return gather(rows), gather(scores)

    mapped = jax.shard_map(local, mesh=scoring.mesh, in_specs=(P("data"),), out_specs=P(), check_vma=False)
    return jax.jit(mapped)


def _best(products: jax.Array, valid: jax.Array, scoring: Scoring) -> tuple[jax.Array, jax.Array]:
    """The k largest of products (q, c) in valid columns (c,), and their columns; fewer, if c is less."""
    queries, columns = products.shape
    k = min(scoring.k, columns)

    def clean(scores, valid):
        scores = jnp.where(scores == 0, 0.0, scores)  # -0 would come after 0
        scores = jnp.where(jnp.isnan(scores), jnp.abs(scores), scores)  # as -NaN, of 0 * inf, after everything
        scores = jnp.where(scores == -jnp.inf, LEAST, scores)
        return jnp.where(valid, scores, -jnp.inf)

    if scoring.recall_target is not None:
        return jax.lax.approx_max_k(clean(products, valid), k, recall_target=scoring.recall_target)
    block = _block(columns, k, scoring.mesh.devices.flat[0].platform)
    if block == 1:
        return jax.lax.top_k(clean(products, valid), k)
    # The k best scores lie in the k blocks of the largest maxima: one pass of vector maxima, and then few columns.
    filling = -columns % block
    blocks = jnp.pad(products, ((0, 0), (0, filling))).reshape(queries, -1, block)
    valid = jnp.pad(valid, (0, filling)).reshape(-1, block)
    seen = clean(jnp.where(jnp.isnan(blocks), jnp.inf, blocks), valid)  # XLA's maxima on a CPU pass NaN over
    _, chosen = jax.lax.top_k(seen.max(2), k)
    chosen = jnp.sort(chosen, axis=1)  # equal scores have to stay in the order of their columns
    candidates = clean(jnp.take_along_axis(blocks, chosen[:, :, None], axis=1), valid[chosen])
    values, order = jax.lax.top_k(candidates.reshape(queries, -1), k)
    return values, jnp.take_along_axis(chosen, order // block, 1) * block + order % block


def _block(columns: int, k: int, platform: str) -> int:
    """How many columns are first compared by their maximum alone; 1: each by itself."""
    # columns / block maxima and k * block columns are sorted through: as many of the one as of the other, where a
    # vector of maxima costs no more for being short
    block = _LANES if platform == "tpu" else 2 ** round(math.log2(columns / k) / 2)
    return block if 4 * (columns / block + k * block) <= 3 * columns else 1


class SearchProgram(NamedTuple):
    """A jitted function, and the shapes of its arguments with their shardings."""

    jitted: Any
    arguments: tuple[Any, ...]


def programs(scoring: Scoring, *, rows: int, dim: int, queries: int) -> dict[str, SearchProgram]:
    """What a search compiles for so many queries, each device holding so many rows; see `nearest.program`."""
    split, devices = scoring.sharding("data"), scoring.mesh.size
    shape = lambda sharding, dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)
    best = Lists(*(shape(split, kind, devices, queries, scoring.k) for kind in (jnp.int32, jnp.float32)))
    arguments = (
        best,
        shape(scoring.sharding(), jnp.float32, queries, dim),
        shape(split, jnp.dtype(scoring.dtype), devices * rows, dim),
        shape(split, jnp.int32, devices, 3),
    )
    return {"search": SearchProgram(search(scoring), arguments), "merge": SearchProgram(merge(scoring), (best,))}
