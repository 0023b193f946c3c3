"""The two theorems of Joo et al. 2023, on trained networks.

    python -m robustgrad_jax.studies.theorems DIR --out FOLDER

DIR is a finished sweep, such as `configs/robustgrad/cifar10_comparison.py`; of each method the first run is taken.

rescaling.png   A network whose logits are c times as large has the same normalised attributions. With weights times
                c^(1/L) in each of L layers, and biases to match, a ReLU network is one: the ℓ2 criterion is c² times as
                large, the cosine one the same. The networks are trained with softplus, which is not homogeneous: their
                weights are taken with ReLU for the theorem, and with softplus beside it.
bound.png       The cosine distance of ∇g(x) and ∇g(x + z), z gaussian, against ‖H‖ and against ‖Hz‖/‖∇g(x + z)‖, which
                bounds it: image by image, over all methods. A small ‖H‖ alone buys no small distance where ‖∇g‖ is as
                small. Printed with it: rank correlations over all images, and within each method.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from launch.data import feed
from launch.data import splits as data_splits
from launch.processes import commands
from launch.reports import drawing
from launch.reports import runs as reported
from launch.training import keys, sharding
from robustgrad_jax import figures, models, training
from robustgrad_jax.gradients import draw_noise
from robustgrad_jax.measures import evaluation
from robustgrad_jax.measures.evaluation import Compare
from robustgrad_jax.regularizers import alignment
from robustgrad_jax.runs import TrainedNetwork, load_run

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
RADIUS, DRAWS = 4.0, 10  # of the noise, in 1/255 of the pixel range, and how many an image
_METHOD = "regularizer.name"


# -- rescaling ------------------------------------------------------------------------------------------------------


def rescaled(params: Mapping[str, Any], order: Sequence[str], factor: float) -> dict[str, Any]:
    """Parameters of a chain of layers whose logits are `factor` times as large if its activation is homogeneous.

    Args:
      params: of each layer {"kernel", "bias"}.
      order: the layers' names, from input to output.
      factor: c > 0.
    """
    scale = factor ** (1 / len(order))
    layer = lambda depth, values: {"kernel": scale * values["kernel"], "bias": scale**depth * values["bias"]}
    return {name: layer(depth, params[name]) for depth, name in enumerate(order, 1)}


def criteria(network: TrainedNetwork, batch: tuple[jax.Array, ...], *, activation: str) -> dict[str, Any]:
    """The ℓ2 and the cosine criterion of a LeNet's weights at every factor, (factors,) each.

    Args:
      network: a LeNet.
      batch: x (n, h, w, c), y (n,), and noise of x's shape.
      activation: with which its weights are taken.
    """
    x, y, noise = batch
    beta = network.config.model.beta
    model = models.create("lenet", num_classes=len(network.classes), beta=beta, activation=activation)
    logits_fn = lambda params, x: (model.apply({"params": params}, x)[0], None)
    measure = jax.jit(lambda params: alignment.gradient_alignment(logits_fn, params, x, y, noise)[:2])
    order = sorted(network.variables["params"])  # conv11, conv12, conv21, conv22, fc1, fc2: alphabetical
    found = [measure(rescaled(network.variables["params"], order, factor)) for factor in FACTORS]
    l2, cosine = np.array(found, np.float64).T
    return {"l2": l2, "cosine": cosine}


# -- the bound ------------------------------------------------------------------------------------------------------


def bounds(network: TrainedNetwork, batch: Mapping[str, Any], std: Sequence[float]) -> dict[str, np.ndarray]:
    """Of every image of a batch the quantities of the upper-bound study, means over the draws, (n,) each."""
    prepare = training.Normalized(network.mean, network.std)
    measure = evaluation.upper_bound(network.model, prepare, std=std, radius=RADIUS, compare=Compare(()), seed=0)
    draw = jax.jit(lambda draw: measure(network.variables, batch, draw))
    drawn = [draw(number) for number in range(DRAWS)]
    means = {name: jnp.mean(jnp.stack([values[name] for values in drawn]), axis=0) for name in drawn[0]}
    return {k: np.asarray(v) for k, v in evaluation.hutchinson(means, radius=RADIUS, draws=DRAWS).items()}


def correlations(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of the cosine distance with ‖H‖ and with the bound: of each method, and over all."""
    pairs = {"‖H‖": "hessian_frobenius", "‖Hz‖/‖∇g‖": "bound"}
    pooled = {name: np.concatenate([values[name] for values in found.values()]) for name in next(iter(found.values()))}
    rank = lambda values, name: float(np.asarray(stats.spearmanr(values["cosine_distance"], values[name]))[0])
    groups = {**found, "all": pooled}
    return {group: {title: rank(values, name) for title, name in pairs.items()} for group, values in groups.items()}


