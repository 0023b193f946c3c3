"""Exact nearest neighbours in galleries from a hundred to a hundred million rows.

A gallery is read in chunks, each split over the devices; a device keeps the best rows it has seen for every
query, and the devices' lists are merged once, at the end. Memory is bounded by the chunk, so the gallery may be a file
mapped into memory. Scores are inner products; among equal scores the lower row comes first, whatever the chunks are.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.losses import normalize
from launch.training.prefetch import prefetch
from launch.training.sharding import Device

DTYPES = ("float32", "bfloat16")
PADDING = -1
_QUERIES = 1024  # queries whose scores are held at once
_BLOCK = 64  # rows that the first pass compares by their largest score


class Ranking(NamedTuple):
    """The best gallery rows of q queries, best first.

    Attributes:
      rows: int32 (q, k); -1 behind the last.
      scores: float32 (q, k); -inf behind the last.
    """

    rows: np.ndarray
    scores: np.ndarray


def top_k(
    queries: np.ndarray | jax.Array,
    gallery: np.ndarray | jax.Array,
    k: int,
    *,
    exclude: np.ndarray | None = None,
    cosine: bool = False,
    dtype: str = "float32",
    chunk: int = 16384,
    recall_target: float | None = None,
    devices: Sequence[Device] | None = None,
) -> Ranking:
    """The k gallery rows of the largest inner products with each query.

    Args:
      queries: float (q, d).
      gallery: float (n, d), n below 2^31; an array mapped from a file is read chunk by chunk. One on a device is
        searched there.
      k: the number of rows.
      exclude: int (q,) or (q, e): gallery rows that a query may not find, such as its reference image; -1 is no row.
      cosine: normalise queries and gallery rows.
      dtype: of the factors, "float32" or "bfloat16"; sums are float32.
      chunk: gallery rows per device at a time; beside the chunk, memory holds its scores for 1,024 queries.
      recall_target: the share of the best rows, below 1, that an approximate search is expected to return, with
        `jax.lax.approx_max_k` (Chern et al. 2022, arXiv 2206.14286), which is faster on TPUs. None is exact.
      devices: where to search; by default all of this process.

    Returns:
      The ranking, on the host.

    Raises:
      ValueError: shapes that do not fit, an empty gallery, no queries, k below 1 or above what the exclusions leave of
        the gallery, an excluded row outside the gallery, a score that is NaN, or an unknown dtype.
    """
    vectors, exclude = _checked(queries, gallery, k, exclude, dtype, chunk, recall_target)
    extra = 0 if exclude is None else exclude.shape[1]
    wide = min(k + extra, len(gallery))  # what is excluded goes at the end, and no more than `extra` rows can
    mesh = Mesh(_devices(gallery, devices), ("data",), axis_types=(AxisType.Auto,))
    blocks = [vectors[start : start + _QUERIES] for start in range(0, len(vectors), _QUERIES)]
    size = _chunk_rows(len(gallery), chunk, mesh.size)
    placed = [jax.device_put(_filled(block, min(len(vectors), _QUERIES)), NamedSharding(mesh, P())) for block in blocks]
    options = dict(mesh=mesh, k=wide, cosine=cosine, dtype=dtype, recall_target=recall_target)
    best = [_nothing(len(block), wide, mesh) for block in placed]
    rows = np.int32(len(gallery))
    for part, first in _chunks(gallery, size, mesh):
        for i, block in enumerate(placed):
            best[i] = _search(best[i], block, part, first, rows, **options)
    merged = [jax.device_get(_merge(lists, wide)) for lists in best]
    ranked, scores = (np.concatenate([m[i][: len(b)] for m, b in zip(merged, blocks, strict=True)]) for i in (0, 1))
    if len(bad := np.flatnonzero(np.isnan(scores).any(1))):
        at = ranked[bad[0]][np.isnan(scores[bad[0]])][0]
        raise ValueError(f"the score of gallery row {at} for query {bad[0]} is NaN: check both")
    return _without(ranked, scores, exclude, k)


def rank_members(
    queries: np.ndarray | jax.Array,
    gallery: np.ndarray | jax.Array,
    members: np.ndarray,
    *,
    cosine: bool = False,
) -> Ranking:
    """A few gallery rows per query in the order of their inner products; among equals the lower row comes first.

    For CIRR's subsets and GeneCIS' galleries.

    Args:
      queries: float (q, d).
      gallery: float (n, d).
      members: int (q, m), gallery rows; -1 fills the rows of queries with fewer.
      cosine: normalise queries and gallery rows.

    Raises:
      ValueError: shapes that do not fit, a row outside the gallery, a query without members, or a score that is NaN.
    """
    queries, members = np.asarray(queries, np.float32), np.asarray(members)
    _check_vectors(queries, gallery)
    _check_rows("members", members, len(queries), len(gallery))
    if len(bad := np.flatnonzero((members == PADDING).all(1))):
        raise ValueError(f"query {bad[0]} has no members")
    unit = (lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)) if cosine else (lambda x: x)
    scores = np.empty(members.shape, np.float32)
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        vectors = unit(np.asarray(gallery[np.maximum(members[part], 0)], np.float32))
        scores[part] = np.einsum("qmd,qd->qm", vectors, unit(queries[part]))
    scores = np.where(members == PADDING, -np.inf, scores)
    if len(bad := np.argwhere(np.isnan(scores))):
        query, column = bad[0]
        raise ValueError(f"the score of gallery row {members[query, column]} for query {query} is NaN: check both")
    last = np.where(members == PADDING, np.iinfo(np.int32).max, members)
    order = np.lexsort((last, -scores), axis=1)
    take = lambda x: np.take_along_axis(x, order, 1)
    return Ranking(take(members).astype(np.int32), take(scores))


# -- on the devices ---------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("mesh", "k", "cosine", "dtype", "recall_target"), donate_argnames="best")
def _search(best, queries, part, first, rows, *, mesh, k, cosine, dtype, recall_target):
    """The best rows so far and those of one chunk: (rows, scores), (devices, q, k) each.

    Args:
      best: so far, split over the devices.
      queries: (q, d), on every device.
      part: (devices, c, d), a chunk, split over the devices.
      first: (devices,), each device's first row of it.
      rows: of the whole gallery; what lies behind them is filling.
    """

    def local(best, queries, part, first, rows):
        (ranked, scores), part, first = jax.tree.map(lambda x: x[0], (best, part, first))
        if cosine:
            queries, part = normalize(queries), normalize(part)
        products = jnp.matmul(
            queries.astype(dtype),
            part.astype(dtype).T,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        numbers = first + jnp.arange(part.shape[0], dtype=jnp.int32)  # of the chunk's rows in the gallery
        products = jnp.where(products == 0, 0.0, products)  # -0 would come after 0
        products = jnp.where(numbers < rows, products, -jnp.inf)
        values, places = _best(products, k, recall_target)
        ranked = jnp.concatenate([ranked, jnp.where(values == -jnp.inf, PADDING, numbers[places])], axis=1)
        # Rows only grow from chunk to chunk, and `top_k` keeps the order of equals.
        scores, order = jax.lax.top_k(jnp.concatenate([scores, values], axis=1), k)
        return jax.tree.map(lambda x: x[None], (jnp.take_along_axis(ranked, order, 1), scores))

    specs = (P("data"), P(), P("data"), P("data"), P())
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)(
        best, queries, part, first, rows
    )


def _best(scores: jax.Array, k: int, recall_target: float | None) -> tuple[jax.Array, jax.Array]:
    """The k largest of scores (q, c) and their columns; fewer, if c is less."""
    columns = scores.shape[1]
    k = min(k, columns)
    if recall_target is not None:
        return jax.lax.approx_max_k(scores, k, recall_target=recall_target)
    if columns % _BLOCK or columns < 4 * k * _BLOCK // 3:
        return jax.lax.top_k(scores, k)
    # The k best scores lie in the k blocks of the largest maxima: one pass of vector maxima, and then few columns.
    blocks = scores.reshape(len(scores), -1, _BLOCK)
    _, chosen = jax.lax.top_k(blocks.max(2), k)
    chosen = jnp.sort(chosen, axis=1)  # equal scores have to stay in the order of their columns
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(len(scores), -1)
    values, order = jax.lax.top_k(candidates, k)
    return values, jnp.take_along_axis(chosen, order // _BLOCK, 1) * _BLOCK + order % _BLOCK


@functools.partial(jax.jit, static_argnames="k")
def _merge(best, k: int):
    """The devices' (rows, scores), (devices, q, k), as one list of each query: by score, then by row."""
    rows, scores = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in best)
    last = jnp.where(rows == PADDING, jnp.iinfo(jnp.int32).max, rows)
    key = jnp.where(jnp.isnan(scores), -jnp.inf, -scores)  # NaN first, as in `top_k`: it must not drop out unseen
    _, _, rows, scores = jax.lax.sort((key, last, rows, scores), dimension=1, num_keys=2)
    return rows[:, :k], scores[:, :k]


