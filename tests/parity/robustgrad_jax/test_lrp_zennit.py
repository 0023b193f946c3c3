"""Every composite of relevance propagation against zennit with its canonisers: LeNet and ResNets, float64."""

import functools
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustgrad_jax import lrp, models

torch = pytest.importorskip("torch")
from benchmarks.pytorch import robustgrad as reference  # noqa: E402

if importlib.util.find_spec("zennit") is None:
    pytest.skip("zennit is not installed (pip install --no-deps zennit)", allow_module_level=True)

TOLERANCE = 1e-6  # of the largest relevance
LOW, HIGH = np.array([-2.5, -3.0, -3.5]), np.array([2.5, 3.0, 3.5])  # per channel, of normalised pixels
# name, image side
MODELS = {"lenet": 16, "resnet18_cifar": 16, "resnet18": 32, "resnet50": 32}
# the larger networks, for their stem and blocks, with some of the composites
SOME = {"resnet18": ("epsilon", "epsilon_gamma_box"), "resnet50": ("epsilon_alpha2_beta1_flat",)}
CASES = [(model, composite) for model in MODELS for composite in SOME.get(model, lrp.NAMES)]


@functools.cache
def load_zennit():
    """zennit's parts, imported without torchvision.

    `import zennit` imports `zennit.torchvision`, which takes two classes from torchvision for canonisers that are
    not used here. Where torchvision is not installed, empty classes stand in for them during that import, and no
    longer: other libraries ask whether torchvision exists.
    """
    names = ("torchvision", "torchvision.models", "torchvision.models.resnet")
    stubs = {} if importlib.util.find_spec("torchvision") else {name: types.ModuleType(name) for name in names}
    for stub in stubs.values():
        stub.BasicBlock, stub.Bottleneck = type("BasicBlock", (), {}), type("Bottleneck", (), {})
    sys.modules.update(stubs)
    try:
        from zennit import attribution, canonizers, composites, core, layer, rules
        from zennit import types as kinds
    finally:
        for name in stubs:
            del sys.modules[name]
    return types.SimpleNamespace(
        attribution=attribution,
        canonizers=canonizers,
        composites=composites,
        core=core,
        layer=layer,
        rules=rules,
        types=kinds,
    )


