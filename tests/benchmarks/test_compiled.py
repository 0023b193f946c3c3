"""The compiled opponent of the training step computes what the eager one does, running statistics included."""

import copy

import pytest

torch = pytest.importorskip("torch")
from benchmarks.pytorch import robustgrad  # noqa: E402

WEIGHTS = {"l2": 0.01, "cosine": 1.0, "hessian": 1e-3}


def gradients_of(step_loss, network, regularizer):
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 8, 8), torch.randint(0, 10, (4,))
    noise = 0.05 * torch.randn_like(x)
    loss, _ = step_loss(network, x, y, regularizer=regularizer, noise=noise, weights=WEIGHTS)
    loss.backward()
    return [loss.detach(), *(p.grad for p in network.parameters()), *network.buffers()]


def small_network(name):
    torch.manual_seed(1)
    if name == "lenet":
        return robustgrad.create("lenet", image_size=8).train()
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Softplus(), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(4 * 36, 10)).train()


@pytest.mark.parametrize(
    "name, regularizer",
    [("lenet", "none"), ("lenet", "l2_cosine"), ("lenet", "hessian"), ("batch norm", "l2_cosine")],
)
def test_compiled_loss(name, regularizer):
    network = small_network(name)
    other = copy.deepcopy(network)
    eager = gradients_of(robustgrad.step_loss, network, regularizer)
    compiled = torch.compile(robustgrad.functional_step_loss, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients_of(compiled, other, regularizer), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
