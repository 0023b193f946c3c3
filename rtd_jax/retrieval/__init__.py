"""Exact search in galleries."""

from rtd_jax.retrieval.gallery import Gallery, place
from rtd_jax.retrieval.nearest import CHUNK, DTYPES, Ranking, program, rank_members, top_k
from rtd_jax.retrieval.scoring import PADDING

__all__ = ["CHUNK", "DTYPES", "PADDING", "Gallery", "Ranking", "place", "program", "rank_members", "top_k"]