def canonisers():
    """Batch norm merged; the residual sum and the mean over pixels as modules, which zennit's rules can hook into."""
    zennit = load_zennit()

    def block_forward(self, x):
        out = x
        for i in range(1, self.depth + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < self.depth:
                out = self.act(out)
        shortcut = getattr(self, self.projection)(x)
        return self.act(self.residual_sum(torch.stack([shortcut, out], dim=-1)))

    def network_forward(self, x):
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for k in range(1, 5):
            x = getattr(self, f"layer{k}")(x)
        return getattr(self, self.head)(self.average_pool(x).flatten(1))

    def attributes(name, module):
        if isinstance(module, reference.ResidualBlock):
            return {"forward": block_forward.__get__(module), "residual_sum": zennit.layer.Sum()}
        if isinstance(module, reference.ResNet):
            pool = torch.nn.AdaptiveAvgPool2d(1)
            return {"forward": network_forward.__get__(module), "average_pool": pool}
        return None

    class Merge(zennit.canonizers.SequentialMergeBatchNorm):
        """Leaves the identity behind; zennit's own leaves 1 / sqrt(1 + 1e-5), which is off by 5e-6 for every layer."""

        def register(self, linears, batch_norm):
            super().register(linears, batch_norm)
            self.eps, batch_norm.eps = batch_norm.eps, 1e-30

        def remove(self):
            super().remove()
            self.batch_norm.eps = self.eps

    return [zennit.canonizers.CompositeCanonizer([Merge(), zennit.canonizers.AttributeCanonizer(attributes)])]


def plain_gamma(gamma):
    """The rule of the published code, from zennit's general hook; its own gamma is the generalised one."""
    return load_zennit().core.BasicHook(
        param_modifiers=[lambda parameter, _: parameter + gamma * parameter.clamp(min=0)]
    )


def their_composite(name):
    """zennit's own, by its name; those that it has no name for, from its parts."""
    zennit = load_zennit()
    bounds = {key: torch.tensor(b).reshape(1, 3, 1, 1) for key, b in (("low", LOW), ("high", HIGH))}
    if name in zennit.composites.COMPOSITES:
        options = bounds if name in lrp.BOXES else {}
        return zennit.composites.COMPOSITES[name](canonizers=canonisers(), **options)
    layer_map = [*zennit.composites.layer_map_base(), (zennit.types.Linear, zennit.rules.Epsilon())]
    if name in lrp.BOXES:
        conv = zennit.rules.ZPlus() if name == "epsilon_plus_box" else plain_gamma(0.25)
        layer_map.insert(0, (zennit.types.Convolution, conv))
        first_map = [(zennit.types.Convolution, zennit.rules.ZBox(**bounds))]
        return zennit.composites.SpecialFirstLayerMapComposite(layer_map, first_map, canonizers=canonisers())
    if name == "epsilon":
        return zennit.composites.LayerMapComposite(layer_map, canonizers=canonisers())
    assert name == "epsilon_flat"
    first_map = [(zennit.types.Linear, zennit.rules.Flat())]
    return zennit.composites.SpecialFirstLayerMapComposite(layer_map, first_map, canonizers=canonisers())


def their_relevance(model, x, y, name):
    chosen = torch.nn.functional.one_hot(y, 7)
    x = x.clone().requires_grad_()
    with load_zennit().attribution.Gradient(model, their_composite(name)) as attributor:
        logits, relevance = attributor(x, lambda logits: logits * chosen)
    return logits.detach().numpy(), np.moveaxis(relevance.detach().numpy(), 1, -1)


@functools.cache
def pair(name, activation):
    """The PyTorch network, with every statistic and bias unlike its initial value, and an input."""
    torch.manual_seed(0)
    side = MODELS[name]
    theirs = reference.create(name, num_classes=7, image_size=side, activation=activation).double().eval()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if "running_var" in key:
                value.copy_(0.2 + 0.2 * torch.rand_like(value))  # about the convolutions' own: no ReLU layer is dead
            elif "running_mean" in key or "bias" in key:
                value.copy_(0.1 * torch.randn_like(value))
            elif value.ndim == 1 and "weight" in key:
                value.copy_(torch.rand_like(value) + 0.5)
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).clip(-2.4, 2.4)
    return theirs, x, np.array([5, 2])


def check(name, composite, activation):
    theirs, x, y = pair(name, activation)
    logits, wanted = their_relevance(theirs, torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(y), composite)
    options = {"low": LOW, "high": HIGH} if composite in lrp.BOXES else {}
    with jax.enable_x64(True):
        model = models.create(name, num_classes=7, activation=activation)
        variables = models.from_torch(name, {k: v.numpy() for k, v in theirs.state_dict().items()})
        run = jax.jit(lambda v, x: (model.apply(v, x)[0], lrp.relevance(model, v, x, y, composite, **options)))
        # as numpy: outside of this block, jax would compute with them in float32
        ours_logits, ours = map(np.asarray, run(variables, jnp.asarray(x)))
    np.testing.assert_allclose(ours_logits, logits, rtol=1e-8, atol=1e-8)
    scale = np.abs(wanted).max(axis=(1, 2, 3), keepdims=True)
    assert (scale > 0).all()
    assert (np.abs(ours - wanted) / scale).max() < TOLERANCE


@pytest.mark.parametrize(("name", "composite"), CASES)
def test_composites(name, composite):
    check(name, composite, "relu")


def test_softplus_networks():
    check("resnet18_cifar", "epsilon_alpha2_beta1", "softplus")


def test_every_composite_of_zennits_that_is_relevance_propagation_is_there():
    gradients = {"deconvnet", "guided_backprop", "excitation_backprop", "beta_smooth"}
    assert set(load_zennit().composites.COMPOSITES) - gradients <= set(lrp.NAMES)
