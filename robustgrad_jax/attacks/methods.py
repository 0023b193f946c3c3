"""Attacks on attributions: a small change of the image, the same prediction, another heat map.

Every attack takes `logits_fn(x) -> (n, classes)` and a differentiable `attribution_fn(x, y)` that gives (n, h, w, c)
or (n, h, w), and returns attacked images of x's shape in x's units. Images never influence each other: a result
depends on an image and its slot, not on its batch. `logits_of` and `jax.tree_util.Partial` (see
`robustgrad_jax.callables`) make functions that compile once per model.

Common arguments: the `Ball` around each image that the attacked one stays in, with the `std` of the images for a radius
in pixel units (Joo et al. 2023 attack with ε levels of 255 in radius=5*ε/255, without std). `Draws`, of the start.
`compiled_loop`: True makes all steps one program, False compiles one step and calls it from a loop on the host; None
chooses the second on CPU, where XLA runs second-order convolutions inside its loops 6 to 10 times slower, and the first
elsewhere and inside an outer jit. The numbers are the same up to rounding (which can turn the sign of a gradient close
to zero), and neither fetches anything from the device between steps.

ReLU has no second derivative, so its networks are attacked through a softplus copy: `smoothed`.
"""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jax.tree_util import Partial

from launch.networks import activations, loops
from robustgrad_jax import metrics
from robustgrad_jax.attacks import loop as attack_loop
from robustgrad_jax.callables import AttributionFn, LogitsFn, as_pytree, check_labels, logits_of
from robustgrad_jax.gradients import Ball, Draws

NAMES = ("manipulate", "top_k", "mass_center", "pgd", "random_sign")
SOFTPLUS_BETA = 20.0  # of the copy that ReLU networks are attacked through (Joo et al. 2023)


def target_frame(shape: tuple[int, int], border: int) -> Array:
    """A heat map (h, w) that is 1 on a frame along the edges and 0 inside, the target of Joo et al. 2023.

    Args:
      shape: (h, w) in pixels.
      border: width of the frame in pixels; 5 for 32x32 images and 35 for 224x224 in the paper.

    Raises ValueError if the frame would be absent or leave nothing inside.
    """
    if border < 1 or 2 * border >= min(shape):
        raise ValueError(f"target_frame: a border of {border} pixels does not fit an image of {shape[0]}x{shape[1]}")
    inside = jnp.zeros([side - 2 * border for side in shape], jnp.float32)
    return jnp.pad(inside, border, constant_values=1)


@functools.cache
def _softplus(beta: float) -> Any:
    return activations.get("softplus", beta)  # one object per beta: models that hold it compare equal


def smoothed(model: nn.Module, beta: float = SOFTPLUS_BETA) -> nn.Module:
    """The model to attack `model` through: ReLU replaced by softplus of sharpness `beta`, the weights unchanged.

    A model with another activation is returned unchanged. Raises ValueError for one without the field `activation`.
    """
    if not hasattr(model, "activation"):
        raise ValueError(f"{type(model).__name__} has no field `activation` to replace by softplus")
    return model.clone(activation=_softplus(float(beta))) if model.activation is jax.nn.relu else model


def smoothed_logits(model: nn.Module, variables: Any, beta: float = SOFTPLUS_BETA) -> Partial:
    """logits_fn of the `smoothed` model."""
    return logits_of(smoothed(model, beta), variables)


