"""The 50 best of 120,000 gallery rows for 800 queries of width 512 (CIRCO's sizes), float32: ours against others.

    python -m benchmarks.retrieval [--cases argsort topk faiss] [--device cuda]

"argsort" and "topk" are PyTorch's sides, over the whole matrix of scores; "faiss" is its exact index, IndexFlatIP, in
the column "PyTorch" (`pip install faiss-cpu`, left out where it is missing, and on a GPU). Ours is the same search in
all, chunk by chunk. The gallery is in place before, on the device; the queries come from the host, and the result
goes there. Both sides' rows are compared before anything is timed. Memory is the process's largest resident set.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from benchmarks import alternate

QUERIES, ROWS, WIDTH, K = 800, 120_000, 512, 50
CASES = ("argsort", "topk", "faiss")


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


def jax_step() -> Callable[[], object]:
    """One search of ours, its result on the host."""
    from rtd_jax import retrieval

    queries, gallery = data()
    placed = retrieval.place(gallery)
    check(retrieval.top_k(queries, placed, K).rows, queries, gallery)
    return lambda: retrieval.top_k(queries, placed, K)


def torch_step(case: str) -> Callable[[], object]:
    import torch

    from benchmarks.pytorch import retrieval as others

    queries, gallery = data()
    search = {"argsort": others.by_argsort, "topk": others.by_topk}[case]
    device = alternate.device()
    placed = torch.tensor(gallery).to(device)
    run = lambda rows: search(torch.from_numpy(rows).to(device), placed, K).cpu()
    check(run(queries[:8]), queries, gallery)
    return lambda: run(queries)


def faiss_step() -> Callable[[], object]:
    import faiss  # pyright: ignore[reportMissingImports] - optional

    queries, gallery = data()
    index = faiss.IndexFlatIP(WIDTH)
    index.add(gallery)
    check(index.search(queries[:8], K)[1], queries, gallery)
    return lambda: index.search(queries, K)


def step(case: str, side: str) -> Callable[[], object]:
    if side == "jax":
        return jax_step()
    if case != "faiss":
        return torch_step(case)
    if alternate.device() != "cpu":
        raise SystemExit("--cases faiss: faiss-cpu searches on a CPU alone")
    return faiss_step()


if __name__ == "__main__":
    cases = {case: partial(step, case) for case in CASES if case != "faiss" or find_spec("faiss")}
    if "faiss" not in cases:
        print("faiss is not installed: its row is left out\n")
    alternate.main("benchmarks.retrieval", __doc__, cases, devices=1, on=("cpu", "cuda"))
