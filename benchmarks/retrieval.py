"""The 50 best of 120,000 gallery rows for 800 queries of width 512 (CIRCO's sizes): ours against PyTorch, float32.

    python -m benchmarks.retrieval [--cases argsort topk]

"argsort" and "topk" are PyTorch's sides, over the whole matrix of scores; ours is the same search in both, chunk by
chunk. Both sides' rows are compared before anything is timed. Memory is the process's largest resident set.
"""

from collections.abc import Callable
from functools import partial

from benchmarks import alternate

QUERIES, ROWS, WIDTH, K = 800, 120_000, 512, 50
CASES = ("argsort", "topk")


def data():
    """Queries and gallery, on the unit sphere."""
    import numpy as np

    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    return tuple(unit(rng.standard_normal((n, WIDTH), dtype=np.float32)) for n in (QUERIES, ROWS))


def check(rows, queries, gallery) -> None:
    """Refuse to time a search whose scores are not the best ones, for a few of the queries."""
    import numpy as np

    for query, ranked in zip(queries[:8], np.asarray(rows)[:8], strict=True):
        scores = gallery @ query
        np.testing.assert_allclose(np.sort(scores[ranked])[::-1], np.sort(scores)[: -K - 1 : -1], atol=1e-6)


def jax_step() -> Callable[[], None]:
    """One search of ours, its result on the host."""
    from rtd_jax import retrieval

    queries, gallery = data()
    check(retrieval.top_k(queries, gallery, K).rows, queries, gallery)
    return lambda: retrieval.top_k(queries, gallery, K)


def torch_step(case: str) -> Callable[[], None]:
    import torch

    from benchmarks import torch_retrieval

    queries, gallery = data()
    search = {"argsort": torch_retrieval.by_argsort, "topk": torch_retrieval.by_topk}[case]
    tensors = torch.tensor(queries), torch.tensor(gallery)
    check(search(tensors[0][:8], tensors[1], K), queries, gallery)
    return lambda: search(*tensors, K)


def step(case: str, side: str) -> Callable[[], None]:
    return jax_step() if side == "jax" else torch_step(case)


if __name__ == "__main__":
    alternate.main("benchmarks.retrieval", __doc__, {case: partial(step, case) for case in CASES}, devices=1)
