"""The 50 best of 120,000 gallery rows for 800 queries of width 512 (CIRCO's sizes), float32: ours against others.

    python -m benchmarks.retrieval [--against argsort topk faiss] [--device cuda]

"argsort" and "topk" are PyTorch's, over the whole matrix of scores; "faiss" is its exact index, IndexFlatIP (`pip
install faiss-cpu`; on a GPU it takes a faiss built for one). Ours goes chunk by chunk. The gallery is in place before,
on the device; the queries come from the host, and the result goes there. All rows are compared before anything is
timed. Products are of full precision on all sides, whatever --precision says: ours asks for that itself.
"""

from collections.abc import Callable
from functools import partial

from benchmarks import alternate

QUERIES, ROWS, WIDTH, K = 800, 120_000, 512, 50


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


def torch_step(search: str) -> Callable[[], object]:
    import torch

    from benchmarks.pytorch import retrieval as others

    queries, gallery = data()
    rank = {"argsort": others.by_argsort, "topk": others.by_topk}[search]
    device = alternate.pytorch()
    torch.set_float32_matmul_precision("highest")
    placed = torch.tensor(gallery).to(device)
    run = lambda rows: rank(torch.from_numpy(rows).to(device), placed, K).cpu()
    check(run(queries[:8]), queries, gallery)
    return lambda: run(queries)


def faiss_step() -> Callable[[], object]:
    try:
        import faiss  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise alternate.Unavailable("not installed: pip install faiss-cpu") from error

    queries, gallery = data()
    index = faiss.IndexFlatIP(WIDTH)
    if alternate.device() == "cuda":
        if not hasattr(faiss, "StandardGpuResources"):
            raise alternate.Unavailable(f"faiss {faiss.__version__} searches on a CPU alone")
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(gallery)
    check(index.search(queries[:8], K)[1], queries, gallery)
    return lambda: index.search(queries, K)


CASES = {
    "search": {
        "ours": jax_step,
        "argsort": partial(torch_step, "argsort"),
        "topk": partial(torch_step, "topk"),
        "faiss": faiss_step,
    }
}

if __name__ == "__main__":
    alternate.main("benchmarks.retrieval", __doc__, CASES, devices=1)
