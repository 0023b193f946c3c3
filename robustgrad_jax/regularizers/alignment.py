"""Local gradient alignment (Joo et al., AAAI 2023, arXiv 2211.15900)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from launch.stages import require_known, stackable
from robustgrad_jax import metrics
from robustgrad_jax.gradients import (
    NOISE_KINDS,
    AlongGradient,
    Draws,
    Forward,
    hessian_vector_product,
    input_gradient,
    squared_norm,
)
from robustgrad_jax.regularizers.base import Penalised, check_numbers, in_network_units

VARIANTS = ("difference", "jvp")
TERMS = ("l2", "cosine")


@dataclass(frozen=True)
class Alignment:
    """The weighted sum of the two distances of `gradient_alignment`, for noise of a random kind.

    Attributes:
      radius: ε, in units of 1/255 of the pixel range.
      l2_weight, cosine_weight: of the two terms.
      noise: of `robustgrad_jax.gradients.NOISE_KINDS`.
      detach_source, variant: as in `gradient_alignment`.
      terms: of `TERMS`: those that are added, and logged without their weights.
    """

    radius: float = stackable(4.0)
    l2_weight: float = stackable(0.01)
    cosine_weight: float = stackable(1.0)
    noise: str = "uniform"
    detach_source: bool = True
    variant: str = "difference"
    terms: tuple[str, ...] = TERMS

    def __post_init__(self) -> None:
        check_numbers(self)
        require_known(self, "noise", NOISE_KINDS)
        require_known(self, "variant", VARIANTS)
        require_known(self, "terms", TERMS)

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised:
        noise = draws.noise(self.noise, x, in_network_units(self.radius, x, std))
        l2, cosine, logits, aux = gradient_alignment(
            logits_fn, params, x, y, noise, detach_source=self.detach_source, variant=self.variant
        )
        weights = {"l2": self.l2_weight, "cosine": self.cosine_weight}
        parts = {name: value for name, value in {"l2": l2, "cosine": cosine}.items() if name in self.terms}
        value = sum((weights[name] * part for name, part in parts.items()), start=jnp.zeros((), l2.dtype))
        return value, logits, aux, parts


def gradient_alignment(
    logits_fn: Forward,
    params: Any,
    x: Array,
    y: Array,
    noise: Array | AlongGradient,
    *,
    detach_source: bool = True,
    variant: str = "difference",
) -> tuple[Array, Array, Array, Any]:
    """How far the input gradient moves when the input does (Joo et al. 2023, the two terms of their loss).

    l2 = mean ‖∇g(x) − ∇g(x')‖², cosine_distance = mean (1 − cos(∇g(x), ∇g(x')))/2, with x' = x + noise.

    Args:
      logits_fn: (params, x) -> (logits, aux).
      params: what the result may be differentiated with respect to, exactly, by `jax.grad`.
      x: (n, h, w, c), normalised. y: int (n,).
      noise: (n, h, w, c) in x's units, or a function of the (constant) source gradient that gives it.
      detach_source: ∇g(x) is a constant, as published; otherwise both gradients carry parameter gradients.
      variant: "difference" evaluates ∇g(x'); "jvp" replaces it by its linearisation ∇g(x) + H·noise.

    Returns:
      (l2, cosine_distance, logits, aux): two scalars, and logits (n, k) and aux of the clean pass.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r} of gradient alignment; valid names: 'difference', 'jvp'")
    if variant == "jvp":
        if callable(noise):
            noise = noise(jax.lax.stop_gradient(input_gradient(logits_fn, params, x, y)[0]))
        source, product, logits, aux = hessian_vector_product(logits_fn, params, x, y, noise)
        perturbed = source + product
    else:
        source, logits, aux = input_gradient(logits_fn, params, x, y)
        if callable(noise):
            noise = noise(jax.lax.stop_gradient(source))
        perturbed, _, _ = input_gradient(logits_fn, params, jax.lax.stop_gradient(x + noise), y)
    # Differentiating jvp(g; x', u), u = ∂R/∂∇g(x') held constant, gives the same parameter gradient without a second
    # reverse pass. It is also the same program: JAX transposes the jvp of the first reverse pass, and what XLA compiles
    # has the same flops and the same memory (LeNet b128 45.5 GFLOP, 0.32 GB; ResNet-18 b32 257 GFLOP, 0.78 GB).
    if detach_source:
        source = jax.lax.stop_gradient(source)
    return *distances(source, perturbed), logits, aux


def distances(source: Array, perturbed: Array) -> tuple[Array, Array]:
    """Batch means of the squared ℓ2 distance and of the cosine distance (1 - cos)/2 of two gradients (n, …)."""
    l2 = jnp.mean(squared_norm(source - perturbed))
    return l2, jnp.mean(metrics.cosine_distance(source, perturbed))