def scatter(path: Path, found: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draw the cosine distance against ‖H‖ and the bound, a colour for each method."""
    figure = drawing.figure(8.6, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"hessian_frobenius": "‖H‖, Frobenius norm of the Hessian", "bound": "‖Hz‖ / ‖∇g(x + z)‖"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for colour, (method, values) in zip(figures.COLOURS * 2, found.items(), strict=False):
            panel.scatter(values[name], values["cosine_distance"], s=5, alpha=0.5, color=colour, label=method, lw=0)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(title, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel("cosine distance of ∇g(x) and ∇g(x + z)", fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=9, fontsize=7, frameon=False, markerscale=2)
    drawing.write(path, figure)


# -- the command ----------------------------------------------------------------------------------------------------


def networks(folder: Path) -> dict[str, TrainedNetwork]:
    """The first finished run of each method in a sweep's folder, by the method's name.

    Raises:
      ReportError: there is none.
    """
    first: dict[str, TrainedNetwork] = {}
    for run in (run for study in reported.read(folder) for run in study.compared):
        if run.status == reported.FINISHED and run.config.get(_METHOD) not in (None, *first):
            first[run.config[_METHOD]] = load_run(run.path)
    if not first:
        raise reported.ReportError(f"no finished run in {folder}")
    return first


def draw_rescaling(path: Path, found: Mapping[str, TrainedNetwork], batch: tuple[jax.Array, ...]) -> None:
    """Draw both criteria over the factor, relative to factor 1, of every network with ReLU and with softplus."""
    lines: dict[str, list[figures.Line]] = {}
    for activation in ("relu", "softplus"):
        for method, network in found.items():
            values = criteria(network, batch, activation=activation)
            for name, title in (("l2", "ℓ2"), ("cosine", "cosine")):
                relative = values[name] / values[name][FACTORS.index(1.0)]
                line = figures.Line(method, np.log10(FACTORS), np.log10(relative))
                lines.setdefault(f"{title} criterion, {activation}", []).append(line)
                print(f"{activation}, {method}, {title}: {', '.join(f'{value:.4g}' for value in relative)}")
    figures.panels(path, lines, x_label="log10 of the factor c", y_label="log10, relative to c = 1")


@commands.ending()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="the folder of a finished sweep")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the figures")
    parser.add_argument("--images", type=int, default=200, help="how many test images")
    options = parser.parse_args(argv)
    found = networks(options.dir)
    first = next(iter(found.values()))
    test = data_splits.subset(first.splits().test, seed=0, examples=options.images, name="images")
    batch = next(iter(feed.eval_batches(test, batch_size=len(test))))
    batch = batch | {sharding.RESIDENT: jax.tree.map(jnp.asarray, feed.resident(test))}
    x, y = training.Normalized(first.mean, first.std)(batch)
    radius = RADIUS / (255 * jnp.asarray(first.std, x.dtype))
    slots = jnp.asarray(batch["slot"])
    noise = draw_noise("uniform", keys.stream(0, "rescaling"), slots, x.shape, radius, x.dtype)
    options.out.mkdir(parents=True, exist_ok=True)
    draw_rescaling(options.out / "rescaling.png", found, (x, y, noise))
    study = {method: bounds(network, batch, first.std) for method, network in found.items()}
    scatter(options.out / "bound.png", study)
    print("\n| method | ‖H‖ | ‖∇g‖ | cosine distance | rank correlation with ‖H‖ | with ‖Hz‖/‖∇g‖ |")
    print("|---|---:|---:|---:|---:|---:|")
    mean = lambda values, name: f"{values[name].mean():.3g}"
    for method, ranks in correlations(study).items():
        names = ("hessian_frobenius", "gradient_norm", "cosine_distance")
        cells = [mean(study[method], name) if method in study else "" for name in names]
        print(f"| {' | '.join([method, *cells, *(f'{rank:.2f}' for rank in ranks.values())])} |")


if __name__ == "__main__":
    main()
