"""Measures on the test set, example by example: accuracy, attributions under perturbation, curves, the bound.

Every function here gives a `Measure`, for `launch.training.means.masked_means`. Follows Joo et al. 2023.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial

from launch.training import keys
from robustgrad_jax import callables, metrics, sensitivity
from robustgrad_jax.gradients import Ball, Draws, draw_noise, input_gradient, of_classes, squared_norm

Batch = Mapping[str, Any]
Values = dict[str, jax.Array]  # name -> (n,)
Explained = dict[str, jax.Array]  # "attribution" (n, h, w, c), "heatmap" (n, h, w), "finite" bool (n,)


class Prepare(Protocol):
    """From a batch to images and labels: x (n, h, w, c), normalised, and y int (n,)."""

    def __call__(self, batch: Batch, /) -> tuple[jax.Array, jax.Array]: ...


class Attribute(Protocol):
    """An attribution of any network, hashable: the result is (n, h, w, c).

    Args:
      model: linen module, (variables, x) -> (logits, out).
      variables: all its variables.
      x: (n, h, w, c). y: int (n,).
      slots: int (n,), the places of the images in the test set: from which random numbers are drawn.
    """

    def __call__(
        self, model: nn.Module, variables: Any, x: jax.Array, y: jax.Array, slots: jax.Array, /
    ) -> jax.Array: ...


class Measure(Protocol):
    """What is measured of each example of a batch, pure: (variables, batch, number of the draw) -> {name: (n,)}."""

    def __call__(self, variables: Any, batch: Batch, draw: Any, /) -> Values: ...


# What compares two heat maps (n, h, w); "top_k" and "signed_cosine" are in `Compare`.
_OF_HEAT_MAPS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cosine": metrics.cosine,
    "pcc": metrics.pearson,
    "spearman": metrics.spearman,
    "ssim": metrics.ssim,
    "ssim_published": metrics.ssim_published,
    "mse": metrics.mse,
    "mse_published": metrics.mse_published,
    "sumnorm_mse": metrics.sumnorm_mse,
    "sumnorm_ssim": metrics.sumnorm_ssim,
}
SIMILARITIES = (*_OF_HEAT_MAPS, "top_k", "signed_cosine")
NONFINITE = "nonfinite"


@dataclass(frozen=True)
class Subject:
    """A network and one attribution of it.

    Attributes:
      model: linen module, (variables, x) -> (logits, out).
      prepare: batch -> (x normalised, y).
      attribute: see `Attribute`.
    """

    model: nn.Module
    prepare: Prepare
    attribute: Attribute

    def logits_fn(self, variables: Any) -> Partial:
        """x -> logits (n, classes), the weights its leaves."""
        return callables.logits_of(self.model, variables)

    def attribution_fn(self, variables: Any, slots: jax.Array) -> Partial:
        """(x, y) -> attribution, the weights its leaves."""
        return Partial(_Of(self.attribute, self.model), variables, slots)

    def explain(self, variables: Any, x: jax.Array, y: jax.Array, slots: jax.Array) -> Explained:
        """The attribution of images, its heat map, and whether all of it is finite."""
        return explained(self.attribute(self.model, variables, x, y, slots))


def explained(attribution: jax.Array) -> Explained:
    """An attribution (n, h, w, c), its heat map, and whether all of it is finite."""
    finite, heatmap = metrics.finite(attribution), metrics.heatmap(attribution)
    return {"attribution": attribution, "heatmap": heatmap, "finite": finite}


@dataclass(frozen=True)
class _Of:
    """An attribution of a model, equal for equal ones, so that compiled programs are reused."""

    attribute: Attribute
    model: nn.Module

    def __call__(self, variables, slots, x, y):
        return self.attribute(self.model, variables, x, y, slots)


@dataclass(frozen=True)
class Compare:
    """Similarities of two attributions by name.

    Attributes:
      names: of `SIMILARITIES`.
      top_k: pixels of the top-k intersection.
    """

    names: tuple[str, ...]
    top_k: int = 1

    def __call__(self, before: Explained, after: Explained) -> Values:
        """name -> (n,), and "nonfinite", 1 where one of the two attributions is not finite.

        There every similarity is NaN, and so is its mean over a data set: a maximum or a rank of NaNs would look like
        a number.
        """
        a, b = before["heatmap"], after["heatmap"]
        values = {name: _OF_HEAT_MAPS[name](a, b) for name in self.names if name in _OF_HEAT_MAPS}
        if "top_k" in self.names:
            values["top_k"] = metrics.top_k_intersection(a, b, self.top_k)
        if "signed_cosine" in self.names:
            values["signed_cosine"] = metrics.cosine(before["attribution"], after["attribution"])
        finite = before["finite"] & after["finite"]
        return {k: jnp.where(finite, v, jnp.nan) for k, v in values.items()} | {NONFINITE: _as_number(~finite, a)}

    def to_target(self, after: Explained, target: jax.Array) -> Values:
        """The similarities of heat maps with a target map (h, w): "target_cosine" … -> (n,)."""
        target = jnp.broadcast_to(target, after["heatmap"].shape).astype(after["heatmap"].dtype)
        names = [name for name in self.names if name in _OF_HEAT_MAPS]
        values = {name: _OF_HEAT_MAPS[name](after["heatmap"], target) for name in names}
        return {f"target_{name}": jnp.where(after["finite"], value, jnp.nan) for name, value in values.items()}


def count_nonfinite(values: Mapping[str, jax.Array]) -> Values:
    """Turn the mean over draws of "…/nonfinite" into whether it was 1 in any draw, image by image."""
    return {k: (v > 0).astype(v.dtype) if k.split("/")[-1] == NONFINITE else v for k, v in values.items()}


def accuracy(model: nn.Module, prepare: Prepare) -> Measure:
    """Accuracy and cross-entropy of the clean images, for validation and test.

    Args:
      model: linen module, (variables, x) -> (logits, out).
      prepare: batch -> (x normalised, y).
    """

    def measure(variables: Any, batch: Batch, draw: Any) -> Values:
        del draw
        x, y = prepare(batch)
        logits, _ = model.apply(variables, x)
        log_probabilities = jax.nn.log_softmax(logits)
        loss = -of_classes(log_probabilities, y)
        return {"accuracy": _as_number(logits.argmax(-1) == y, logits), "cross_entropy": loss}

    return measure


def clean(subject: Subject) -> Callable[[Any, Batch], dict[str, Any]]:
    """What all draws share: (variables, batch) -> the explanations of the clean images and the batch's value range."""

    def explain(variables: Any, batch: Batch) -> dict[str, Any]:
        x, y = subject.prepare(batch)
        return subject.explain(variables, x, y, batch["slot"]) | {"range": (x.min(), x.max())}

    return explain


