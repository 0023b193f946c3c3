"""What the attacks of `robustgrad_jax.attacks` have in common: the ball, the loop, and ascent by signed gradients."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from robustgrad_jax import metrics
from robustgrad_jax.callables import as_pytree, traced
from robustgrad_jax.regularizers.alignment import draw_noise


def ball(x: Array, y: Array | None, radius, std, value_range, steps: int) -> dict:
    """The context of an attack: where x̃ may go. Raises ValueError for what cannot be meant."""
    x = jnp.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"attacks take images (n, h, w, c), got shape {x.shape}")
    if y is not None and jnp.shape(y) != x.shape[:1]:
        raise ValueError(f"{x.shape[0]} images need as many labels (n,), got shape {jnp.shape(y)}")
    if steps < 1:
        raise ValueError(f"an attack takes at least one step, got {steps}")
    low, high = (-jnp.inf, jnp.inf) if value_range is None else value_range
    return {
        "x": x,
        "y": y,
        "radius": in_units_of(x, "radius", radius, std),
        "low": _per_channel(x, "value_range", low),
        "high": _per_channel(x, "value_range", high),
    }


def in_units_of(x: Array, name: str, value, std) -> Array:
    """A length in pixel units (with std) or in normalised ones, as an array (c,) in x's units."""
    value = _per_channel(x, name, value)
    if std is not None:
        value = value / _per_channel(x, "std", std)
    if not traced(value) and not bool(jnp.all((value > 0) & jnp.isfinite(value))):
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def _per_channel(x: Array, name: str, value) -> Array:
    value = jnp.asarray(value, x.dtype)
    if value.shape not in ((), (1,), x.shape[-1:]):
        raise ValueError(f"{name} has shape {value.shape}; it must be one number or {x.shape[-1]}, one per channel")
    return jnp.broadcast_to(value, x.shape[-1:])


def project(x_adv: Array, context: dict) -> Array:
    """x̃ back into the ball, then into the value range."""
    x, radius = context["x"], context["radius"]
    return jnp.clip(jnp.clip(x_adv, x - radius, x + radius), context["low"], context["high"])


def random_start(context: dict, key: Array, slots: Array) -> Array:
    """A uniform draw from the ball, determined by key and slot."""
    x = context["x"]
    if jnp.shape(slots) != x.shape[:1]:
        raise ValueError(f"{x.shape[0]} images need as many slots (n,), got shape {jnp.shape(slots)}")
    return project(x + draw_noise("uniform", key, slots, x.shape, context["radius"], x.dtype), context)


def importance(attribution: Array) -> Array:
    """Σ_c |attribution| divided by its sum, (n, h, w); uniform where all of it is zero."""
    maps = jnp.sum(jnp.abs(spatial(attribution)), axis=-1)
    total = jnp.sum(maps, axis=(1, 2), keepdims=True)
    return jnp.where(total == 0, 1 / maps[0].size, maps / jnp.where(total == 0, 1, total))


def spatial(attribution: Array) -> Array:
    """An attribution (n, h, w) or (n, h, w, c) as (n, h, w, channels)."""
    return attribution if attribution.ndim == 4 else attribution[..., None]


def ascent(logits_fn, attribution_fn, region: dict, std, steps: int, step_size, keep_prediction: bool) -> dict:
    """The context of the sign-gradient attacks but for what they maximise, and the clean images' importance."""
    x = region["x"]
    step_size = 2.5 * region["radius"] / steps if step_size is None else in_units_of(x, "step_size", step_size, std)
    attribution_fn, logits_fn = as_pytree(attribution_fn), as_pytree(logits_fn) if keep_prediction else None
    context = region | {"attribution": attribution_fn, "logits": logits_fn, "step_size": step_size}
    context["predicted"] = None if logits_fn is None else jnp.argmax(call(logits_fn, x), axis=-1)
    return context | {"importance": importance(call(attribution_fn, x, region["y"]))}


def ascend(context: dict, dissimilarity: Partial, start: Array, steps: int, compiled_loop: bool | None) -> Array:
    """`steps` signed steps from `start`; the best image on the way, the clean one if none is eligible.

    dissimilarity: importance (n, h, w) -> (n,), what is maximised.
    """
    x = context["x"]
    context = context | {"dissimilarity": dissimilarity}
    state = {
        "x": start,
        "best": x,
        "score": jnp.full(len(x), -jnp.inf, x.dtype),
        "moved": jnp.zeros((), bool),  # the start is not one of the candidates
    }
    state = iterate(_sign_step, context, state, steps, compiled_loop)
    return _step(_last, context, state)["best"]


def _scores(x_adv: Array, context: dict) -> Array:
    return context["dissimilarity"](importance(context["attribution"](x_adv, context["y"])))


def _sign_step(context: dict, state: dict) -> dict:
    scores, pullback = jax.vjp(lambda x_adv: _scores(x_adv, context), state["x"])
    moved = state["x"] + context["step_size"] * jnp.sign(pullback(jnp.ones_like(scores))[0])
    return _keep_best(context, state, scores) | {"x": project(moved, context), "moved": jnp.ones((), bool)}


def _last(context: dict, state: dict) -> dict:
    return _keep_best(context, state, _scores(state["x"], context))


def _keep_best(context: dict, state: dict, scores: Array) -> dict:
    x_adv = state["x"]
    better = (scores > state["score"]) & state["moved"]  # never where the score is NaN
    if context["logits"] is not None:
        logits = context["logits"](x_adv)
        # argmax would pick a NaN, were there one
        better &= (jnp.argmax(logits, axis=-1) == context["predicted"]) & metrics.finite(logits)
    best = jnp.where(better[:, None, None, None], x_adv, state["best"])
    return state | {"best": best, "score": jnp.where(better, scores, state["score"])}


@jax.jit
def call(fn: Partial, *arguments):
    """fn(*arguments), compiled."""
    return fn(*arguments)


@functools.partial(jax.jit, static_argnames="step")
def _step(step: Callable, context: dict, state):
    return step(context, state)


@functools.partial(jax.jit, static_argnames=("step", "steps"))
def _loop(step: Callable, context: dict, state, steps: int):
    return jax.lax.fori_loop(0, steps, lambda _, state: step(context, state), state)


def iterate(step: Callable, context: dict, state, steps: int, compiled_loop: bool | None):
    """`steps` times `state = step(context, state)`, as one program or as so many calls of one; see `attacks`."""
    inside_jit = traced(context, state)
    if compiled_loop is None:
        compiled_loop = inside_jit or next(iter(context["x"].devices())).platform != "cpu"
    if compiled_loop:
        return _loop(step, context, state, steps)
    if inside_jit:
        raise ValueError("compiled_loop=False is a loop on the host and cannot run inside jit, grad or vmap")
    for _ in range(steps):
        state = _step(step, context, state)
    return state