def _nothing(queries: int, k: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Empty lists on every device."""
    shape = (mesh.size, queries, k)
    empty = np.full(shape, PADDING, np.int32), np.full(shape, -np.inf, np.float32)
    return jax.device_put(empty, NamedSharding(mesh, P("data")))


# -- chunks -----------------------------------------------------------------------------------


def _chunk_rows(rows: int, chunk: int, devices: int) -> int:
    """Rows per device at a time: `chunk`, or less for a small gallery; whole blocks if more than one."""
    size = min(chunk, -(-rows // devices))
    return -(-size // _BLOCK) * _BLOCK if size > _BLOCK else size


def _chunks(gallery, size: int, mesh: Mesh) -> Iterator[tuple[jax.Array, jax.Array]]:
    """(rows (devices, size, d), each device's first row) on the devices, read ahead in a thread."""
    step, split = size * mesh.size, NamedSharding(mesh, P("data"))
    starts = range(0, len(gallery), step)
    firsts = [np.arange(start, start + step, size).astype(np.int32) for start in starts]
    if isinstance(gallery, jax.Array):
        for start, first in zip(starts, firsts, strict=True):
            yield _slice(gallery, np.int32(start), size=size, split=split), jax.device_put(first, split)
        return

    def read():
        for start, first in zip(starts, firsts, strict=True):
            part = _filled(gallery[start : start + step], step)
            yield part.reshape(mesh.size, size, -1), first

    yield from prefetch(read(), lambda item: jax.device_put(item, split))


@functools.partial(jax.jit, static_argnames=("size", "split"))
def _slice(gallery: jax.Array, start: jax.Array, *, size: int, split: NamedSharding) -> jax.Array:
    """One chunk of a gallery that lies on the devices, (devices, size, d)."""
    rows = start + jnp.arange(split.mesh.size * size)  # those behind the end are masked out later
    part = gallery.at[rows].get(mode="clip", indices_are_sorted=True)
    return jax.lax.with_sharding_constraint(part.reshape(split.mesh.size, size, -1), split)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Float32 rows, zeros behind them up to `size`."""
    rows = np.asarray(rows)
    rows = rows if rows.dtype in (np.float16, np.float32) or rows.dtype.name == "bfloat16" else rows.astype(np.float32)
    missing = size - len(rows)
    return np.concatenate([rows, np.zeros((missing, rows.shape[1]), rows.dtype)]) if missing else rows


def _devices(gallery: np.ndarray | jax.Array, devices: Sequence[Device] | None) -> np.ndarray:
    if isinstance(gallery, jax.Array):
        return np.array(sorted(gallery.devices(), key=lambda device: device.id))
    return np.array(jax.local_devices() if devices is None else list(devices))


# -- on the host ------------------------------------------------------------------------------


def _without(rows: np.ndarray, scores: np.ndarray, exclude: np.ndarray | None, k: int) -> Ranking:
    """The first k of lists that are k + e long, without the rows of `exclude` (q, e)."""
    if exclude is None:
        return Ranking(rows, scores)
    keep = (rows[:, :, None] != exclude[:, None]).all(2)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    return Ranking(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))


def _checked(queries, gallery, k, exclude, dtype, chunk, recall_target) -> tuple[np.ndarray, np.ndarray | None]:
    """Queries, and the excluded rows as (q, e), once both are checked."""
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; valid names: {', '.join(map(repr, DTYPES))}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    if recall_target is not None and not 0 < recall_target < 1:
        raise ValueError(f"recall_target={recall_target} must lie between 0 and 1; None is exact")
    queries = np.asarray(queries, np.float32)
    _check_vectors(queries, gallery)
    if exclude is not None:
        exclude = np.asarray(exclude)
        exclude = exclude[:, None] if exclude.ndim == 1 else exclude
        _check_rows("exclude", exclude, len(queries), len(gallery))
    left = len(gallery) - _most_excluded(exclude)
    if not 1 <= k <= left:
        gone = "" if left == len(gallery) else f", {left} of them left by `exclude`"
        raise ValueError(f"k={k} must lie between 1 and the {len(gallery)} rows of the gallery{gone}")
    return queries, exclude


def _most_excluded(exclude: np.ndarray | None) -> int:
    """The largest number of different rows that a query excludes."""
    if exclude is None or not exclude.size:
        return 0
    ordered = np.sort(exclude, axis=1)
    new = np.diff(ordered, axis=1, prepend=PADDING) > 0
    return int((new & (ordered != PADDING)).sum(1).max())


def _check_vectors(queries: np.ndarray, gallery) -> None:
    if getattr(gallery, "ndim", None) != 2 or queries.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries (q, d) and gallery (n, d) must be as wide as each other, got {queries.shape} and "
            f"{getattr(gallery, 'shape', type(gallery).__name__)}"
        )
    if not len(gallery):
        raise ValueError("the gallery is empty")
    if not len(queries):
        raise ValueError("there are no queries")
    if len(gallery) >= 2**31:
        raise ValueError(f"a gallery of {len(gallery)} rows is too large for 32-bit row numbers")


def _check_rows(name: str, rows: np.ndarray, queries: int, gallery: int) -> None:
    if rows.ndim != 2 or len(rows) != queries or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"{name} must be integers with a row for each of {queries} queries, got {rows.shape}")
    if len(bad := np.argwhere((rows < PADDING) | (rows >= gallery))):
        query, column = bad[0]
        raise ValueError(
            f"{name} of query {query} names row {rows[query, column]}, and the gallery has rows 0 to {gallery - 1}"
        )
