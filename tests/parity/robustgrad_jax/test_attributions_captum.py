"""Attributions against captum (or, where captum draws by itself, a PyTorch loop): LeNet and ResNet-18, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.networks.cnn import ResNet
from robustgrad_jax import attributions, models

torch = pytest.importorskip("torch")
captum = pytest.importorskip("captum.attr")
from benchmarks.pytorch import robustgrad as reference  # noqa: E402

TOLERANCE = 1e-7  # relative to the largest value of a map; PyTorch's softplus is x from βx = 20 on
INTEGRAL_TOLERANCE = 1e-6  # captum's quadrature weights are in float32
N, SIDE, CLASSES = 2, 16, 5
CASES = (("lenet", "softplus"), ("lenet", "relu"), ("resnet18_cifar", "relu"))
Y = np.array([1, 4])


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    """The same weights and data on both sides, in evaluation mode."""
    name, activation = request.param
    torch.manual_seed(0)
    options = {"num_classes": CLASSES, "activation": activation}
    theirs = reference.create(name, image_size=SIDE, **options).double().eval()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if "running" in key or ("bn" in key and value.is_floating_point()):
                value.copy_(torch.rand_like(value) + 0.5)
    x = np.random.default_rng(0).normal(size=(N, SIDE, SIDE, 3))
    with jax.enable_x64(True):
        variables = models.from_torch(name, {k: v.numpy() for k, v in theirs.state_dict().items()})
        yield theirs, models.create(name, **options), variables, x


def jit(f):
    # Tests run once what they compile: little optimisation is the faster bargain.
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def to_torch(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, -3))


def close(ours, theirs, tolerance=TOLERANCE, alive=1.0):
    """Maps agree, image by image, relative to the image's largest value; the share `alive` of them is not all zeros."""
    theirs = np.moveaxis(theirs.detach().numpy(), 1, -1)
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max((1, 2, 3), keepdims=True)
    assert (largest > 0).mean() >= alive
    error = (np.abs(np.asarray(ours) - theirs) / np.where(largest > 0, largest, 1)).max()
    assert error < tolerance, error


def ours(case, name, **options):
    _, model, variables, x = case
    return jit(attributions.create(name, model, variables, **options))(x, Y)


def target():
    return torch.tensor(Y)


def test_gradient_and_input_x_gradient(case):
    theirs, _, _, x = case
    close(ours(case, "gradient"), captum.Saliency(theirs).attribute(to_torch(x), target(), abs=False))
    close(ours(case, "input_x_gradient"), captum.InputXGradient(theirs).attribute(to_torch(x), target()))


@pytest.mark.parametrize(
    "rule, method", [("gausslegendre", "gausslegendre"), ("midpoint", "riemann_middle"), ("right", "riemann_right")]
)
def test_integrated_gradients(case, rule, method):
    theirs, model, _, x = case
    if isinstance(model, ResNet) and rule != "right":
        pytest.skip("the rules do not depend on the network")
    baseline = 0.3 * np.random.default_rng(1).normal(size=x.shape)
    integrated = captum.IntegratedGradients(theirs)
    wanted = integrated.attribute(to_torch(x), to_torch(baseline), target(), n_steps=5, method=method)
    found = ours(case, "integrated_gradients", steps=5, baseline=baseline, rule=rule, chunk=3)
    close(found, wanted, INTEGRAL_TOLERANCE)


def test_integrated_gradients_by_default(case):
    """captum's default: 50 steps of Gauss-Legendre from a baseline of zeros."""
    theirs, model, _, x = case
    if isinstance(model, ResNet):
        pytest.skip("fifty steps of ResNet-18 show nothing that fifty of LeNet do not")
    wanted = captum.IntegratedGradients(theirs).attribute(to_torch(x), target=target())
    close(ours(case, "integrated_gradients", chunk=50), wanted, INTEGRAL_TOLERANCE)


def test_integrated_gradients_as_published(case):
    """Both ends of the path among the points, their sum over the number of steps, no factor x: by autograd."""
    theirs, model, _, x = case
    if not isinstance(model, ResNet):
        pytest.skip("LeNet's maxima tie at the zero image, where the path begins: rounding picks the winners")
    steps, wanted = 4, 0
    for k in range(steps + 1):
        point = (to_torch(x) * k / steps).requires_grad_()
        logits = theirs(point).gather(1, target()[:, None]).sum()
        wanted = wanted + torch.autograd.grad(logits, point)[0] / steps
    close(ours(case, "integrated_gradients_published", steps=steps, chunk=2), wanted)


