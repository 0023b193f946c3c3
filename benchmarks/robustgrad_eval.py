"""Evaluating attributions, ours against PyTorch: random perturbation similarity and attribution manipulation.

    python -m benchmarks.robustgrad_eval [--cases "lenet rps" …] [--against eager compile] [--draws 10 …]

All sides measure cosine, Pearson, SSIM and MSE of gradient heat maps on the same 32x32 images, in the same batches:
"rps" over uniform draws, "aam" before and after an attack of Adam steps. A timed step is the whole of it, ours through
`masked_means` of the loop as an evaluation runs it, compiled before. "compile" puts the map of a batch and the gradient
of the attack's step through torch.compile. One step of each side is timed unless --steps says otherwise: the attack on
ResNet-18 takes minutes. Small: `--images 8 --attack_steps 2 --draws 2`. On a CPU ours runs over one device per core,
the images divided among them (`--devices 1` for one program over a batch).
"""

import dataclasses
import os
from collections.abc import Callable
from functools import partial

from benchmarks import alternate

BATCHES = {"lenet": 100, "resnet18_cifar": 20}  # most images at a time
RADIUS, STD = 8.0, 0.2
CORES = max(n for n in range(1, (os.cpu_count() or 1) + 1) if all(batch % n == 0 for batch in BATCHES.values()))
SIZES = {"images": 100, "attack_steps": 100, "draws": 10}
QUICK = {"attack_steps": 20}


def size(name: str) -> int:
    """One of `SIZES`, or the command line's."""
    return alternate.size(name, SIZES[name])


def examples():
    """Images, uint8 (n, 32, 32, 3), and labels (n,)."""
    import numpy as np

    rng, n = np.random.default_rng(0), size("images")
    return rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, n).astype(np.int32)


def jax_step(model: str, kind: str) -> Callable[[], None]:
    """One evaluation of ours, its result awaited."""
    import jax
    import jax.numpy as jnp

    from launch.data import Arrays, feed
    from launch.training import sharding
    from robustgrad_jax import models
    from robustgrad_jax.attributions import explainers
    from robustgrad_jax.measures import evaluation, means, under_attack

    def prepare(batch):
        batch = feed.materialize(batch, batch[sharding.RESIDENT])
        return (batch["image"].astype(jnp.float32) / 255 - 0.5) / STD, batch["label"]

    network, layout, images = models.create(model, num_classes=10), sharding.layout(), examples()
    variables = layout.place(jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    over_images = means.over_split(layout, Arrays(*images), BATCHES[model])
    subject = evaluation.Subject(network, prepare, explainers.Explainer("gradient"))
    compare = evaluation.Compare(("cosine", "pcc", "ssim", "mse"))

    std = (STD,) * 3
    perturbed = evaluation.random_perturbation_similarity(subject, std=std, radii=(RADIUS,), compare=compare, seed=0)
    clean = evaluation.clean(subject)
    attack = under_attack.Attack("aam", RADIUS, steps=1)
    attacked = under_attack.under_attack(subject, attack, compare=compare)

    def run(steps: int, draws: int) -> None:
        if kind == "rps":
            over_images(perturbed, variables, repeats=draws, once=clean)
            return
        stronger = dataclasses.replace(attack, steps=steps)
        moved = under_attack.attacked(subject, subject, stronger, std=std, seed=0)
        over_images(attacked, variables, once=moved, compile_once=False)

    run(steps=1, draws=1)  # compiles
    return partial(run, size("attack_steps"), size("draws"))


def torch_step(model: str, kind: str, *, compile: bool) -> Callable[[], None]:
    """The same in PyTorch."""
    import numpy as np
    import torch

    from benchmarks.pytorch import robustgrad, robustgrad_eval

    device = alternate.pytorch()
    torch.manual_seed(0)
    network = robustgrad.create(model).eval().to(device)
    images, labels = examples()
    x = torch.tensor((images.transpose(0, 3, 1, 2) / 255 - 0.5).astype(np.float32) / STD).to(device)
    y, window = torch.tensor(labels.astype(np.int64)).to(device), robustgrad_eval.gaussian_window().to(device)
    target = torch.ones(32, 32, device=device)
    target[5:-5, 5:-5] = 0
    radius = RADIUS / 255 / STD
    explain, gradient = robustgrad_eval.clean_map, robustgrad_eval.attack_gradient
    if compile:
        explain = torch.compile(robustgrad_eval.functional_map)
        gradient = torch.compile(robustgrad_eval.functional_attack_gradient)

    def evaluate(x, y, steps: int, draws: int) -> dict:
        if kind == "rps":
            return robustgrad_eval.random_perturbation_similarity(
                network, x, y, radius=radius, draws=draws, window=window, explain=explain
            )
        moved = robustgrad_eval.manipulate(network, x, y, target, radius=radius, steps=steps, gradient=gradient)
        before, after = (explain(network, images, y) for images in (x, moved))
        with torch.no_grad():
            network(moved), network(x)  # accuracy and change of the logits
        return robustgrad_eval.similarities(before, after, window)

    def run(steps: int, draws: int) -> None:
        batches = zip(x.split(BATCHES[model]), y.split(BATCHES[model]), strict=True)
        measured = [evaluate(*batch, steps, draws) for batch in batches]
        {k: torch.cat([batch[k] for batch in measured]).mean().item() for k in measured[0]}

    run(steps=1, draws=1)
    return partial(run, size("attack_steps"), size("draws"))


def sides(model: str, kind: str) -> alternate.Builders:
    return {
        "ours": partial(jax_step, model, kind),
        "eager": partial(torch_step, model, kind, compile=False),
        "compile": partial(torch_step, model, kind, compile=True),
    }


CASES = {f"{model} {kind}": sides(model, kind) for kind in ("rps", "aam") for model in BATCHES}

if __name__ == "__main__":
    alternate.main(
        "benchmarks.robustgrad_eval", __doc__, CASES, devices=CORES, steps=1, warmup=0, sizes=SIZES, quick=QUICK
    )
