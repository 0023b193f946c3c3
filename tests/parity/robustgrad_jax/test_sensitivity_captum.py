"""Max-sensitivity and infidelity against captum.metrics: same LeNet, same draws, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustgrad_jax import callables, models, sensitivity
from robustgrad_jax.gradients import Ball, Draws

torch = pytest.importorskip("torch")
captum_metrics = pytest.importorskip("captum.metrics")
from captum.attr import Saliency  # noqa: E402

from benchmarks.pytorch import robustgrad as reference  # noqa: E402

SAMPLES = 6


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    theirs = reference.create("lenet", num_classes=5, in_channels=3, image_size=8).double().eval()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 8, 8, 3)), rng.integers(0, 5, 3)
    with jax.enable_x64(True):
        variables = models.from_torch("lenet", {k: v.numpy() for k, v in theirs.state_dict().items()})
        variables = jax.tree.map(jnp.asarray, variables)
        logits_fn = callables.logits_of(models.create("lenet", num_classes=5), variables)
        options = {"draws": Draws(jax.random.key(1), jnp.arange(3)), "samples": SAMPLES}
        yield theirs, logits_fn, jnp.asarray(x), jnp.asarray(y), options


def gradient(logits_fn, x, y):
    return jax.grad(lambda x: jnp.take_along_axis(logits_fn(x), y[:, None], 1).sum())(x)


def to_torch(a):
    a = np.array(a)
    return torch.tensor(np.ascontiguousarray(np.moveaxis(a, -1, 1)) if a.ndim == 4 else a)


def repeated(x, options, radius, noise):
    """All draws as captum lays them out: an example's draws one after the other, (3 · samples, c, h, w)."""
    drawn = [sensitivity.perturbation(options["draws"], j, x, Ball(radius), noise) for j in range(SAMPLES)]
    return to_torch(np.stack(drawn, axis=1).reshape(-1, *x.shape[1:]))


@pytest.mark.parametrize("radius", [0.02, 0.5])
def test_max_sensitivity(case, radius):
    theirs, logits_fn, x, y, options = case
    change = repeated(x, options, radius, "uniform")

    def saliency(inputs, target):
        """captum hands over a tuple for the clean images, and wants one back; a tensor for the others."""
        if isinstance(inputs, tuple):
            return (saliency(inputs[0], target),)
        return Saliency(theirs).attribute(inputs.requires_grad_(), target=target, abs=False).contiguous()

    expected = captum_metrics.sensitivity_max(
        saliency,
        to_torch(x),
        perturb_func=lambda inputs, _: inputs + change,
        perturb_radius=radius,
        n_perturb_samples=SAMPLES,
        target=to_torch(y),
    )
    ours = sensitivity.max_sensitivity(Partial(gradient, logits_fn), x, y, Ball(radius), chunk=4, **options)
    assert np.all(np.asarray(ours) > 1e-3)
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-7)


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity(case, normalize):
    theirs, logits_fn, x, y, options = case
    phi = gradient(logits_fn, x, y) * (1 + jnp.arange(3))  # not quite the gradient
    change = repeated(x, options, 0.3, "gaussian")
    expected = captum_metrics.infidelity(
        theirs,
        lambda inputs: (change, inputs - change),
        to_torch(x),
        to_torch(phi),
        target=to_torch(y),
        n_perturb_samples=SAMPLES,
        normalize=normalize,
    )
    ours = sensitivity.infidelity(logits_fn, phi, x, y, Ball(0.3), normalize=normalize, **options)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-7)
