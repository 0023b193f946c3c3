"""Top-k retrieval in PyTorch, as evaluation code of composed retrieval does it: the other side of `retrieval`."""

import torch


@torch.inference_mode()
def by_argsort(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> torch.Tensor:
    """Every query's whole gallery sorted, the first k rows kept."""
    return torch.argsort(queries @ gallery.T, dim=-1, descending=True)[:, :k]


@torch.inference_mode()
def by_topk(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> torch.Tensor:
    return torch.topk(queries @ gallery.T, k).indices
