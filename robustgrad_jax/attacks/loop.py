"""What the attacks of `robustgrad_jax.attacks` share: their context, and ascent by signed gradients."""

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from launch.networks import loops
from robustgrad_jax import metrics
from robustgrad_jax.callables import AttributionFn, LogitsFn, as_pytree, check_labels
from robustgrad_jax.gradients import Ball, Draws, LocalBall, Radius

Context = dict[str, Any]  # what all steps of an attack share: images "x", labels "y", "ball" in x's units, functions


def check(x: Array, y: Array | None, steps: int) -> Array:
    """x as an array, after checking the arguments of an attack.

    Raises:
      ValueError: x is not (n, h, w, c), there are not as many labels, or no steps.
    """
    x = jnp.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"attacks take images (n, h, w, c), got shape {x.shape}")
    if y is not None and jnp.shape(y) != x.shape[:1]:
        raise ValueError(f"{x.shape[0]} images need as many labels (n,), got shape {jnp.shape(y)}")
    if steps < 1:
        raise ValueError(f"an attack takes at least one step, got {steps}")
    return x


def start_of(x: Array, ball: LocalBall, draws: Draws) -> Array:
    """Where an attack begins: the images moved by `draws`, within the ball."""
    return ball.project(x + draws.perturbation(x, ball.radius), x)


def needed(logits_fn: LogitsFn | None, otherwise: str) -> Partial:
    """logits_fn as a pytree.

    Raises:
      ValueError: it is None; the message names the setting that needs none.
    """
    if logits_fn is None:
        raise ValueError(f"logits_fn is None: give one, or set {otherwise}")
    return as_pytree(logits_fn)


def importance(attribution: Array) -> Array:
    """Σ_c |attribution| divided by its sum, (n, h, w); uniform where all of it is zero."""
    maps = jnp.sum(jnp.abs(spatial(attribution)), axis=-1)
    total = jnp.sum(maps, axis=(1, 2), keepdims=True)
    return jnp.where(total == 0, 1 / maps[0].size, maps / jnp.where(total == 0, 1, total))


def spatial(attribution: Array) -> Array:
    """An attribution (n, h, w) or (n, h, w, c) as (n, h, w, channels)."""
    return attribution if attribution.ndim == 4 else attribution[..., None]


class Ascent(TypedDict, total=False):
    """Options of the attacks that ascend by signed gradients.

    Attributes:
      steps: of the ascent, 100 by default.
      step_size: α, in the units of the radius; 2.5·radius/steps by default (Madry et al. 2018).
      keep_prediction: False returns the largest dissimilarity whatever is predicted, without calling logits_fn.
      compiled_loop: see `robustgrad_jax.attacks.methods`.
    """

    steps: int
    step_size: Radius | None
    keep_prediction: bool
    compiled_loop: bool | None


def ascend(
    away: Callable[[Array], Partial],
    logits_fn: LogitsFn | None,
    attribution_fn: AttributionFn,
    x: Array,
    y: Array,
    ball: Ball,
    draws: Draws | None,
    *,
    steps: int = 100,
    step_size: Radius | None = None,
    keep_prediction: bool = True,
    compiled_loop: bool | None = None,
) -> Array:
    """Signed steps that maximise a dissimilarity; the best image on the way, the clean one if none is eligible.

    Args:
      away: from the clean images' importance (n, h, w) to the dissimilarity, importance -> (n,).
      draws: of the start; None for the images themselves.
      Others: as of the attacks and `Ascent`.
    """
    x, local = check(x, y, steps), ball.in_units_of(x)
    check_labels(x, y, logits_fn, attribution_fn)
    attribution_fn = as_pytree(attribution_fn)
    logits_fn = needed(logits_fn, "keep_prediction=False") if keep_prediction else None
    context: Context = {
        "x": x,
        "y": y,
        "ball": local,
        "step_size": 2.5 * local.radius / steps if step_size is None else ball.length(x, "step_size", step_size),
        "attribution": attribution_fn,
        "logits": logits_fn,
        "predicted": None if logits_fn is None else jnp.argmax(call(logits_fn, x), axis=-1),
        "dissimilarity": away(importance(call(attribution_fn, x, y))),
    }
    state = {
        "x": x if draws is None else start_of(x, local, draws),
        "best": x,
        "score": jnp.full(len(x), -jnp.inf, x.dtype),
        "moved": jnp.zeros((), bool),  # the start is not one of the candidates
    }
    state = loops.iterate(_sign_step, context, state, steps, compiled_loop)
    return _last(context, state)["best"]


def _scores(x_adv: Array, context: Context) -> Array:
    return context["dissimilarity"](importance(context["attribution"](x_adv, context["y"])))


def _sign_step(context: Context, state: dict) -> dict:
    scores, pullback = jax.vjp(lambda x_adv: _scores(x_adv, context), state["x"])
    moved = state["x"] + context["step_size"] * jnp.sign(pullback(jnp.ones_like(scores))[0])
    moved = context["ball"].project(moved, context["x"])
    return _keep_best(context, state, scores) | {"x": moved, "moved": jnp.ones((), bool)}


@jax.jit
def _last(context: Context, state: dict) -> dict:
    return _keep_best(context, state, _scores(state["x"], context))


def _keep_best(context: Context, state: dict, scores: Array) -> dict:
    x_adv = state["x"]
    better = (scores > state["score"]) & state["moved"]  # never where the score is NaN
    if context["logits"] is not None:
        logits = context["logits"](x_adv)
        # argmax would pick a NaN
        better &= (jnp.argmax(logits, axis=-1) == context["predicted"]) & metrics.finite(logits)
    best = jnp.where(better[:, None, None, None], x_adv, state["best"])
    return state | {"best": best, "score": jnp.where(better, scores, state["score"])}


@jax.jit
def call(fn: Partial, *arguments: Any) -> Any:
    """fn(*arguments), compiled."""
    return fn(*arguments)
