"""Exact search in galleries."""

from rtd_jax.retrieval.nearest import (
    DTYPES,
    PADDING,
    Ranking,
    rank_members,
    top_k,
)

__all__ = [
    "DTYPES",
    "PADDING",
    "Ranking",
    "rank_members",
    "top_k",
]
