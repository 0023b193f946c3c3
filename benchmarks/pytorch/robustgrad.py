"""PyTorch eager: the published training step of local gradient alignment, for parity tests and benchmarks.

Joo et al., "Towards More Robust Interpretation via Local Gradient Alignment", AAAI 2023 (arXiv 2211.15900).
Parity tests take their reference numbers from here, benchmarks time it against ours; nothing here is timed.

Parameter names are those of the published code for LeNet and the CIFAR ResNets, and torchvision's for the
ImageNet ones, so that state dicts travel both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REGULARIZERS = ("none", "l2", "cosine", "l2_cosine", "hessian")
COSINE_EPS = 1e-8

# name -> (block kind, blocks per stage)
_DEPTHS = {"18": ("basic", (2, 2, 2, 2)), "34": ("basic", (3, 4, 6, 3)), "50": ("bottleneck", (3, 4, 6, 3))}
MODELS = ("lenet", *(f"resnet{d}_cifar" for d in _DEPTHS), *(f"resnet{d}" for d in _DEPTHS))


def _activation(name: str, beta: float) -> nn.Module:
    if name == "softplus":
        return nn.Softplus(beta=beta)
    if name == "relu":
        return nn.ReLU()
    raise ValueError(f"unknown activation {name!r}; valid names: 'softplus', 'relu'")


class LeNet(nn.Module):
    """conv3x3 32-32-maxpool-64-64-maxpool, dense 256, dense classes; activation after each but the last."""

    def __init__(self, in_channels: int, image_size: int, num_classes: int, act: nn.Module):
        super().__init__()
        self.conv11 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.conv12 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv21 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv22 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * (image_size // 4) ** 2, 256)
        self.fc2 = nn.Linear(256, num_classes)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.conv12(self.act(self.conv11(x)))), 2)
        x = F.max_pool2d(self.act(self.conv22(self.act(self.conv21(x)))), 2)
        return self.fc2(self.act(self.fc1(x.flatten(1))))


class ResidualBlock(nn.Module):
    """Basic (3x3, 3x3) or bottleneck (1x1, 3x3 strided, 1x1 to 4x) block.

    `projection` names the 1x1 path ("shortcut" or "downsample"); it is the identity where shapes agree.
    """

    def __init__(self, kind: str, c_in: int, width: int, stride: int, projection: str, act: nn.Module):
        super().__init__()
        c_out = width * (1 if kind == "basic" else 4)
        # (kernel, channels, stride) of each convolution
        basic = [(3, width, stride), (3, width, 1)]
        layers = basic if kind == "basic" else [(1, width, 1), (3, width, stride), (1, c_out, 1)]
        c, self.depth = c_in, len(layers)
        for i, (kernel, channels, s) in enumerate(layers, start=1):
            conv = nn.Conv2d(c, channels, kernel, stride=s, padding=kernel // 2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(channels))
            c = channels
        path = []
        if stride != 1 or c_in != c_out:
            path = [nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out)]
        self.add_module(projection, nn.Sequential(*path))
        self.projection, self.act = projection, act

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.depth + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < self.depth:
                out = self.act(out)
        return self.act(out + getattr(self, self.projection)(x))


class ResNet(nn.Module):
    """ResNet with the CIFAR stem (3x3) or, where `imagenet`, torchvision's (7x7 stride 2, 3x3 max pool)."""

    def __init__(self, depth: str, in_channels: int, num_classes: int, act: nn.Module, *, imagenet: bool):
        super().__init__()
        kind, blocks = _DEPTHS[depth]
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        projection = "downsample" if imagenet else "shortcut"
        channels = 64
        for k, count in enumerate(blocks):
            width, stage = 64 * 2**k, []
            for j in range(count):
                stride = 2 if k > 0 and j == 0 else 1
                stage.append(ResidualBlock(kind, channels, width, stride, projection, act))
                channels = width * (1 if kind == "basic" else 4)
            self.add_module(f"layer{k + 1}", nn.Sequential(*stage))
        self.head = "fc" if imagenet else "linear"
        self.add_module(self.head, nn.Linear(channels, num_classes))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for k in range(1, 5):
            x = getattr(self, f"layer{k}")(x)
        return getattr(self, self.head)(x.mean(dim=(2, 3)))


def create(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    activation: str = "softplus",
    beta: float = 3.0,
) -> nn.Module:
    """A model by name (one of `MODELS`), taking (n, in_channels, image_size, image_size).

    `image_size` only matters to lenet, whose dense layer depends on it. Weights are PyTorch's default
    initialisation. Raises ValueError for an unknown name or activation, listing what there is.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; valid names: {', '.join(MODELS)}")
    act = _activation(activation, beta)
    if name == "lenet":
        return LeNet(in_channels, image_size, num_classes, act)
    depth = name.removeprefix("resnet").removesuffix("_cifar")
    return ResNet(depth, in_channels, num_classes, act, imagenet=not name.endswith("_cifar"))


def input_gradient(logits: Tensor, x: Tensor, y: Tensor, *, create_graph: bool) -> Tensor:
    """Gradient of the true-class logits, summed over the batch, with respect to x: shape of x."""
    score = logits.gather(1, y[:, None]).sum()
    return torch.autograd.grad(score, x, create_graph=create_graph, retain_graph=True)[0]


def alignment_distances(source: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Batch means of the squared l2 distance and of (1 - cosine)/2, over all pixels and channels."""
    a, b = source.flatten(1), other.flatten(1)
    l2 = (a - b).square().sum(1).mean()
    cosine = F.cosine_similarity(a, b, dim=1, eps=COSINE_EPS)
    return l2, ((1 - cosine) / 2).mean()


