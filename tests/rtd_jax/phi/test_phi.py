"""φ networks: initial values, dropout, files, and what does not fit."""

import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rtd_jax import phi
from tests.clip_jax.towers import TINY

IN, OUT = 6, 5


@pytest.fixture(scope="module", params=sorted(phi.KINDS))
def network(request):
    return phi.init(request.param, IN, OUT, jax.random.key(0))


def embeddings(n=3, d=IN):
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def test_initial_values_are_pytorchs(network):
    """U(-1, 1) / sqrt(inputs), kernels and biases."""
    drawn = []
    for layer in network.params.values():
        scaled = np.concatenate([np.ravel(leaf) for leaf in layer.values()]) * len(layer["kernel"]) ** 0.5
        assert np.abs(scaled).max() <= 1
        drawn.append(scaled)
    drawn = np.concatenate(drawn)
    assert np.abs(drawn).max() > 0.99 and abs(drawn.var() - 1 / 3) < 0.02
    assert len(np.unique(drawn)) > 0.9 * len(drawn)  # every number is drawn for itself, up to chance


def test_sizes(network):
    widths = [leaf["kernel"].shape for _, leaf in sorted(network.params.items())]
    hidden = {"Phi": 4 * IN, "Pic2Word": 512}[type(network.module).__name__]
    assert widths == [(IN, hidden), (hidden, hidden), (hidden, OUT)]
    assert (network.input_width, network.token_width) == (IN, OUT)


def test_dropout_only_in_training(network):
    x = embeddings(400)
    apply = lambda **options: network.module.apply({"params": network.params}, x, **options)
    still = network(x)
    np.testing.assert_allclose(apply(), still, atol=1e-6)
    one, other = (apply(train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert np.abs(one - other).max() > 0.01 and np.abs(one - still).max() > 0.01


def test_pic2word_drops_what_its_rate_says():
    """The share of zeros before the last layer, which the identity lets through."""
    module = phi.Pic2Word(width=64, hidden=64, layers=1)
    eye, x = np.eye(64, dtype=np.float32), np.ones((500, 64), np.float32)
    params = {f"dense{i}": {"kernel": eye, "bias": np.zeros(64, np.float32)} for i in range(2)}
    out = module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert (out == 0).mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_allclose(out[out != 0], 1 / 0.9, rtol=1e-6)


def test_a_saved_file_loads(network, tmp_path):
    phi.save(network, tmp_path / "phi.safetensors")
    again = phi.load(tmp_path / "phi.safetensors")
    assert (type(again.module), again.module.dropout) == (type(network.module), network.module.dropout)
    np.testing.assert_array_equal(again(embeddings()), network(embeddings()))


def test_published_names(tmp_path):
    names = {
        "phi": {f"layers.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")},
        "pic2word": {f"{n}.{p}" for n in ("layers.0.0", "layers.1.0", "fc_out") for p in ("weight", "bias")},
    }
    for kind, expected in names.items():
        network = phi.init(kind, IN, OUT, jax.random.key(1))
        phi.save(network, tmp_path / "phi.safetensors")
        tensors = load_file(tmp_path / "phi.safetensors")
        assert set(tensors) == expected
        last = "layers.6.weight" if kind == "phi" else "fc_out.weight"
        np.testing.assert_array_equal(tensors[last], network.params["dense2"]["kernel"].T)


def tensors_of(kind="phi"):
    return phi.to_torch(phi.init(kind, IN, OUT, jax.random.key(0)))


def test_a_prefix_of_dataparallel_is_dropped():
    found = phi.from_torch({f"module.{name}": tensor for name, tensor in tensors_of().items()})
    np.testing.assert_array_equal(found(embeddings()), phi.from_torch(tensors_of())(embeddings()))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("layers.3.bias"), "not a φ: missing layers.3.bias; unknown none"),
        (lambda t: t.update({"layers.9.weight": t["layers.6.weight"]}), "missing none; unknown layers.9.weight"),
        (lambda t: t.clear(), "not a φ: missing layers.0.bias"),
        (lambda t: t.update({"layers.3.weight": np.ones((24, 7))}), r"layers.3: weight \(24, 7\) .* the 24 inputs"),
        (lambda t: t.update({"layers.0.bias": np.ones(3)}), r"layers.0: weight \(24, 6\) and bias \(3,\)"),
        (lambda t: t.update({"layers.0.bias": np.full(24, np.nan)}), r"layers.0.bias has 24 values that are NaN"),
        (lambda t: t.update({"layers.0.bias": np.full(24, -np.inf)}), r"layers.0.bias has 24 values"),
        (lambda t: t.update({"layers.0.bias": np.ones(24, int)}), r"layers.0.bias is of type int64, floats are needed"),
        (lambda t: t.update({"module.layers.0.bias": np.ones(24)}), r"with and without the prefix 'module\.'"),
    ],
)
def test_tensors_that_are_no_phi(change, message):
    tensors = tensors_of()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        phi.from_torch(tensors)


def test_a_phi_of_other_widths_than_the_clips():
    network = phi.init("phi", IN, OUT, jax.random.key(0))
    with pytest.raises(ValueError, match="width 6 to tokens of width 5; the CLIP has embeddings of width 20"):
        phi.check_fits(network, TINY)
    phi.check_fits(phi.init("phi", TINY.projection, TINY.text.width, jax.random.key(0)), TINY)
    with pytest.raises(ValueError, match=r"φ takes embeddings \(n, 6\), got \(3, 4\)"):
        network(embeddings(3, 4))


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="unknown φ 'lincer'; valid names: 'phi', 'pic2word'"):
        phi.init("lincer", IN, OUT, jax.random.key(0))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no φ file .*gone\.safetensors"):
        phi.load(tmp_path / "gone.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(ValueError, match=r"half\.safetensors is not a whole safetensors file"):
        phi.load(tmp_path / "half.safetensors")
    (tmp_path / "phi.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"phi.npz: a φ file must end in .safetensors, .pt"):
        phi.load(tmp_path / "phi.npz")
    save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: these tensors are not a φ"):
        phi.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"φ is saved as \.safetensors"):
        phi.save(phi.init("phi", IN, OUT, jax.random.key(0)), tmp_path / "phi.pt")


def test_a_pytorch_file_without_pytorch(tmp_path, monkeypatch):
    (tmp_path / "phi.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"phi.pt is a PyTorch file .* rtd_jax.phi.save"):
        phi.load(tmp_path / "phi.pt")
