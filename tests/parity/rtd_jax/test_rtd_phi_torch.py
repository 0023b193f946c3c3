"""φ networks against their published modules written in PyTorch, and their files."""

import itertools

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.pytorch.rtd_step import Phi
from rtd_jax import phi

IN, OUT = 12, 9
X = np.random.default_rng(0).normal(size=(7, IN)).astype(np.float32)


class Im2Text(nn.Module):
    """Pic2Word's network with its names."""

    def __init__(self, inputs, hidden, outputs, layers=2, dropout=0.1):
        super().__init__()
        widths = [inputs, *[hidden] * layers]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.Dropout(dropout), nn.ReLU()) for a, b in itertools.pairwise(widths))
        )
        self.fc_out = nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.fc_out(self.layers(x))


def module(name):
    torch.manual_seed(0)
    made = {
        "phi": lambda: Phi(IN, 4 * IN, OUT),
        "phi, other width": lambda: Phi(IN, 20, OUT),
        "pic2word": lambda: Im2Text(IN, 16, OUT),
        "pic2word, three layers": lambda: Im2Text(IN, 16, OUT, layers=3),
    }
    return made[name]().eval()


NAMES = ("phi", "phi, other width", "pic2word", "pic2word, three layers")


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name):
    theirs = module(name)
    with torch.no_grad():
        expected = theirs(torch.tensor(X))
    network = phi.from_torch(theirs.state_dict())
    np.testing.assert_allclose(network(X), expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_our_files_load_into_the_published_modules(name, tmp_path):
    theirs, network = module(name), phi.from_torch(module(name).state_dict())
    again = jax.tree.map(lambda leaf: leaf + 0.5, network.params)
    phi.save(phi.Network(network.module, again), tmp_path / "phi.safetensors")
    theirs.load_state_dict(load_file(tmp_path / "phi.safetensors"))
    with torch.no_grad():
        expected = theirs(torch.tensor(X))
    np.testing.assert_allclose(phi.load(tmp_path / "phi.safetensors")(X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 7, "Phi": state},
        lambda state: {"epoch": 7, "state_dict": {"visual.proj": torch.ones(2)}, "state_dict_img2text": state},
        lambda state: {"Phi": {f"module.{name}": tensor.half() for name, tensor in state.items()}},
    ],
)
@pytest.mark.parametrize("name", ["phi", "pic2word"])
def test_published_files(name, wrap, tmp_path):
    """φ's state dict by itself or among others, in half precision, from DataParallel."""
    theirs = module(name)
    torch.save(wrap(theirs.state_dict()), tmp_path / "phi.pt")
    with torch.no_grad():
        expected = theirs(torch.tensor(X))
    np.testing.assert_allclose(phi.load(tmp_path / "phi.pt")(X), expected, atol=2e-3)  # half precision's


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_pytorch_files_that_are_refused(tmp_path, capsys):
    state = module("phi").state_dict()
    torch.save({"Phi": state, "more": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt is corrupt, or holds more than plain data"):
        phi.load(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "half.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"half\.pt is (not a whole PyTorch file|corrupt)"):
        phi.load(tmp_path / "half.pt")
    torch.save({"a": state, "b": state}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"two\.pt holds 2 dicts with the names of a φ, not one"):
        phi.load(tmp_path / "two.pt")
    torch.save([1, 2], tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"none\.pt holds 0 dicts"):
        phi.load(tmp_path / "none.pt")