def manipulate(
    logits_fn: LogitsFn | None,
    attribution_fn: AttributionFn,
    x: Array,
    y: Array,
    target_map: Array,
    ball: Ball,
    draws: Draws | None = None,
    *,
    steps: int = 100,
    gamma: float = 0.5,
    compiled_loop: bool | None = None,
) -> Array:
    """Adversarial attribution manipulation, AAM: the heat map made to look like a target, the logits kept.

    Per image, γ·‖h(x̃) − h_t‖² + (1 − γ)·mean over classes (f(x̃) − f(x))² is minimised by Adam with step 4·radius/steps
    (β 0.9 and 0.999, ε 1e-8), x̃ being brought back into the ball after every step (Joo et al. 2023, after Dombrowski
    et al. 2019); h is `metrics.heatmap`.

    Args:
      logits_fn, attribution_fn, compiled_loop: see the module.
      x: (n, h, w, c), normalised. y: int (n,).
      target_map: h_t, (h, w) or (n, h, w), between 0 and 1: `target_frame`, or another image's heat map.
      ball: where x̃ may be.
      draws: of the start; x itself by default.
      steps: of Adam.
      gamma: γ in (0, 1]; 1 leaves the logits free, and logits_fn is not called.

    Returns:
      x̃, (n, h, w, c). Where an attribution is not finite x̃ is not either; `metrics.finite` tells which. An attribution
      of zeros has a heat map of zeros without gradient: only the logits then move that image.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"manipulate: gamma must lie in (0, 1], got {gamma}")
    x = attack_loop.check(x, y, steps)
    check_labels(x, y, logits_fn, attribution_fn)
    local = ball.in_units_of(x)
    attribution_fn = as_pytree(attribution_fn)
    logits_fn = attack_loop.needed(logits_fn, "gamma=1") if gamma < 1 else None
    mapped = jax.eval_shape(_heatmap, attribution_fn, x, y).shape
    target_map = jnp.asarray(target_map, x.dtype)
    if target_map.shape not in (mapped, mapped[1:]):
        raise ValueError(f"manipulate: the target map has shape {target_map.shape}, the heat maps have {mapped}")
    context = {
        "x": x,
        "y": y,
        "ball": local,
        "step_size": 4 * local.radius / steps,
        "attribution": attribution_fn,
        "logits": logits_fn,
        "clean_logits": None if logits_fn is None else attack_loop.call(logits_fn, x),
        "gamma": jnp.asarray(gamma, x.dtype),
        "target": jnp.broadcast_to(target_map, mapped),
    }
    start = x if draws is None else attack_loop.start_of(x, local, draws)
    x_adv, _ = loops.iterate(_adam_step, context, (start, _adam.init(x)), steps, compiled_loop)
    return x_adv


_adam = optax.scale_by_adam()


def _heatmap(attribution_fn: Partial, x: Array, y: Array) -> Array:
    return metrics.heatmap(attack_loop.spatial(attribution_fn(x, y)))


def _manipulation_loss(x_adv: Array, context: attack_loop.Context) -> Array:
    heatmap = _heatmap(context["attribution"], x_adv, context["y"])
    loss = context["gamma"] * jnp.sum(jnp.square(heatmap - context["target"]))
    if context["logits"] is not None:
        change = jnp.square(context["logits"](x_adv) - context["clean_logits"])
        loss += (1 - context["gamma"]) * jnp.sum(jnp.mean(change, axis=-1))
    return loss


def _adam_step(context: attack_loop.Context, state: tuple) -> tuple:
    x_adv, moments = state
    update, moments = _adam.update(jax.grad(_manipulation_loss)(x_adv, context), moments)
    return context["ball"].project(x_adv - context["step_size"] * update, context["x"]), moments


def top_k(
    logits_fn: LogitsFn | None,
    attribution_fn: AttributionFn,
    x: Array,
    y: Array,
    ball: Ball,
    *,
    k: int,
    **options: Unpack[attack_loop.Ascent],
) -> Array:
    """The top-k attack of Ghorbani et al. 2019: importance driven out of the k pixels that have most of it.

        D(x, x̃) = −Σ_{i∈B} I(x̃)_i,   B the k largest of I(x),   I the importance: Σ_c |attribution| with sum 1
        x⁰ = x,   xᵖ = Π(xᵖ⁻¹ + α sign ∇D(x, xᵖ⁻¹)),   p = 1 … steps

    The result is the xᵖ with the largest D among those whose predicted class is that of x; x itself if there is none.

    Args:
      logits_fn, attribution_fn: see the module.
      x: (n, h, w, c), normalised. y: int (n,).
      ball: where x̃ may be.
      k: number of pixels; ties go to the first in row-major order.
      options: see `attacks.loop.Ascent`.
    """
    away = lambda importance: Partial(_top_k_dissimilarity, metrics.top_k_members(importance, k))
    return attack_loop.ascend(away, logits_fn, attribution_fn, x, y, ball, None, **options)


def mass_center(
    logits_fn: LogitsFn | None,
    attribution_fn: AttributionFn,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws,
    **options: Unpack[attack_loop.Ascent],
) -> Array:
    """The mass-centre attack of Ghorbani et al. 2019: the heat map's centre of mass moved as far as it goes.

        D(x, x̃) = ‖C(x̃) − C(x)‖₂,   C(x) = Σ_ij I(x)_ij (i, j)ᵀ   in pixels

    with importance, iteration and choice as in `top_k`. D has no gradient at x itself, so x⁰ is a uniform draw from
    the ball. (The published code rounds C(x) down, which has the same effect by accident.)

    Args:
      draws: of x⁰.
      Others: as in `top_k`.
    """
    away = lambda importance: Partial(_center_dissimilarity, metrics.mass_center(importance))
    return attack_loop.ascend(away, logits_fn, attribution_fn, x, y, ball, draws, **options)


def pgd(
    logits_fn: LogitsFn | None,
    attribution_fn: AttributionFn,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws,
    **options: Unpack[attack_loop.Ascent],
) -> Array:
    """Projected gradient ascent on the cosine distance of heat maps, from a random point of the ball.

    D(x, x̃) = 1 − cos(h(x̃), h(x)), with Madry et al. 2018's random start; arguments, iteration and choice as in
    `mass_center`.
    """
    away = lambda importance: Partial(_cosine_dissimilarity, importance)
    return attack_loop.ascend(away, logits_fn, attribution_fn, x, y, ball, draws, **options)


def random_sign(x: Array, ball: Ball, draws: Draws) -> Array:
    """The random baseline of Ghorbani et al. 2019: every entry of x moved by +radius or −radius.

    Args:
      x: (n, h, w, c), normalised.
      ball: whose radius it is.
      draws: key and slots that determine the signs of each image.
    """
    x = attack_loop.check(x, None, 1)
    local = ball.in_units_of(x)
    return local.project(x + local.radius * draws.signs(x), x)


def _top_k_dissimilarity(members: Array, importance: Array) -> Array:
    return -jnp.sum(jnp.where(members, importance, 0), axis=(1, 2))


def _center_dissimilarity(center: Array, importance: Array) -> Array:
    squared = jnp.sum(jnp.square(metrics.mass_center(importance) - center), axis=-1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def _cosine_dissimilarity(clean: Array, importance: Array) -> Array:
    return 1 - metrics.cosine(clean, importance)