def test_smoothgrad_is_noise_tunnel(case, monkeypatch):
    """NoiseTunnel around captum's gradient, given the draws."""
    theirs, _, _, x = case
    noise = 0.2 * np.random.default_rng(1).normal(size=(3, *x.shape))
    # NoiseTunnel draws once for x repeated: an image's samples follow one another
    drawn = to_torch(noise.swapaxes(0, 1).reshape(-1, *x.shape[1:]))

    def normal(mean, std):
        assert mean == 0 and std.shape == drawn.shape
        return drawn

    monkeypatch.setattr(torch, "normal", normal)
    tunnel = captum.NoiseTunnel(captum.Saliency(theirs))
    wanted = tunnel.attribute(to_torch(x), nt_type="smoothgrad", nt_samples=3, target=target(), abs=False)
    close(ours(case, "smoothgrad", noise=noise, chunk=2), wanted)


def test_expected_gradients(case):
    """GradientShap of each draw by itself: one baseline and one place on the path an image, in PyTorch."""
    theirs, _, _, x = case
    references = np.random.default_rng(1).normal(size=(4, *x.shape[1:]))
    key, slots, samples = jax.random.key(3), jnp.array([5, 9]), 3
    index, alpha = attributions.draw_paths(key, slots, jnp.arange(samples), len(references), jnp.float64)
    wanted = 0
    for i, a in zip(np.asarray(index), np.asarray(alpha), strict=True):
        away = x - references[i]
        points = references[i] + a[:, None, None, None] * away
        wanted += to_torch(away) * captum.Saliency(theirs).attribute(to_torch(points), target(), abs=False) / samples
    _, model, variables, _ = case
    attribution_fn = attributions.create(
        "expected_gradients", model, variables, references=references, key=key, samples=samples, chunk=2
    )
    close(jit(attribution_fn)(x, Y, slots), wanted)


@pytest.mark.parametrize("name, method", [("guided_backprop", "GuidedBackprop"), ("deconvnet", "Deconvolution")])
@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_modified_backward_passes(case, name, method):
    """captum for ReLU; for softplus, which captum leaves alone, the same two rules as PyTorch hooks."""
    theirs, model, _, x = case
    if isinstance(theirs.act, torch.nn.ReLU):
        wanted = getattr(captum, method)(theirs).attribute(to_torch(x), target())
    else:
        wanted = by_autograd_function(theirs, x, guided=name == "guided_backprop")
    close(ours(case, name), wanted)


def by_autograd_function(theirs, x, *, guided):
    class Modified(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return torch.nn.functional.softplus(v, beta=3.0)

        @staticmethod
        def backward(ctx, g):
            (v,) = ctx.saved_tensors
            return g.clamp(min=0) * (torch.sigmoid(3.0 * v) if guided else 1.0)

    hook = theirs.act.register_forward_hook(lambda module, inputs, output: Modified.apply(inputs[0]))
    xt = to_torch(x).requires_grad_()
    for module in theirs.modules():
        if hasattr(module, "act"):
            assert module.act is theirs.act  # one module for all, or the hook would miss some
    score = theirs(xt).gather(1, target()[:, None]).sum()
    hook.remove()
    return torch.autograd.grad(score, xt)[0]


@pytest.mark.parametrize("resize", [False, True])
def test_grad_cam(case, resize):
    """All classes at once; ReLU leaves some of the maps empty."""
    theirs, model, variables, x = case
    every = np.repeat(np.arange(CLASSES), N)
    repeated = to_torch(np.tile(x, (CLASSES, 1, 1, 1)))
    if isinstance(model, ResNet):
        layer, torch_layer = "layer2_0", theirs.layer2[0]
    else:
        theirs = cut_after_pool2(theirs)
        layer, torch_layer = "pool2", theirs[0]
    cam = captum.LayerGradCam(theirs, torch_layer)
    wanted = cam.attribute(repeated, torch.tensor(every), relu_attributions=True)
    if resize:
        wanted = captum.LayerAttribution.interpolate(wanted, (SIDE, SIDE), "bilinear")
    attribution_fn = attributions.create("grad_cam", model, variables, layer=layer, resize=resize)
    found = jit(jax.vmap(attribution_fn, (None, 0)))(x, jnp.asarray(every.reshape(CLASSES, N)))
    assert (found.shape[2] == SIDE) == resize
    close(found.reshape(-1, *found.shape[2:]), wanted, alive=0.3)


def cut_after_pool2(theirs):
    """LeNet as two modules: captum takes layers that are modules, and pooling is none."""
    F = torch.nn.functional

    class Convolutions(torch.nn.Module):
        def forward(self, x):
            x = F.max_pool2d(theirs.act(theirs.conv12(theirs.act(theirs.conv11(x)))), 2)
            return F.max_pool2d(theirs.act(theirs.conv22(theirs.act(theirs.conv21(x)))), 2)

    class Head(torch.nn.Module):
        def forward(self, x):
            return theirs.fc2(theirs.act(theirs.fc1(x.flatten(1))))

    return torch.nn.Sequential(Convolutions(), Head())
