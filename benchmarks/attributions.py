"""Attributions of 32x32 images, ours against captum on PyTorch: LeNet with ReLU, as captum knows it.

    python -m benchmarks.attributions [--cases gradient integrated_gradients …] [--images 32] [--device cuda]

The same image batch and random weights of the same shapes; integrated gradients of 50 Gauss-Legendre steps and
SmoothGrad of 50 draws, captum's by its own defaults of how many images go through at once.
"""

from collections.abc import Callable
from functools import partial

from benchmarks import alternate

SIZES = {"images": 32}
SAMPLES = 50
CASES_OF = ("gradient", "integrated_gradients", "smoothgrad", "guided_backprop")


def examples():
    """Normalised images (n, 32, 32, 3) and classes (n,)."""
    import numpy as np

    rng, n = np.random.default_rng(0), alternate.size("images", SIZES["images"])
    return rng.normal(size=(n, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, n)


def jax_step(name: str) -> Callable[[], object]:
    """One batch of ours, its result awaited."""
    import jax
    import numpy as np

    from robustgrad_jax import attributions, models

    x, y = examples()
    network = models.create("lenet", num_classes=10, activation="relu")
    variables = jax.jit(network.init)(jax.random.key(0), x[:1])
    counts = {"integrated_gradients": {"steps": SAMPLES}, "smoothgrad": {"samples": SAMPLES, "key": jax.random.key(1)}}
    options = counts.get(name, {})
    explain = jax.jit(lambda variables, x, y: attributions.create(name, network, variables, **options)(x, y))
    x, y = jax.device_put((x, y.astype(np.int32)))
    return lambda: jax.block_until_ready(explain(variables, x, y))


def captum_step(name: str) -> Callable[[], object]:
    """The same by captum."""
    import numpy as np
    import torch

    try:
        from captum import attr
    except ImportError as error:
        raise alternate.Unavailable("not installed: pip install captum") from error
    from benchmarks.pytorch import robustgrad

    device = alternate.pytorch()
    torch.manual_seed(0)
    network = robustgrad.create("lenet", activation="relu").eval().to(device)
    images, classes = examples()
    x, y = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device), torch.tensor(classes).to(device)
    saliency = attr.Saliency(network)
    tunnel = partial(attr.NoiseTunnel(saliency).attribute, nt_type="smoothgrad", nt_samples=SAMPLES, stdevs=0.15)
    return {
        "gradient": partial(saliency.attribute, x, target=y, abs=False),
        "integrated_gradients": partial(attr.IntegratedGradients(network).attribute, x, target=y, n_steps=SAMPLES),
        "smoothgrad": partial(tunnel, x, target=y, abs=False),
        "guided_backprop": partial(attr.GuidedBackprop(network).attribute, x, target=y),
    }[name]


CASES = {name: {"ours": partial(jax_step, name), "captum": partial(captum_step, name)} for name in CASES_OF}

if __name__ == "__main__":
    alternate.main("benchmarks.attributions", __doc__, CASES, devices=1, sizes=SIZES)
