"""Weights trained in PyTorch: same logits, and nothing that does not fit goes through."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from robustgrad_jax import models

torch = pytest.importorskip("torch")
from benchmarks.pytorch import robustgrad as reference  # noqa: E402


def torch_model(name, **options):
    """A network in evaluation mode, float64, with statistics and scales far from their initial values."""
    torch.manual_seed(0)
    model = reference.create(name, **options).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model


def tensors_of(model):
    return {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def lenet():
    return tensors_of(torch_model("lenet", num_classes=7, in_channels=1, image_size=12))


@pytest.mark.parametrize(
    "name, image",
    [
        ("lenet", (18, 18, 1)),  # not a multiple of 4
        ("resnet18_cifar", (9, 11, 3)),
        ("resnet50_cifar", (8, 8, 3)),
        ("resnet18", (33, 30, 3)),
        ("resnet50", (32, 32, 3)),
    ],
)
def test_logits_are_pytorchs(name, image):
    theirs = torch_model(name, num_classes=5, in_channels=image[2], image_size=image[0])
    x = np.random.default_rng(0).normal(size=(2, *image))
    with torch.no_grad():
        wanted = theirs(torch.tensor(np.moveaxis(x, -1, 1))).numpy()
    with jax.enable_x64(True):
        variables = models.from_torch(name, tensors_of(theirs))
        model = models.create(name, num_classes=5)
        logits = np.asarray(jax.jit(lambda v, x: model.apply(v, x)[0])(variables, x))
    assert logits.dtype == np.float64
    assert np.abs(logits - wanted).max() < 1e-6 * np.abs(wanted).max()
    assert np.ptp(wanted, axis=0).max() > 1e-3 * np.abs(wanted).max()  # the images matter


def test_every_value_arrives_once(lenet):
    """What goes in comes out, moved but not changed: as many values, the same ones."""
    ours = models.from_torch("lenet", lenet)
    assert "batch_stats" not in ours
    values = lambda tree: np.sort(np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]))
    np.testing.assert_array_equal(values(ours), values(lenet))
    single = {k: v.astype(np.float32) for k, v in lenet.items()}
    assert {a.dtype for a in jax.tree.leaves(models.from_torch("lenet", single))} == {np.dtype("float32")}


def test_a_residual_networks_tensors_are_all_asked_for():
    """Leaving out any single one of ResNet-18's tensors is noticed, but for the counters."""
    whole = tensors_of(torch_model("resnet18"))
    counters = {k for k in whole if k.endswith("num_batches_tracked")}
    assert len(counters) == 20
    models.from_torch("resnet18", {k: v for k, v in whole.items() if k not in counters})
    for key in ("conv1.weight", "fc.bias", "layer2.0.downsample.1.running_var", "layer4.1.bn2.weight"):
        with pytest.raises(ValueError) as error:
            models.from_torch("resnet18", {k: v for k, v in whole.items() if k != key})
        assert f"missing {key}" in str(error.value) and "not in the model" not in str(error.value)


def test_all_that_is_wrong_is_listed(lenet):
    wrong = {k: v for k, v in lenet.items() if k not in ("conv12.bias", "fc2.weight")}
    wrong |= {"conv13.weight": np.zeros(3), "conv21.weight": lenet["conv21.weight"][:, :, :2]}
    with pytest.raises(ValueError) as error:
        models.from_torch("lenet", wrong)
    message = str(error.value)
    assert "do not fit lenet" in message
    assert "missing conv12.bias, fc2.weight" in message
    assert "not in the model conv13.weight" in message
    assert "conv21.weight has shape (64, 32, 2, 3), the model's has (64, 32, 3, 3)" in message
    assert "fc2.bias" not in message  # it is fine


@pytest.mark.parametrize(
    "shape, wanted",
    [
        ((256, 64 * 9 - 1), (256, 576)),  # truncated
        ((256, 64 * 3 * 4), (256, 576)),  # of 12x16 images
        ((256, 10), (256, 64)),
        ((256,), (256, 4096)),
        ((255, 64 * 9), (256, 576)),
    ],
)
def test_dense_layer_of_another_size(lenet, shape, wanted):
    with pytest.raises(ValueError) as error:
        models.from_torch("lenet", lenet | {"fc1.weight": np.zeros(shape)})
    assert f"fc1.weight has shape {shape}, the model's has {wanted} (for square images" in str(error.value)


def test_weights_of_another_model(lenet):
    with pytest.raises(ValueError) as error:
        models.from_torch("resnet18_cifar", lenet)
    assert "missing bn1.bias" in str(error.value) and "not in the model conv11.bias" in str(error.value)
    # the two families name their last layer and their shortcuts differently
    with pytest.raises(ValueError) as error:
        models.from_torch("resnet18_cifar", tensors_of(torch_model("resnet18")))
    assert "linear.weight" in str(error.value) and "not in the model fc.bias" in str(error.value)
    # same names, another kind of block
    with pytest.raises(ValueError, match=r"missing .*layer1\.0\.bn3"):
        models.from_torch("resnet50", tensors_of(torch_model("resnet18")))
    # same tensors, more of them
    with pytest.raises(ValueError, match=r"not in the model layer1\.2\.bn1"):
        models.from_torch("resnet18", tensors_of(torch_model("resnet34")))
    with pytest.raises(ValueError, match="unknown model 'alexnet'; valid names: 'lenet', "):
        models.from_torch("alexnet", lenet)


def test_safetensors(lenet, tmp_path):
    path = tmp_path / "lenet.safetensors"
    save_file(lenet, path)
    ours, loaded = models.from_torch("lenet", lenet), models.load("lenet", path)
    jax.tree.map(np.testing.assert_array_equal, ours, loaded)
    assert jax.tree.structure(ours) == jax.tree.structure(loaded)


def test_files_that_cannot_be_used(lenet, tmp_path):
    path = tmp_path / "lenet.safetensors"
    with pytest.raises(FileNotFoundError, match=f"no weights file {path}"):
        models.load("lenet", path)
    save_file(lenet, path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError) as error:
            models.load("lenet", path)
        assert str(path) in str(error.value) and "not a complete safetensors file" in str(error.value)
    path.write_bytes(whole)
    with pytest.raises(ValueError) as error:
        models.load("resnet18", path)
    assert str(path) in str(error.value) and "do not fit resnet18" in str(error.value)
