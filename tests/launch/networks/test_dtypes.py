"""Networks that compute in bfloat16: what stays float32, and how near they are to those that compute in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.networks import dtypes
from launch.networks.cnn import LeNet, ResNet
from launch.stages import SettingError, walk
from robustgrad_jax import attributions, models
from robustgrad_jax.stages.inputs import Architecture
from rtd_jax import experiment, phi
from rtd_jax.stages.phi import PhiTraining
from tests.rtd_jax import tiny
from tests.tldr_jax.small import CONFIG, changed
from tldr_jax import experiment as tldr_experiment
from tldr_jax.classifier import backbones
from tldr_jax.classifier.cnn import SmallCnn
from tldr_jax.classifier.vit import ViT
from tldr_jax.stages.images import Features

CLASSES, SHAPE = 5, (16, 16, 3)
NETWORKS = {
    "lenet": lambda dtype: LeNet(CLASSES, jax.nn.softplus, dtype),
    "basic": lambda dtype: ResNet(CLASSES, jax.nn.relu, (1, 1), False, False, dtype),
    "bottleneck": lambda dtype: ResNet(CLASSES, jax.nn.relu, (1, 1), True, True, dtype),
    "small_cnn": lambda dtype: SmallCnn(CLASSES, dtype=dtype),
    "vit": lambda dtype: ViT(CLASSES, patch=8, width=32, depth=2, heads=2, dtype=dtype),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """Both networks, variables, images and labels."""
    plain, half = (NETWORKS[request.param](dtypes.get(name)) for name in dtypes.DTYPES)
    x = jax.random.normal(jax.random.key(0), (16, *SHAPE))
    y = jax.random.randint(jax.random.key(1), (16,), 0, CLASSES)
    variables = jax.jit(half.init)(jax.random.key(2), x)
    if request.param == "vit":  # its class token is zero at first, in which bfloat16 and float32 agree
        variables = jax.tree.map(lambda a: a + 0.02 * jax.random.normal(jax.random.key(3), a.shape), variables)
    return plain, half, variables, x, y


def types(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def trained(model, variables, x, y):
    """Loss in training with the new batch statistics."""
    (logits, _), changed = model.apply(variables, x, train=True, mutable=["batch_stats"])
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()
    return loss, changed


def test_logits_are_near_those_of_float32_and_float32_themselves(case):
    plain, half, variables, x, _ = case
    (exact, _), (logits, out) = (jax.jit(model.apply)(variables, x) for model in (plain, half))
    assert types(variables) == types(logits) == {"float32"}
    assert "bfloat16" in types(out)
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.03


def test_gradients_and_statistics_are_float32_and_a_step_reduces_the_loss(case):
    plain, half, variables, x, y = case

    @jax.jit
    def step(variables):
        objective = lambda params, x: trained(half, variables | {"params": params}, x, y)
        slope = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (loss, changed), (gradient, to_images) = slope(variables["params"], x)
        params = jax.tree.map(lambda p, g: p - 0.02 * g, variables["params"], gradient)
        return loss, variables | changed | {"params": params}, (gradient, to_images)

    loss, moved, gradients = step(variables)
    assert types(gradients) == types(moved) == {"float32"} and loss.dtype == jnp.float32
    assert trained(half, moved, x, y)[0] < loss
    _, exact = jax.jit(lambda v: trained(plain, v, x, y))(variables)
    for found, expected in zip(
        jax.tree.leaves(moved.get("batch_stats")), jax.tree.leaves(exact.get("batch_stats")), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.01)


def test_input_gradients_can_be_trained_through_in_bfloat16():
    """Asked for, second order works too: finite and float32."""
    half = NETWORKS["lenet"](dtypes.get("bfloat16"))
    x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    variables = half.init(jax.random.key(2), x)
    penalty = lambda v: jnp.square(jax.grad(lambda x: half.apply(v, x)[0].sum())(x)).sum()
    gradient = jax.jit(jax.grad(penalty))(variables)
    assert types(gradient) == {"float32"} and np.abs(gradient["params"]["conv11"]["kernel"]).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["gradient", "grad_cam"])
def test_attributions_are_float32_and_near_those_of_float32(name):
    x, y = jax.random.normal(jax.random.key(0), (4, *SHAPE)), jnp.arange(4)
    plain, half = (models.create("lenet", num_classes=4, activation="relu", dtype=kind) for kind in dtypes.DTYPES)
    variables = plain.init(jax.random.key(2), x)
    options = {"layer": "conv22"} if name == "grad_cam" else {}
    exact, found = (attributions.create(name, model, variables, **options)(x, y) for model in (plain, half))
    assert found.dtype == jnp.float32
    cosine = (exact * found).sum() / jnp.sqrt(jnp.square(exact).sum() * jnp.square(found).sum())
    assert 0.97 < cosine < 0.999999


@pytest.mark.parametrize("kind", phi.KINDS)
def test_phi_gives_tokens_in_float32(kind):
    exact = phi.init(kind, 16, 12, jax.random.key(0))
    half = phi.Network(exact.module.clone(dtype=jnp.dtype("bfloat16")), exact.params)
    x = jax.random.normal(jax.random.key(1), (8, 16))
    assert half(x).dtype == jnp.float32
    error = np.abs(half(x) - exact(x)).max() / np.abs(exact(x)).max()
    assert 1e-5 < error < 0.03
    loss = lambda params: jnp.square(phi.Network(half.module, params)(x) - 1).mean()
    before, gradient = jax.jit(jax.value_and_grad(loss))(exact.params)
    assert types(gradient) == {"float32"}
    assert loss(jax.tree.map(lambda p, g: p - 0.05 * g, exact.params, gradient)) < before


def test_unknown_names_are_refused_with_the_valid_ones():
    valid = r"'float16'.*'float32', 'bfloat16'"
    with pytest.raises(ValueError, match=valid):
        models.create("lenet", num_classes=2, dtype="float16")
    with pytest.raises(ValueError, match=valid):
        backbones.create("small_cnn", 2, "float16")
    for make in (lambda: Architecture(dtype="float16"), lambda: backbones.Backbone("small_cnn", 32, dtype="float16")):
        with pytest.raises(SettingError, match=r"dtype='float16'.*'float32'.*'bfloat16'"):
            make()
    with pytest.raises(SettingError, match=r"phi\.dtype='float16'.*'bfloat16'"):
        experiment.plan(tiny.config(phi__dtype="float16"))


def test_names_reach_the_networks():
    half = jnp.dtype("bfloat16")
    assert models.create("lenet", num_classes=2, dtype="bfloat16").dtype == half
    assert models.create("resnet18", num_classes=2, dtype="bfloat16").dtype == half
    assert all(backbones.create(name, 2, "bfloat16").dtype == half for name in backbones.KINDS)
    assert backbones.Backbone("small_cnn", 32, dtype="bfloat16").create(2).dtype == half
    network = experiment.plan(tiny.config(phi__dtype="bfloat16")).phi
    assert isinstance(network, PhiTraining) and network.module(12).dtype == half
    (features,) = {
        stage
        for stage in walk(tldr_experiment.plan(changed(CONFIG, {"embedding.dtype": "bfloat16"})))
        if isinstance(stage, Features) and stage.images.split == "test"
    }
    assert features.backbone.create(2).dtype == half and features.erm.backbone.create(2).dtype is None
