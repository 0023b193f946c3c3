"""The classifiers by name, their published weights, and what files are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from launch.networks.cnn import ResNet
from tldr_jax.classifier import backbones, vit
from tldr_jax.classifier.cnn import SmallCnn


def init(module, size):
    """Variables drawn by numpy: no program is compiled for them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), dict(shapes))


@pytest.mark.parametrize("name", backbones.KINDS)
def test_the_head_takes_the_features(name):
    size = backbones.KINDS[name].image_size or 64
    module = backbones.create(name, 5)
    shapes = backbones.template(module, (size, size, 3))
    assert shapes["params"][backbones.HEAD]["kernel"].shape == (backbones.KINDS[name].features, 5)
    logits, out = jax.eval_shape(module.apply, shapes, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))
    assert logits.shape == (2, 5) and out["features"].shape == (2, backbones.KINDS[name].features)
    assert (name == "resnet50") == bool(shapes["batch_stats"])


def test_small_cnn_against_numpy():
    module = SmallCnn(3)
    variables = init(module, 16)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    logits, out = jax.jit(module.apply)(variables, x)
    params = variables["params"]
    found = x
    for name, stride in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
        padded = np.pad(found, ((0, 0), (1, 1), (1, 1), (0, 0)))
        size = found.shape[1] // stride
        found = np.zeros((2, size, size, params[name]["bias"].size)) + params[name]["bias"]
        for i in range(3):
            for j in range(3):
                window = padded[:, i : i + stride * size : stride, j : j + stride * size : stride]
                found = found + window @ params[name]["kernel"][i, j]
        found = np.maximum(found, 0)
    cells = [found[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)]  # 4 x 4 maps, 2 x 2 cells
    dense = np.concatenate(cells, 1) @ params["dense"]["kernel"] + params["dense"]["bias"]
    features = np.maximum(dense, 0)
    np.testing.assert_allclose(out["features"], features, atol=1e-4)
    np.testing.assert_allclose(logits, features @ params["fc"]["kernel"] + params["fc"]["bias"], atol=1e-4)
    with pytest.raises(ValueError, match="maps of 5x5"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 20, 20, 3)))


@pytest.fixture
def small(monkeypatch):
    """Names of the published networks, sizes of toys."""
    tiny = {
        "resnet50": lambda outputs: ResNet(outputs, jax.nn.relu, (1,), bottleneck=True, imagenet_stem=True),
        "vit_b16": lambda outputs: vit.ViT(outputs, patch=8, width=16, depth=1, heads=2),
        "small_cnn": SmallCnn,
    }
    monkeypatch.setattr(backbones, "create", lambda name, outputs, *dtype: tiny[name](outputs))
    return tiny


def torch_names(name, variables):
    """A file's tensors, ours renamed and transposed as PyTorch has them."""
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    renamed = {
        "resnet50": lambda m: m.replace("layer1_0", "layer1.0").replace("shortcut_conv", "downsample.0")
        .replace("shortcut_bn", "downsample.1"),
        "vit_b16": lambda m: m.replace("block0", "blocks.0").replace("qkv", "attn.qkv").replace("out", "attn.proj")
        .replace("up", "mlp.fc1").replace("down", "mlp.fc2").replace("patch", "patch_embed.proj").replace("fc", "head")
        .replace("mlp.head1", "mlp.fc1").replace("mlp.head2", "mlp.fc2"),
    }[name]  # fmt: skip
    found = {}
    for (_, *path), value in traverse_util.flatten_dict(dict(variables)).items():
        *modules, leaf = path
        value = np.asarray(value)
        if not modules:
            found[{"class_token": "cls_token", "positions": "pos_embed"}[leaf]] = value
            continue
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        found[f"{renamed('.'.join(modules))}.{leaves[leaf]}"] = np.ascontiguousarray(value)
    return found


@pytest.mark.parametrize("name", ["resnet50", "vit_b16"])
def test_weights_of_a_file_with_a_fresh_head_or_its_own(tmp_path, small, name):
    published = init(small[name](7), 16)
    save_file(torch_names(name, published), tmp_path / "a.safetensors")
    for outputs, keep in ((2, False), (7, True), (7, False)):
        fresh = init(small[name](outputs), 16)
        fresh = {"batch_stats": {}} | jax.tree.map(lambda a: np.asarray(a) + 1, dict(fresh))
        found = backbones.load(name, tmp_path / "a.safetensors", (16, 16, 3), fresh, keep_head=keep)
        head = (published if keep else fresh)["params"][backbones.HEAD]
        wanted = {"batch_stats": {}} | dict(published)
        wanted = wanted | {"params": wanted["params"] | {backbones.HEAD: head}}
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with pytest.raises(ValueError, match=r"a\.safetensors: its head has 7 outputs and the data set 2 classes"):
        fresh = {"batch_stats": {}} | dict(init(small[name](2), 16))
        backbones.load(name, tmp_path / "a.safetensors", (16, 16, 3), fresh, keep_head=True)


@pytest.mark.parametrize("name", ["resnet50", "vit_b16"])
def test_files_that_do_not_fit_are_refused_with_everything_that_is_wrong(tmp_path, small, name):
    variables = {"batch_stats": {}} | dict(init(small[name](2), 16))
    tensors = torch_names(name, variables)
    gone = "bn1.bias" if name == "resnet50" else "norm.bias"
    wrong = "conv1.weight" if name == "resnet50" else "pos_embed"
    tensors.pop(gone)
    tensors |= {wrong: tensors[wrong][:, :2], "stranger": np.zeros(1)}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: these weights do not fit") as refused:
        backbones.load(name, tmp_path / "a.safetensors", (16, 16, 3), variables, keep_head=False)
    assert all(text in str(refused.value) for text in (f"missing {gone}", "not in the model stranger", wrong))


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(
        ValueError, match="unknown backbone 'resnet'; valid names: 'resnet50', 'vit_b16', 'small_cnn', 'small_vit'"
    ):
        backbones.create("resnet", 2)
    small = backbones.template(backbones.create("small_vit", 2), (32, 32, 3))["params"]
    assert small["fc"]["kernel"].shape == (backbones.KINDS["small_vit"].features, 2)
    with pytest.raises(ValueError, match="no published weights of small_cnn exist"):
        backbones.load("small_cnn", tmp_path / "a.safetensors", (32, 32, 3), {}, keep_head=False)
    with pytest.raises(ValueError, match=r"give a \.safetensors file"):
        backbones.load("resnet50", tmp_path / "a.pth", (32, 32, 3), {}, keep_head=False)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*a\.safetensors"):
        backbones.load("resnet50", tmp_path / "a.safetensors", (32, 32, 3), {}, keep_head=False)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, small, value):
    tensors = torch_names("resnet50", init(small["resnet50"](2), 16))
    tensors["conv1.weight"][1, 2, 0, :2] = value
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: conv1\.weight has 2 values that are NaN or infinite"):
        backbones.load("resnet50", tmp_path / "a.safetensors", (16, 16, 3), {}, keep_head=False)


def test_images_that_do_not_divide_into_patches():
    with pytest.raises(ValueError, match="images of 30x30 pixels do not divide into patches of 16"):
        jax.eval_shape(vit.ViT(2).init, jax.random.key(0), jnp.zeros((1, 30, 30, 3)))
