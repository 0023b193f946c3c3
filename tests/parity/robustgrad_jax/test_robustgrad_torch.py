"""Logits, input gradients, distances, the Hessian term and all parameter gradients against PyTorch double backward.

float64, LeNet and ResNet-18 with batch norm in training mode, weights carried over by `models.from_torch`.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustgrad_jax import models
from robustgrad_jax.gradients import input_gradient
from robustgrad_jax.regularizers import alignment, hessian

torch = pytest.importorskip("torch")
from benchmarks.pytorch import robustgrad as reference  # noqa: E402

TOLERANCE = 1e-6
# name, image shape (h, w, c), images; small images keep the float64 double backward of ResNet-18 to seconds
CASES = {"lenet": ((16, 16, 3), 4), "resnet18_cifar": ((16, 16, 3), 3)}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    """The same weights and data on both sides; perturbed running statistics, so that their transfer is seen."""
    name = request.param
    shape, n = CASES[name]
    torch.manual_seed(0)
    theirs = reference.create(name, num_classes=7, in_channels=shape[2], image_size=shape[0]).double()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if "running" in key or ("bn" in key and value.is_floating_point()):
                value.copy_(torch.rand_like(value) + 0.5)
    rng = np.random.default_rng(0)
    x, noise, direction = rng.normal(size=(3, n, *shape))
    y = rng.integers(0, 7, n)
    with jax.enable_x64(True):
        ours = models.from_torch(name, {k: v.numpy() for k, v in theirs.state_dict().items()})
        yield name, theirs, ours, x, y, 0.1 * noise, direction


class ComposedBatchNorm(torch.nn.BatchNorm2d):
    """Training-mode batch norm from elementary operations.

    PyTorch's own second derivative of batch norm takes the saved mean and variance for constants, so that a *third*
    derivative, which the parameter gradient of the Hessian term is, comes out wrong (by tens of per cent on a toy
    example, where this class agrees with finite differences to 1e-9).
    """

    def forward(self, x):
        centered = x - x.mean((0, 2, 3), keepdim=True)
        scaled = centered / (centered.square().mean((0, 2, 3), keepdim=True) + self.eps).sqrt()
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


def compose_batch_norm(module):
    for child in module.modules():
        if type(child) is torch.nn.BatchNorm2d:
            child.__class__ = ComposedBatchNorm


def to_torch(x):
    return torch.tensor(np.moveaxis(x, -1, 1))


def to_jax(t):
    a = t.detach().numpy()
    return np.moveaxis(a, 1, -1) if a.ndim == 4 else a


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def training_logits(name, variables):
    model = models.create(name, num_classes=7)

    def logits_fn(params, x):
        (logits, _), updates = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return logits, updates

    return logits_fn


def check_parameter_gradients(name, gradients, theirs):
    """Every parameter's gradient, carried over like the weights themselves."""
    buffers = {k: v.numpy() for k, v in theirs.named_buffers()}
    wanted = models.from_torch(name, {k: p.grad.numpy() for k, p in theirs.named_parameters()} | buffers)["params"]
    errors = jax.tree.map(relative, gradients, wanted)
    assert jax.tree.structure(gradients) == jax.tree.structure(wanted)
    # A convolution's bias before batch norm has none; LeNet's all have, so no gradient here is identically zero.
    assert max(jax.tree.leaves(errors)) < TOLERANCE, errors


def test_logits_and_input_gradients_in_evaluation_mode(case):
    name, theirs, ours, x, y, _, _ = case
    theirs.eval()
    xt = to_torch(x).requires_grad_()
    logits_t = theirs(xt)
    gradient_t = reference.input_gradient(logits_t, xt, torch.tensor(y), create_graph=False)
    theirs.train()
    model = models.create(name, num_classes=7)
    logits_fn = lambda variables, x: (model.apply(variables, x)[0], None)
    gradient, logits, _ = input_gradient(logits_fn, ours, jnp.asarray(x), y)
    assert relative(logits, to_jax(logits_t)) < TOLERANCE
    assert relative(gradient, to_jax(gradient_t)) < TOLERANCE


