"""Exact nearest neighbours in galleries from a hundred to a hundred million rows.

A gallery is read in chunks, each split over the devices; a device keeps the best rows it has seen for every
query, and the devices' lists are merged once, at the end. Memory is bounded by the chunk, so the gallery may be a file
mapped into memory. Scores are inner products; among equal scores the lower row comes first, whatever the chunks are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from launch.training.sharding import Device
from rtd_jax.retrieval import scoring
from rtd_jax.retrieval.gallery import Gallery, chunk_rows, chunks, place, put, read, row_mesh
from rtd_jax.retrieval.scoring import PADDING, Lists, Scoring, SearchProgram

DTYPES = ("float32", "bfloat16")
CHUNK = 16384  # gallery rows that a device scores at a time
# Queries whose scores are held at once; on a CPU few enough for those of a chunk to stay in its cache.
_QUERIES = {"cpu": 256, "gpu": 1024, "tpu": 1024}
_MEMBERS = 1024  # queries whose members are gathered at once


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
    gallery: np.ndarray | jax.Array | Gallery,
    k: int,
    *,
    exclude: np.ndarray | None = None,
    cosine: bool = False,
    dtype: str | None = None,
    chunk: int = CHUNK,
    recall_target: float | None = None,
    devices: Sequence[Device] | None = None,
) -> Ranking:
    """The k gallery rows of the largest inner products with each query.

    Args:
      queries: float (q, d).
      gallery: float (n, d), n below 2^31; an array mapped from a file is read chunk by chunk. One on devices, such as
        `place` returns, is searched where it lies, each row by the device that has it; if devices of several processes
        have it, all of them call with the same queries, and all get the ranking.
      k: the number of rows.
      exclude: int (q,) or (q, e): gallery rows that a query may not find, such as its reference image; -1 is no row.
      cosine: normalise queries and gallery rows.
      dtype: of the factors, "float32" or "bfloat16"; None for bfloat16 where the gallery is held in it, else float32.
        Sums and scores are float32.
      chunk: the most gallery rows per device at a time; beside them, memory holds their scores for 1,024
        queries (256 on a CPU).
      recall_target: the share of the best rows, below 1, that an approximate search is expected to return, with
        `jax.lax.approx_max_k` (Chern et al. 2022, arXiv 2206.14286), which is faster on TPUs. None is exact.
      devices: where to search a gallery of the host; by default all of this process.

    Returns:
      The ranking, on the host.

    Raises:
      ValueError: shapes that do not fit, an empty gallery, no queries, k below 1 or above what the exclusions leave of
        the gallery, an excluded row outside the gallery, a score that is NaN, or an unknown dtype.
    """
    dtype = dtype or ("bfloat16" if _type_of(gallery) == "bfloat16" else "float32")
    vectors, exclude = _checked(queries, gallery, k, exclude, dtype, chunk, recall_target)
    extra = 0 if exclude is None else exclude.shape[1]
    wide = min(k + extra, len(gallery))  # what is excluded goes at the end, and no more than `extra` rows can
    options: dict[str, Any] = dict(k=wide, cosine=cosine, dtype=dtype, recall_target=recall_target)
    if isinstance(gallery, jax.Array):
        gallery = place(gallery)
    if isinstance(gallery, Gallery):
        mesh, held = gallery.mesh, len(gallery.rows) // gallery.mesh.size
        size = min(chunk_rows(gallery.share, chunk), held)
        parts = chunks(gallery, size)
    else:
        mesh = row_mesh(jax.local_devices() if devices is None else devices)
        size = chunk_rows(-(-len(gallery) // mesh.size), chunk)
        parts = read(gallery, size, mesh)
    ranked, scores = _searched(vectors, parts, Scoring(mesh, size, **options))
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

    For CIRR's subsets and GeneCIS' galleries. Products and sums are float32, also of factors in bfloat16.

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
    for start in range(0, len(queries), _MEMBERS):
        part = slice(start, start + _MEMBERS)
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


def program(
    rows: int,
    dim: int,
    queries: int,
    k: int,
    devices: Sequence[Device],
    dtype: str = "float32",
    *,
    cosine: bool = False,
    chunk: int = CHUNK,
    recall_target: float | None = None,
) -> dict[str, SearchProgram]:
    """What `top_k` compiles for a gallery (rows, dim) of such factors that `place` has put on devices, as shapes.

    Returns:
      "search", which runs once for every chunk and block of queries, at most 1,024 of them; "merge", once for a block.
    """
    held = -(-rows // len(devices))
    size = min(chunk_rows(held, chunk), held)
    compiled = Scoring(row_mesh(devices), size, k, cosine, dtype, recall_target)
    return scoring.programs(compiled, rows=held, dim=dim, queries=_block_rows(queries, compiled.mesh))


def _searched(queries: np.ndarray, parts, compiled: Scoring) -> tuple[np.ndarray, np.ndarray]:
    """The best rows of all chunks, and their scores, (q, k) each."""
    mesh = compiled.mesh
    height = _block_rows(len(queries), mesh)
    blocks = [queries[start : start + height] for start in range(0, len(queries), height)]
    filled = [np.pad(block, ((0, height - len(block)), (0, 0))) for block in blocks]
    placed = [put(mesh, block) for block in filled]
    shape = (mesh.size, height, compiled.k)
    nothing = (np.broadcast_to(np.int32(PADDING), shape), np.broadcast_to(np.float32(-np.inf), shape))
    best = [Lists(*(put(mesh, x, "data") for x in nothing)) for _ in blocks]
    search, merge = scoring.search(compiled), scoring.merge(compiled)
    for rows, spans in parts:
        best = [search(lists, block, rows, spans) for lists, block in zip(best, placed, strict=True)]
    merged = [jax.device_get(merge(lists)) for lists in best]
    ranked, scores = (np.concatenate([m[i] for m in merged])[: len(queries)] for i in (0, 1))
    return ranked, np.where(scores == scoring.LEAST, -np.float32(np.inf), scores)


def _block_rows(queries: int, mesh: Mesh) -> int:
    """How many queries are searched for at once: no more than `_QUERIES`, and about as many in the last block."""
    blocks = -(-queries // _QUERIES[mesh.devices.flat[0].platform])
    return -(-queries // blocks)


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


def _type_of(gallery: Any) -> str:
    """In what a gallery is held."""
    return str(getattr(gallery.rows if isinstance(gallery, Gallery) else gallery, "dtype", ""))


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
