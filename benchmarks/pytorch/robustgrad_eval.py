"""PyTorch: random perturbation similarity and attribution manipulation, the other side of `robustgrad_eval`.

The procedures of Joo et al. 2023 over batches of images: the clean map once, the draws one after the other; the attack
a loop of Adam steps, with one forward pass per step for map and logits. Attributions are input gradients of the true
class's logit; images (n, c, h, w) normalised.

What is differentiated comes twice: by autograd, and by torch.func for torch.compile, which has no double backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pytorch.robustgrad import input_gradient


def heatmap(gradient: Tensor) -> Tensor:
    """Channel sum of |gradient| over its maximum: (n, c, h, w) -> (n, h, w)."""
    total = gradient.abs().sum(1)
    return total / total.amax((1, 2), keepdim=True)


def gaussian_window(size: int = 11, sigma: float = 1.5) -> Tensor:
    offsets = torch.arange(size) - size // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    return torch.outer(weights, weights)[None, None]


def ssim(a: Tensor, b: Tensor, window: Tensor) -> Tensor:
    """Structural similarity of maps (n, h, w) in [0, 1], (n,); edges mirrored."""
    pad = window.shape[-1] // 2
    maps = torch.stack([a, b, a * a, b * b, a * b], 1)
    n, k = maps.shape[:2]
    maps = F.conv2d(F.pad(maps.flatten(0, 1)[:, None], (pad,) * 4, mode="reflect"), window)
    mean_a, mean_b, aa, bb, ab = maps.reshape(n, k, *maps.shape[2:]).unbind(1)
    variance_a, variance_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (variance_a + variance_b + 9e-4)).mean((1, 2))


def similarities(a: Tensor, b: Tensor, window: Tensor) -> dict[str, Tensor]:
    """Cosine, Pearson, SSIM and MSE of maps (n, h, w), each (n,)."""
    x, y = a.flatten(1), b.flatten(1)
    centered = [v - v.mean(1, keepdim=True) for v in (x, y)]
    return {
        "cosine": F.cosine_similarity(x, y, dim=1),
        "pcc": F.cosine_similarity(*centered, dim=1),
        "ssim": ssim(a, b, window),
        "mse": (x - y).square().mean(1),
    }


def clean_map(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    return heatmap(input_gradient(model(x), x, y, create_graph=False))


def functional_map(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same by torch.func."""
    return heatmap(torch.func.grad(lambda x: model(x).gather(1, y[:, None]).sum())(x))


def attack_gradient(
    model: nn.Module, attacked: Tensor, y: Tensor, target: Tensor, before: Tensor, gamma: float
) -> Tensor:
    """Of γ‖h(x̃) − h_t‖² + (1 − γ) MSE(f(x̃), f(x)) by x̃; `before` are the logits f(x)."""
    attacked = attacked.detach().requires_grad_(True)
    logits = model(attacked)
    heat = heatmap(input_gradient(logits, attacked, y, create_graph=True))
    loss = gamma * (heat - target).square().sum() + (1 - gamma) * (logits - before).square().mean(1).sum()
    return torch.autograd.grad(loss, attacked)[0]


def functional_attack_gradient(
    model: nn.Module, attacked: Tensor, y: Tensor, target: Tensor, before: Tensor, gamma: float
) -> Tensor:
    """The same by torch.func."""

    def score(x: Tensor):
        logits = model(x)
        return logits.gather(1, y[:, None]).sum(), logits

    def loss(x: Tensor):
        gradient, logits = torch.func.grad(score, has_aux=True)(x)
        distance = (heatmap(gradient) - target).square().sum()
        return gamma * distance + (1 - gamma) * (logits - before).square().mean(1).sum()

    return torch.func.grad(loss)(attacked)


def random_perturbation_similarity(
    model: nn.Module, x: Tensor, y: Tensor, *, radius: float, draws: int, window: Tensor, explain: Callable = clean_map
) -> dict[str, Tensor]:
    """Means over uniform draws of radius `radius`, in x's units, of the similarities, each (n,)."""
    before, total = explain(model, x, y), None
    for _ in range(draws):
        moved = (x + radius * (2 * torch.rand_like(x) - 1)).clamp(x.min(), x.max())
        values = similarities(before, explain(model, moved, y), window)
        total = values if total is None else {k: total[k] + v for k, v in values.items()}
    return {k: v / draws for k, v in total.items()}


def manipulate(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor, *, radius: float, steps: int, gamma: float = 0.5,
    gradient: Callable = attack_gradient,
) -> Tensor:  # fmt: skip
    """The attacked images after `steps` of Adam along `attack_gradient`, in the ℓ∞ ball."""
    with torch.no_grad():
        before = model(x)
    attacked = x.clone()
    optimizer = torch.optim.Adam([attacked], lr=4 * radius / steps)
    for _ in range(steps):
        attacked.grad = gradient(model, attacked, y, target, before, gamma)
        optimizer.step()
        attacked.copy_(torch.clamp(attacked, x - radius, x + radius))
    return attacked
