"""The networks: their sizes, what they return, how they start, how their running statistics move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from launch.networks import activations, cnn
from robustgrad_jax import models

torch = pytest.importorskip("torch")
from benchmarks.pytorch import robustgrad as reference  # noqa: E402

# Parameters with 10 and 1000 classes, 3 channels, LeNet for 32x32 images. The last three at 1000 are the
# numbers that torchvision publishes; the others were counted on the PyTorch networks.
PARAMETERS = {
    "lenet": (1_116_970, 1_371_400),
    "resnet18_cifar": (11_173_962, 11_681_832),
    "resnet34_cifar": (21_282_122, 21_789_992),
    "resnet50_cifar": (23_520_842, 25_549_352),
    "resnet18": (11_181_642, 11_689_512),
    "resnet34": (21_289_802, 21_797_672),
    "resnet50": (23_528_522, 25_557_032),
}


def shapes(model, image):
    """Shapes of the variables and of (logits, out) for two images, without computing anything."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))
    return variables, jax.eval_shape(model.apply, variables, jnp.zeros((2, *image)))


def initial(model, image):
    """Initial variables, from a generator that compiles in a third of the default one's time."""
    return jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, *image)))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_model_is_in_the_table():
    assert set(PARAMETERS) == set(models.NAMES)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    counts = []
    for classes in (10, 1000):
        model = models.create(name, num_classes=classes)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        counts.append(count(variables["params"]))
    assert tuple(counts) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name, image, expected",
    [
        (
            "lenet",
            (28, 28, 1),
            {"conv11": (28, 28, 32), "conv12": (28, 28, 32), "pool1": (14, 14, 32), "conv21": (14, 14, 64)}
            | {"conv22": (14, 14, 64), "pool2": (7, 7, 64), "fc1": (256,)},
        ),
        (
            "resnet18_cifar",
            (32, 32, 3),
            {
                "stem": (32, 32, 64),
                "layer1_1": (32, 32, 64),
                "layer2_0": (16, 16, 128),
                "layer4_1": (4, 4, 512),
            }
            | {"features": (512,)},
        ),
        (
            "resnet50",
            (64, 64, 3),
            {"stem": (32, 32, 64), "pool": (16, 16, 64), "layer1_2": (16, 16, 256), "layer3_5": (4, 4, 1024)}
            | {"layer4_2": (2, 2, 2048), "features": (2048,)},
        ),
    ],
)
def test_outputs(name, image, expected):
    _, (logits, out) = shapes(models.create(name, num_classes=7), image)
    assert logits.shape == out["logits"].shape == (2, 7)
    for key, shape in expected.items():
        assert out[key].shape == (2, *shape), key
    blocks = {"resnet18_cifar": 8, "resnet50": 16}.get(name, 0)
    assert sum(key.startswith("layer") for key in out) == blocks


@pytest.mark.parametrize("activation", ["relu", "softplus", "gelu", "silu"])
def test_the_activation_is_the_one_asked_for(activation):
    """LeNet's first map against PyTorch's activation of PyTorch's convolution."""
    model = models.create("lenet", num_classes=3, activation=activation, beta=2.0)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = initial(model, (8, 8, 1))
    _, out = model.apply(variables, x)
    kernel, bias = variables["params"]["conv11"]["kernel"], variables["params"]["conv11"]["bias"]
    before = torch.nn.functional.conv2d(
        torch.tensor(np.moveaxis(x, -1, 1)),
        torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1)),
        torch.tensor(np.asarray(bias)),
        padding=1,
    )
    theirs = {
        "relu": torch.nn.ReLU(),
        "softplus": torch.nn.Softplus(beta=2.0),
        "gelu": torch.nn.GELU(),
        "silu": torch.nn.SiLU(),
    }[activation](before)
    np.testing.assert_allclose(np.moveaxis(np.asarray(out["conv11"]), -1, 1), theirs.numpy(), atol=1e-5)


def test_unknown_names_list_those_that_exist():
    with pytest.raises(ValueError, match="unknown model 'resnet19'") as error:
        models.create("resnet19", num_classes=10)
    assert all(name in str(error.value) for name in models.NAMES)
    with pytest.raises(ValueError, match="unknown activation 'relu6'") as error:
        models.create("lenet", num_classes=10, activation="relu6")
    assert all(name in str(error.value) for name in ("relu", "softplus", "gelu", "silu"))
    with pytest.raises(ValueError, match="beta must be > 0"):
        models.create("lenet", num_classes=10, activation="softplus", beta=0.0)


