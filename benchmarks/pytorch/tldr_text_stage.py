"""PyTorch: the text stage as published, words and examples one at a time; the other side of `tldr_text_stage`.

Projector by explicit inverses in float64; each word through both filters by itself; each word's prompts as a batch of
77 tokens; a training example assembled from its two embeddings by a data set, a batch projected in each step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def projector(x: Tensor, y: Tensor, gap: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """W (d, f) and b (f,) in float32, of x (n, d), y (n, f) and gap (m, d), all float64."""
    inverse = torch.linalg.inv(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
    beta = inverse @ x.T @ y
    weight = beta - inverse @ gap.T @ torch.linalg.inv(gap @ inverse @ gap.T) @ gap @ beta
    return weight.float(), (y - x @ weight).mean(0).float()


@torch.inference_mode()
def filter_words(
    encode: Callable[[Tensor], Tensor],
    lists: list[Tensor],
    anchors: Tensor,
    classify: Callable[[Tensor], Tensor] | None,
) -> list[list[int]]:
    """Which words of each list stay.

    Args:
      encode: ids (n, 77) -> embeddings (n, d).
      lists: of the prompts of each list's words, (words, 77).
      anchors: (lists, 77).
      classify: embeddings (n, d) -> logits (n, lists), the classifier filter.
    """
    anchor = torch.cat([F.normalize(encode(ids[None])) for ids in anchors])
    kept = []
    for own, prompts in enumerate(lists):
        kept.append([])
        for word, ids in enumerate(prompts):
            embedding = encode(ids[None])
            stays = (F.normalize(embedding) @ anchor.T).argmax().item() == own
            if classify is not None:
                stays &= classify(embedding).argmax().item() == own
            if stays:
                kept[-1].append(word)
    return kept


@torch.inference_mode()
def embed_words(encode: Callable[[Tensor], Tensor], prompts: Tensor) -> Tensor:
    """Prompts (words, templates, 77) -> (words, templates, d)."""
    return torch.stack([encode(ids) for ids in prompts])


class Pairs(Dataset):
    """Group-balanced pairs of words, both under one template drawn anew."""

    def __init__(self, target: Tensor, target_class: list[int], spurious: Tensor, spurious_value: list[int]):
        self.target, self.spurious, self.label = target, spurious, target_class
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for t, c in enumerate(target_class):
            for s, v in enumerate(spurious_value):
                groups.setdefault((c, v), []).append((t, s))
        smallest = min(map(len, groups.values()))
        self.pairs = [pair for group in groups.values() for pair in random.sample(group, smallest)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        t, s = self.pairs[index]
        template = random.randrange(self.target.shape[1])
        return (self.target[t, template] + self.spurious[s, template]) / 2, self.label[t]


def train_head(
    pairs: Pairs, weight: Tensor, bias: Tensor, *, rate: float, decay: float, batch_size: int, steps: int
) -> nn.Linear:
    """AdamW on relu(x W + b), `steps` batches of shuffled epochs."""
    head = nn.Linear(weight.shape[1], max(pairs.label) + 1).to(weight.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=decay)
    for x, y in _batches(pairs, batch_size, steps):
        x, y = x.to(weight.device), y.to(weight.device)
        loss = F.cross_entropy(head(torch.relu(x @ weight + bias)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def _batches(pairs: Pairs, batch_size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for batch in DataLoader(pairs, batch_size, shuffle=True):
            if steps == 0:
                return
            steps -= 1
            yield batch
