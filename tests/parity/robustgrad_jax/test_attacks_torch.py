"""Attacks on attributions against loops in PyTorch: same start, same weights, same adversarial image in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustgrad_jax import attacks, callables, models
from robustgrad_jax.gradients import Ball, Draws

torch = pytest.importorskip("torch")
from benchmarks.pytorch import robustgrad as reference  # noqa: E402

TOLERANCE = 1e-5
CASES = {"lenet": (8, 3), "resnet18_cifar": (8, 2)}  # name -> pixels a side, images
RADIUS, STEPS = 0.15, 20


@pytest.fixture(scope="module")
def case(request):
    """(their network, logits_fn, attribution_fn, x, y): softplus networks of the same weights in evaluation mode."""
    name = request.param
    side, n = CASES[name]
    torch.manual_seed(1)
    theirs = reference.create(name, num_classes=5, in_channels=3, image_size=side, beta=5.0).double().eval()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if "running" in key or ("bn" in key and value.is_floating_point()):
                value.copy_(torch.rand_like(value) + 0.5)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, side, side, 3)), rng.integers(0, 5, n)
    with jax.enable_x64(True):
        variables = models.from_torch(name, {k: v.numpy() for k, v in theirs.state_dict().items()})
        model = models.create(name, num_classes=5, beta=5.0)
        logits_fn = callables.logits_of(model, jax.tree.map(jnp.asarray, variables))
        yield theirs, logits_fn, Partial(gradient, logits_fn), jnp.asarray(x), jnp.asarray(y)


def gradient(logits_fn, x, y):
    """The input gradient of the true-class logit."""
    return jax.grad(lambda x: jnp.take_along_axis(logits_fn(x), y[:, None], 1).sum())(x)


def to_torch(a):
    a = np.array(a)
    return torch.tensor(np.moveaxis(a, -1, 1) if a.ndim == 4 else a)


def to_numpy(t):
    return np.moveaxis(t.detach().numpy(), 1, -1)


def saliency(network, x, y):
    """Channel sum of the absolute gradient, (n, h, w), differentiable; and the logits."""
    logits = network(x)
    return reference.input_gradient(logits, x, y, create_graph=True).abs().sum(1), logits


def aam(network, x, y, target, *, gamma, start, steps=STEPS):
    with torch.no_grad():
        clean = network(x)
    moved = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=4 * RADIUS / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        maps, logits = saliency(network, moved, y)
        maps = maps / maps.amax((1, 2), keepdim=True)
        loss = gamma * (maps - target).square().sum() + (1 - gamma) * (logits - clean).square().mean(1).sum()
        (moved.grad,) = torch.autograd.grad(loss, moved)
        optimizer.step()
        with torch.no_grad():
            moved.copy_(torch.maximum(torch.minimum(moved, x + RADIUS), x - RADIUS))
    return moved


def ascent(network, x, y, dissimilarity, start, steps=8):
    """Ghorbani et al. 2019's iteration, image by image: the most dissimilar image with the clean prediction."""
    step = 2.5 * RADIUS / steps
    best, score = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype)
    predicted = network(x).argmax(1)
    moved = start
    for index in range(steps + 1):
        moved = moved.detach().requires_grad_()
        maps, logits = saliency(network, moved, y)
        value = dissimilarity(maps / maps.sum((1, 2), keepdim=True))
        (direction,) = torch.autograd.grad(value.sum(), moved)
        for i in range(len(x)):
            if index > 0 and logits[i].argmax() == predicted[i] and value[i] > score[i]:
                best[i], score[i] = moved[i].detach(), value[i].detach()
        moved = x + (moved.detach() + step * direction.sign() - x).clamp(-RADIUS, RADIUS)
    assert torch.all(score > -torch.inf)
    return best


# Compiling ResNet-18's second derivatives takes most of the time: one attack through it is enough.
@pytest.mark.parametrize(
    ("case", "variant"),
    [("lenet", "from_x"), ("lenet", "from_elsewhere"), ("resnet18_cifar", "from_x")],
    indirect=["case"],
)
def test_manipulation_equals_a_pytorch_loop(case, variant):
    theirs, logits_fn, attribution_fn, x, y = case
    target = attacks.target_frame(x.shape[1:3], 2).astype(x.dtype)
    gamma, away = 0.5, jnp.zeros_like(x)
    if variant == "from_elsewhere":
        gamma, away = 1.0, 0.1 * jnp.asarray(np.random.default_rng(1).uniform(-1, 1, x.shape))
    start, where = x + away, (Ball(RADIUS), Draws(start=away))
    ours = attacks.manipulate(logits_fn, attribution_fn, x, y, target, *where, steps=STEPS, gamma=gamma)
    expected = aam(theirs, to_torch(x), to_torch(y), to_torch(target), gamma=gamma, start=to_torch(start))
    assert np.abs(ours - x).max() > RADIUS / 2
    np.testing.assert_allclose(ours, to_numpy(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["lenet"], indirect=True)
@pytest.mark.parametrize("name", ["top_k", "mass_center", "pgd"])
def test_sign_gradient_attacks_equal_a_pytorch_loop(case, name):
    theirs, logits_fn, attribution_fn, x, y = case
    xt, yt = to_torch(x), to_torch(y)
    with torch.enable_grad():
        clean = saliency(theirs, xt.clone().requires_grad_(), yt)[0].detach()
    clean = clean / clean.sum((1, 2), keepdim=True)
    options = {"ball": Ball(RADIUS), "steps": 8}
    if name == "top_k":
        start, options["k"] = x, 10
        largest = clean.flatten(1).topk(10).indices
        dissimilarity = lambda maps: -maps.flatten(1).gather(1, largest).sum(1)
    else:
        options["draws"] = Draws(jax.random.key(5), jnp.arange(len(x)) + 7)
        start = x + options["draws"].noise("uniform", x, RADIUS)
    if name == "mass_center":
        grid = torch.stack(torch.meshgrid(*(torch.arange(side) for side in clean.shape[1:]), indexing="ij"))
        center = lambda maps: (maps[:, None] * grid).sum((2, 3))
        dissimilarity = lambda maps: (center(maps) - center(clean)).norm(dim=1)
    elif name == "pgd":
        dissimilarity = lambda maps: 1 - torch.cosine_similarity(maps.flatten(1), clean.flatten(1))
    ours = getattr(attacks, name)(logits_fn, attribution_fn, x, y, **options)
    expected = ascent(theirs, xt, yt, dissimilarity, to_torch(start))
    np.testing.assert_allclose(ours, to_numpy(expected), rtol=0, atol=TOLERANCE)