def test_images_too_small_for_lenet():
    with pytest.raises(ValueError, match=r"at least 4x4 pixels, got \(1, 3, 8, 1\)"):
        shapes(models.create("lenet", num_classes=10), (3, 8, 1))


def test_initial_values_are_distributed_as_pytorchs():
    """LeNet's every tensor: within PyTorch's bounds ±1/sqrt(fan_in), filling them, of one distribution."""
    torch.manual_seed(0)
    theirs = dict(reference.create("lenet", num_classes=100, image_size=8).named_parameters())
    model = models.create("lenet", num_classes=100)
    ours = initial(model, (8, 8, 3))["params"]
    for layer, leaves in ours.items():
        kernel = np.asarray(leaves["kernel"])
        bound = np.prod(kernel.shape[:-1]) ** -0.5
        for leaf, name in (("kernel", "weight"), ("bias", "bias")):
            values, wanted = np.ravel(leaves[leaf]), theirs[f"{layer}.{name}"].detach().numpy().ravel()
            assert np.abs(values).max() <= bound and np.abs(wanted).max() <= bound
            assert np.abs(values).max() > bound * (1 - 10 / values.size)
            assert stats.ks_2samp(values, wanted).pvalue > 1e-3, (layer, leaf)


@pytest.mark.parametrize("imagenet_stem", [False, True])
def test_initial_values_of_residual_networks(imagenet_stem):
    """3x3 stem: PyTorch's default. 7x7 stem: normal with variance 2/fan_out, as torchvision."""
    relu = activations.get("relu")
    model = cnn.ResNet(10, relu, (1, 1), bottleneck=True, imagenet_stem=imagenet_stem)
    variables = initial(model, (8, 8, 3))
    kernel = np.asarray(variables["params"]["layer2_0"]["conv3"]["kernel"]).ravel()
    convolution = torch.nn.Conv2d(128, 512, 1, bias=False)
    torch.manual_seed(0)
    if imagenet_stem:
        torch.nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    else:
        convolution.reset_parameters()
    assert stats.ks_2samp(kernel, convolution.weight.detach().numpy().ravel()).pvalue > 1e-3
    bound = 512**-0.5  # the last layer's, with either stem
    fc = variables["params"]["fc"]
    assert bound * 0.98 < np.abs(fc["kernel"]).max() <= bound and np.abs(fc["bias"]).max() <= bound
    norm = variables["params"]["layer1_0"]["bn3"]
    assert (np.asarray(norm["scale"]) == 1).all() and (np.asarray(norm["bias"]) == 0).all()
    statistics = variables["batch_stats"]["bn1"]
    assert (np.asarray(statistics["mean"]) == 0).all() and (np.asarray(statistics["var"]) == 1).all()


def test_running_statistics_move_as_pytorchs():
    """Momentum 0.1: the means agree; the variances but for PyTorch's factor n/(n-1) on the batch's own."""
    torch.manual_seed(0)
    theirs = reference.create("resnet18_cifar").double().train()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    numpy = lambda: {k: v.numpy().copy() for k, v in theirs.state_dict().items()}
    with jax.enable_x64(True):
        before = models.from_torch("resnet18_cifar", numpy())
        theirs(torch.tensor(np.moveaxis(x, -1, 1)))
        after = models.from_torch("resnet18_cifar", numpy())["batch_stats"]
        model = models.create("resnet18_cifar", num_classes=10)
        apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
        (logits, _), updates = apply(before, x)
    ours, seen = updates["batch_stats"], 0
    assert logits.shape == (4, 10)
    pixels = {"bn1": 64, "layer1": 64, "layer2": 16, "layer3": 4, "layer4": 1}
    for path, theirs_leaf in jax.tree_util.tree_leaves_with_path(after):
        names = [k.key for k in path]
        n = 4 * pixels[names[0].split("_")[0]]
        ours_leaf, old = ours, before["batch_stats"]
        for key in names:
            ours_leaf, old = ours_leaf[key], old[key]
        moved = (np.asarray(ours_leaf) - 0.9 * old) * (n / (n - 1) if names[-1] == "var" else 1)
        np.testing.assert_allclose(moved, theirs_leaf - 0.9 * old, rtol=1e-9, atol=1e-12, err_msg=str(names))
        assert np.abs(moved).max() > 1e-3
        seen += 1
    assert seen == 2 * 20  # mean and variance of the stem's, 16 in blocks and 3 in shortcuts