def random_perturbation_similarity(
    subject: Subject, *, std: Sequence[float], radii: Sequence[float], compare: Compare, seed: int
) -> Measure:
    """RPS: how alike an attribution is before and after a uniform draw of radius ε/255, for every ε.

    Perturbed images are clipped to the value range of their batch, as in the published code.

    Args:
      std: per channel, what the images were divided by.
      radii: each ε in units of 1/255 of the pixel range; one uniform draw is scaled to all of them.
      compare: the similarities.
      seed: of the draws; draw number and test-set index give each image its own.

    Returns:
      {"rps-4/cosine": (n,), …, "rps-4/accuracy", "rps-4/nonfinite"}; needs what `clean` gives as `batch["once"]`.
    """

    def measure(variables: Any, batch: Batch, draw: Any) -> Values:
        x, y = subject.prepare(batch)
        uniform = draw_noise("uniform", keys.stream(seed, "rps", draw), batch["slot"], x.shape, 1.0, x.dtype)
        values = {}
        for radius in radii:
            perturbed = jnp.clip(x + radius / (255 * jnp.asarray(std, x.dtype)) * uniform, *batch["once"]["range"])
            alike = compare(batch["once"], subject.explain(variables, perturbed, y, batch["slot"]))
            alike["accuracy"] = metrics.accuracy(subject.logits_fn(variables), perturbed, y)
            values |= {f"rps-{radius:g}/{name}": value for name, value in alike.items()}
        return values

    return measure


CURVES = {"insertion": metrics.insertion_curve, "deletion": metrics.deletion_curve}


def curves(subject: Subject, *, names: Sequence[str], steps: int) -> Measure:
    """Insertion and deletion: the true class's probability as the most important pixels come, or go.

    Args:
      names: of `CURVES`.
      steps: levels of a curve.

    Returns:
      {"insertion/0": (n,), …, "insertion/19", "insertion/area", "insertion/nonfinite"}.
    """

    def measure(variables: Any, batch: Batch, draw: Any) -> Values:
        del draw
        x, y = subject.prepare(batch)
        explained = subject.explain(variables, x, y, batch["slot"])
        values = {}
        for name in names:
            points = CURVES[name](subject.logits_fn(variables), x, y, explained["heatmap"], steps)
            values |= curve_values(name, points) | {f"{name}/{NONFINITE}": _as_number(~explained["finite"], x)}
        return values

    return measure


def curve_values(name: str, points: jax.Array) -> Values:
    """A curve (levels, n) by name: its area and its points, each (n,)."""
    return {f"{name}/area": metrics.area(points)} | {f"{name}/{i}": point for i, point in enumerate(points)}


SENSITIVITIES = (*sensitivity.MEASURES, "infidelity")