def step_loss(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    regularizer: str,
    noise: Tensor | None = None,
    weights: Mapping[str, float] | None = None,
    detach_source: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss of one batch, ready for backward().

        L = CE(f(x), y) + w_l2 mean|g(x) - g(x + noise)|_2^2 + w_cosine mean (1 - cos(g(x), g(x + noise)))/2

    with g the input gradient of the true-class logit; for "hessian", CE + w_hessian mean|H v|_2^2 with
    v = noise, H the Hessian of the true-class logit (Dombrowski et al. 2022), by double backward.

    x (n, c, h, w) normalised images; y int64 (n,); noise the shape of x, in the same units; weights has those
    of the keys "l2", "cosine", "hessian" that the regularizer uses. The source g(x) is a constant unless
    `detach_source` is False. The model runs in the mode it is in: put it in training mode first. Batch norm's
    running statistics then move in both passes, clean before perturbed.

    Returns (loss, parts): parts holds detached "cross_entropy", "logits" and the unweighted terms ("l2" and
    "cosine", or "hessian") that were computed.
    """
    if regularizer not in REGULARIZERS:
        raise ValueError(f"unknown regularizer {regularizer!r}; valid names: {', '.join(REGULARIZERS)}")
    if regularizer == "none":
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        return loss, {"cross_entropy": loss.detach(), "logits": logits.detach()}
    if noise is None or noise.shape != x.shape:
        got = None if noise is None else tuple(noise.shape)
        raise ValueError(f"regularizer {regularizer!r} needs noise of x's shape {tuple(x.shape)}, got {got}")
    used = ("l2", "cosine") if regularizer == "l2_cosine" else (regularizer,)
    missing = [key for key in used if key not in (weights or {})]
    if missing:
        raise ValueError(f"regularizer {regularizer!r} needs weights for {', '.join(missing)}")

    x = x.detach().requires_grad_(True)
    logits = model(x)
    cross_entropy = F.cross_entropy(logits, y)
    if regularizer == "hessian":
        gradient = input_gradient(logits, x, y, create_graph=True)
        product = torch.autograd.grad((gradient * noise).sum(), x, create_graph=True)[0]
        terms = {"hessian": product.flatten(1).square().sum(1).mean()}
    else:
        source = input_gradient(logits, x, y, create_graph=not detach_source)
        moved = (x.detach() + noise).requires_grad_(True)
        other = input_gradient(model(moved), moved, y, create_graph=True)
        terms = dict(zip(("l2", "cosine"), alignment_distances(source, other), strict=True))

    loss = cross_entropy + sum(weights[key] * terms[key] for key in used)
    parts = {"cross_entropy": cross_entropy, "logits": logits, **terms}
    return loss, {key: value.detach() for key, value in parts.items()}


def functional_step_loss(
    model: nn.Module, x: Tensor, y: Tensor, *, regularizer: str, noise: Tensor, weights: Mapping[str, float]
) -> tuple[Tensor, None]:
    """The loss of `step_loss` with torch.func's input gradients, which torch.compile can differentiate once more.

    Buffers go through as arguments, since torch.func refuses a function that changes tensors it was not given.
    """
    if regularizer == "none":
        return step_loss(model, x, y, regularizer=regularizer)[0], None

    def score(x: Tensor, buffers: dict[str, Tensor]):
        moved = {name: buffer.clone() for name, buffer in buffers.items()}
        logits = torch.func.functional_call(model, moved, (x,))
        return logits.gather(1, y[:, None]).sum(), (logits, moved)

    gradient = torch.func.grad(score, has_aux=True)

    def derivative_along_noise(x: Tensor, buffers: dict[str, Tensor]):
        own, others = gradient(x, buffers)
        return (own * noise).sum(), others

    buffers = dict(model.named_buffers())
    if regularizer == "hessian":
        product, (logits, moved) = torch.func.grad(derivative_along_noise, has_aux=True)(x, buffers)
        terms = {"hessian": product.flatten(1).square().sum(1).mean()}
    else:
        source, (logits, moved) = gradient(x, buffers)
        other, (_, moved) = gradient(x + noise, moved)
        terms = dict(zip(("l2", "cosine"), alignment_distances(source.detach(), other), strict=True))
    for name, buffer in buffers.items():
        buffer.copy_(moved[name])
    used = ("l2", "cosine") if regularizer == "l2_cosine" else (regularizer,)
    return F.cross_entropy(logits, y) + sum(weights[key] * terms[key] for key in used), None