@pytest.mark.parametrize("detach_source", [True, False])
def test_gradient_alignment(case, detach_source):
    name, theirs, ours, x, y, noise, _ = case
    weights_ = {"l2": 0.3, "cosine": 0.7}
    theirs.zero_grad()
    loss_t, parts = reference.step_loss(
        theirs,
        to_torch(x),
        torch.tensor(y),
        regularizer="l2_cosine",
        noise=to_torch(noise),
        weights=weights_,
        detach_source=detach_source,
    )
    loss_t.backward()
    logits_fn = training_logits(name, ours)

    def loss(params):
        l2, cosine, logits, _ = alignment.gradient_alignment(
            logits_fn, params, jnp.asarray(x), y, jnp.asarray(noise), detach_source=detach_source
        )
        cross_entropy = -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean()
        return cross_entropy + 0.3 * l2 + 0.7 * cosine, (l2, cosine)

    (value, (l2, cosine)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(ours["params"])
    assert relative(value, loss_t.item()) < TOLERANCE
    assert relative(l2, parts["l2"].item()) < TOLERANCE
    assert relative(cosine, parts["cosine"].item()) < TOLERANCE
    check_parameter_gradients(name, gradients, theirs)


def test_hessian_norm(case):
    name, theirs, ours, x, y, _, direction = case
    theirs = copy.deepcopy(theirs)
    compose_batch_norm(theirs)
    theirs.zero_grad()
    loss_t, parts = reference.step_loss(
        theirs,
        to_torch(x),
        torch.tensor(y),
        regularizer="hessian",
        noise=to_torch(direction),
        weights={"hessian": 0.01},
    )
    loss_t.backward()
    logits_fn = training_logits(name, ours)

    def loss(params):
        term = hessian.hessian_norm(logits_fn, params, jnp.asarray(x), y, jnp.asarray(direction))
        logits, _ = logits_fn(params, jnp.asarray(x))
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean() + 0.01 * term, term

    (value, term), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(ours["params"])
    assert relative(value, loss_t.item()) < TOLERANCE
    assert relative(term, parts["hessian"].item()) < TOLERANCE
    check_parameter_gradients(name, gradients, theirs)


@pytest.mark.parametrize("detach_source", [True, False])
def test_jvp_variants_parameter_gradients(detach_source):
    """∇g(x) + Hz under `jax.grad`: third derivatives, against PyTorch on LeNet."""
    torch.manual_seed(0)
    theirs = reference.create("lenet", num_classes=7, in_channels=3, image_size=8).double()
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 3, 8, 8, 3))
    y = rng.integers(0, 7, 3)
    xt = to_torch(x).requires_grad_()
    gradient = reference.input_gradient(theirs(xt), xt, torch.tensor(y), create_graph=True)
    (product,) = torch.autograd.grad((gradient * to_torch(noise)).sum(), xt, create_graph=True)
    source = gradient.detach() if detach_source else gradient
    l2, cosine = reference.alignment_distances(source, gradient + product)
    (0.3 * l2 + 0.7 * cosine).backward()
    with jax.enable_x64(True):
        ours = models.from_torch("lenet", {k: v.numpy() for k, v in theirs.state_dict().items()})
        logits_fn = training_logits("lenet", ours)

        def loss(params):
            l2, cosine, _, _ = alignment.gradient_alignment(
                logits_fn, params, jnp.asarray(x), y, jnp.asarray(noise), detach_source=detach_source, variant="jvp"
            )
            return 0.3 * l2 + 0.7 * cosine

        gradients = jax.jit(jax.grad(loss))(ours["params"])
        for p in theirs.parameters():  # the last bias has no part in any input gradient
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        wanted = models.from_torch("lenet", {k: p.grad.numpy() for k, p in theirs.named_parameters()})["params"]
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())
        jax.tree.map(close, gradients, wanted)


def test_parameter_gradient_by_differentiating_one_jvp(case):
    """The alignment's parameter gradient is that of jvp(g; x', u) with u = ∂R/∂∇g(x') held constant."""
    name, _, ours, x, y, noise, _ = case
    logits_fn = training_logits(name, ours)
    x, moved, stop = jnp.asarray(x), jnp.asarray(x + noise), jax.lax.stop_gradient

    def penalty(params):
        l2, cosine, _, _ = alignment.gradient_alignment(logits_fn, params, x, y, jnp.asarray(noise))
        return 0.3 * l2 + 0.7 * cosine

    def one_jvp(params):
        frozen = stop(params)
        source = input_gradient(logits_fn, frozen, x, y)[0]
        there = input_gradient(logits_fn, frozen, moved, y)[0]
        weights = lambda g: sum(w * d for w, d in zip((0.3, 0.7), alignment.distances(source, g), strict=True))
        score = lambda x: jnp.take_along_axis(logits_fn(params, x)[0], jnp.asarray(y)[:, None], 1).sum()
        return jax.jvp(score, (moved,), (jax.grad(weights)(there),))[1]

    ours_, direct = (jax.jit(jax.grad(f))(ours["params"]) for f in (penalty, one_jvp))
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(direct))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9 * largest), ours_, direct)


def test_jvp_variant_is_the_linearisation(case):
    """∇g(x) + H z, with H z from PyTorch's double backward; then l2 = ‖Hz‖² and the cosine follow by numpy."""
    name, theirs, ours, x, y, noise, _ = case
    xt = to_torch(x).requires_grad_()
    gradient_t = reference.input_gradient(theirs(xt), xt, torch.tensor(y), create_graph=True)
    (product_t,) = torch.autograd.grad((gradient_t * to_torch(noise)).sum(), xt)
    a = to_jax(gradient_t).reshape(len(x), -1)
    b = a + to_jax(product_t).reshape(len(x), -1)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    l2, distance, _, _ = alignment.gradient_alignment(
        training_logits(name, ours), ours["params"], jnp.asarray(x), y, jnp.asarray(noise), variant="jvp"
    )
    assert relative(l2, ((a - b) ** 2).sum(1).mean()) < TOLERANCE
    assert relative(distance, ((1 - cosine) / 2).mean()) < TOLERANCE