def sensitivities(
    subject: Subject, *, std: Sequence[float], radius: float, names: Sequence[str], samples: int, seed: int
) -> Measure:
    """Local stability of an attribution, and how well it predicts the logit (`robustgrad_jax.sensitivity`).

    Args:
      std, seed: as in `random_perturbation_similarity`.
      radius: ε in units of 1/255 of the pixel range, of uniform draws.
      names: of `SENSITIVITIES`.
      samples: draws per image.

    Returns:
      {"sensitivity-8/max_sensitivity": (n,), …, "sensitivity-8/nonfinite"}.
    """

    def measure(variables: Any, batch: Batch, draw: Any) -> Values:
        del draw
        x, y = subject.prepare(batch)
        slots = batch["slot"]
        ball = Ball(radius / (255 * jnp.asarray(std, x.dtype)))
        draws = Draws(keys.stream(seed, "sensitivity"), slots)
        values = {}
        if local := [name for name in names if name in sensitivity.MEASURES]:
            attribution_fn = subject.attribution_fn(variables, slots)
            values |= sensitivity.stability(attribution_fn, x, y, ball, draws, samples=samples, measures=local)
        if "infidelity" in names:
            attribution = subject.explain(variables, x, y, slots)["attribution"]
            values["infidelity"] = sensitivity.infidelity(
                subject.logits_fn(variables), attribution, x, y, ball, draws, samples=samples, noise="uniform"
            )
        finite = jnp.ones(len(x), bool)
        for value in values.values():
            finite &= jnp.isfinite(value)
        values = {name: jnp.where(finite, value, jnp.nan) for name, value in values.items()}
        values[NONFINITE] = _as_number(~finite, x)
        return {f"sensitivity-{radius:g}/{name}": value for name, value in values.items()}

    return measure


def upper_bound(
    model: nn.Module, prepare: Prepare, *, std: Sequence[float], radius: float, compare: Compare, seed: int
) -> Measure:
    """The quantities of the paper's upper-bound study, for one gaussian draw z of scale ε/(255 σ).

    With x' = x + z, clipped to the value range of its batch: l2 = ‖∇g(x) − ∇g(x')‖², cosine_distance = (1 − cos)/2,
    gradient_norm = ‖∇g(x')‖, hessian_product_norm = ‖Hz‖ and bound = ‖Hz‖/‖∇g(x')‖, the accuracy of x', and how alike
    the heat maps of both gradients are. hessian_frobenius = ‖Hv‖² with v ~ N(0, I), which `hutchinson` turns into an
    estimate of ‖H‖_F once the draws are averaged. hessian_published is what the published code calls the norm: from
    ‖Hz‖², summed over the draws and divided by ε.

    Args:
      std, seed: as in `random_perturbation_similarity`.
      radius: ε in units of 1/255 of the pixel range.
      compare: the similarities.
    """

    def measure(variables: Any, batch: Batch, draw: Any) -> Values:
        x, y = prepare(batch)
        key = keys.stream(seed, "upper_bound", draw)
        direction = draw_noise("gaussian", key, batch["slot"], x.shape, 1.0, x.dtype)
        scale = radius / (255 * jnp.asarray(std, x.dtype))
        logits_fn = lambda variables, x: (model.apply(variables, x)[0], None)
        gradient_of = lambda x: input_gradient(logits_fn, variables, x, y)[0]
        source, product_with = jax.linearize(gradient_of, x)  # one pass for both Hessian-vector products
        along_noise, along_v = product_with(scale * direction), product_with(direction)
        moved = jnp.clip(x + scale * direction, x.min(), x.max())
        perturbed = gradient_of(moved)
        norm, product = jnp.sqrt(squared_norm(perturbed)), jnp.sqrt(squared_norm(along_noise))
        return compare(explained(source), explained(perturbed)) | {
            "accuracy": metrics.accuracy(lambda x: model.apply(variables, x)[0], moved, y),
            "l2": squared_norm(source - perturbed),
            "cosine_distance": metrics.cosine_distance(source, perturbed),
            "gradient_norm": norm,
            "hessian_product_norm": product,
            "bound": product / (norm + 1e-8),
            "hessian_frobenius": squared_norm(along_v),
            "hessian_published": squared_norm(along_noise),
        }

    return measure


def hutchinson(values: Mapping[str, jax.Array], *, radius: float, draws: int) -> Values:
    """Turn means over draws, of ‖Hv‖² and ‖Hz‖², into the estimate of ‖H‖_F and the published norm, image by image."""
    published = jnp.sqrt(values["hessian_published"] * draws / radius)
    frobenius = jnp.sqrt(values["hessian_frobenius"])
    return count_nonfinite(values) | {"hessian_frobenius": frobenius, "hessian_published": published}


def _as_number(truth: jax.Array, like: jax.Array) -> jax.Array:
    return truth.astype(like.dtype)
