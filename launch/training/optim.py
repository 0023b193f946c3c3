"""Optimisers and learning-rate schedules from a config, with PyTorch's conventions.

The papers reproduced here were trained with ``torch.optim``; the same numbers in a config must mean the same
update:

- gradient clipping scales the raw gradient, before weight decay, by ``min(1, clip_norm / (norm + 1e-6))``;
- `sgd` and `adam` add ``weight_decay * parameter`` to the gradient *before* momentum and moments (L2);
- `adamw` subtracts ``lr * weight_decay * parameter`` apart from the moments (Loshchilov & Hutter, 2019);
- Adam's `eps` is added outside the square root.

Numbers in the config may be traced JAX scalars, so that members of a sweep that differ only in numbers can be
trained under one ``vmap``; names and durations must be concrete.
"""

import itertools
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging

from launch.training import duration

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine")

# PyTorch's defaults, for the fields a config may leave out.
_DEFAULTS = dict(
    momentum=0.0,  # sgd
    nesterov=False,  # sgd
    b1=0.9,  # adam, adamw
    b2=0.999,
    eps=1e-8,
    clip_norm=0.0,  # 0 is off
    decay_mask=(".*",),
)
_REQUIRED = ("name", "learning_rate", "weight_decay", "schedule")
_SCHEDULE_DEFAULTS = dict(warmup="0 steps", milestones=(), factor=0.1, final=0.0)
_SCHEDULE_REQUIRED = ("name",)

Schedule = Callable[[Any], jax.Array]


def create(
    config: Mapping[str, Any], *, total_steps: int, to_steps: Callable[[str], int]
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimiser a config describes, and its learning rate as a function of the step.

    Args:
      config: a ConfigDict or mapping with

        - ``name``: sgd, adam or adamw;
        - ``learning_rate``, ``weight_decay``;
        - ``momentum`` (0), ``nesterov`` (False): sgd only;
        - ``b1`` (0.9), ``b2`` (0.999), ``eps`` (1e-8): adam and adamw only;
        - ``clip_norm``: largest global norm of the gradient, 0 (the default) for no clipping;
        - ``decay_mask``: regular expressions over parameter paths such as ``"conv1/kernel"``. A parameter
          whose whole path one of them matches is decayed; ``(".*",)``, the default, decays all, as PyTorch
          does, ``()`` none;
        - ``schedule``: see `create_schedule`.

        One config may hold the fields of all optimisers; those of the others are not read.
      total_steps: steps of the whole training, the end of the cosine.
      to_steps: turns a duration such as ``"5 epochs"`` into steps (`launch.training.duration.to_steps` with its sizes
        bound).

    Returns:
      ``(transformation, schedule)``. The transformation's ``init`` raises ValueError if a regular expression
      in ``decay_mask`` matches no parameter; its ``update`` needs the parameters.

    Raises:
      ValueError: a field is unknown, missing or out of range, or a name is unknown.
    """
    c = _read(config, _REQUIRED, _DEFAULTS, "optimiser")
    _known(c["name"], OPTIMIZERS, "optimiser")
    for key in ("learning_rate", "weight_decay", "momentum", "eps", "clip_norm"):
        _check(c, key)
    for key in ("b1", "b2"):
        _check(c, key, below=1)
    if c["name"] == "sgd" and c["nesterov"] and _is_zero(c["momentum"]):
        raise ValueError("optimiser: nesterov=True needs a momentum above 0")

    schedule = create_schedule(
        c["schedule"], learning_rate=c["learning_rate"], total_steps=total_steps, to_steps=to_steps
    )
    decay = _add_decay(c["weight_decay"], _patterns(c["decay_mask"]))
    parts = [] if _is_zero(c["clip_norm"]) else [_clip(c["clip_norm"])]
    if c["name"] == "sgd":
        parts.append(decay)
        if not _is_zero(c["momentum"]):
            parts.append(optax.trace(decay=c["momentum"], nesterov=bool(c["nesterov"])))
    else:
        moments = optax.scale_by_adam(b1=c["b1"], b2=c["b2"], eps=c["eps"])
        parts += [decay, moments] if c["name"] == "adam" else [moments, decay]
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts), schedule


def of_run(config, *, examples: int) -> tuple[optax.GradientTransformation, Schedule, int, Callable[[str], int]]:
    """The optimiser of what a config trains, its learning rate by step, how many steps, and what counts durations.

    Args:
      config: a ConfigDict with `optimizer` (see `create`), `duration` and `batch_size`.
      examples: in an epoch.
    """
    to_steps = partial(duration.to_steps, examples=examples, batch_size=config.batch_size)
    steps = to_steps(config.duration)
    return *create(config.optimizer, total_steps=steps, to_steps=to_steps), steps, to_steps


def create_schedule(
    config: Mapping[str, Any], *, learning_rate, total_steps: int, to_steps: Callable[[str], int]
) -> Schedule:
    """Learning rate as a function of the step (the number of updates made before, from 0).

    Args:
      config: ConfigDict or mapping with

        - ``name``: ``constant``; ``step``, multiplied by ``factor`` from every milestone on; ``cosine``, half
          a period from the end of the warm-up to `total_steps`, down to ``final`` times the learning rate;
        - ``warmup`` ("0 steps"): linear from ``learning_rate / w`` at step 0 to the full rate at w - 1;
        - ``milestones``: durations from the start of training (the warm-up included), increasing;
        - ``factor`` (0.1); ``final`` (0).
      learning_rate: number or traced scalar.
      total_steps, to_steps: see `create`.

    Raises:
      ValueError: unknown name or field, milestones that do not increase, or `step` without milestones.
    """
    c = _read(config, _SCHEDULE_REQUIRED, _SCHEDULE_DEFAULTS, "schedule")
    name = c["name"]
    _known(name, SCHEDULES, "schedule")
    for key in ("factor", "final"):
        _check(c, key)
    warmup = to_steps(c["warmup"])
    if warmup and warmup >= total_steps:
        logging.warning("warm-up %r is %d of %d steps: no step follows it", c["warmup"], warmup, total_steps)
    milestones = _milestones(c["milestones"], total_steps, to_steps) if name == "step" else ()
    rest = max(total_steps - warmup, 1)

    def schedule(step):
        step = jnp.asarray(step).astype(float)  # int32 / int would be float32 under x64 too
        scale = 1.0
        if name == "step":
            scale = c["factor"] ** sum(jnp.where(step >= milestone, 1, 0) for milestone in milestones)
        elif name == "cosine":
            done = jnp.clip((step - warmup) / rest, 0.0, 1.0)
            scale = c["final"] + (1 - c["final"]) * 0.5 * (1 + jnp.cos(math.pi * done))
        if warmup:
            scale = scale * jnp.minimum((step + 1) / warmup, 1.0)
        return jnp.asarray(learning_rate * scale)

    return schedule


def match(params: Any, patterns: Sequence[str]) -> Any:
    """Which parameters the regular expressions name: a pytree of bool like `params`.

    A parameter is named when an expression matches its whole path, keys joined by "/"
    (``"block1/conv/kernel"``).

    Raises:
      ValueError: an expression matches no parameter; lists some of the paths there are.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in paths):
            shown = ", ".join(paths[:8]) + (f", … ({len(paths)} in all)" if len(paths) > 8 else "")
            raise ValueError(
                f"{pattern!r} matches no whole parameter path ('.*kernel' is all kernels); there are {shown}"
            )
    return treedef.unflatten([any(re.fullmatch(pattern, path) for pattern in patterns) for path in paths])


def _clip(max_norm) -> optax.GradientTransformation:
    """torch.nn.utils.clip_grad_norm_: optax's clipping has no 1e-6 and so differs in the seventh digit."""

    def update(updates, state, params=None):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.global_norm(updates) + 1e-6))
        if isinstance(max_norm, jax.Array):  # one member of a sweep may have clipping off
            scale = jnp.where(max_norm > 0, scale, 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _add_decay(weight_decay, patterns: Sequence[str]) -> optax.GradientTransformation:
    def init(params):
        match(params, patterns)  # a mistyped expression fails here, also while the decay is 0
        return optax.EmptyState()

    def update(updates, state, params=None):
        if _is_zero(weight_decay):
            return updates, state
        if params is None:
            raise ValueError("weight decay needs the parameters: call update(gradients, state, params)")

        def add(g, p, decayed):
            return g + (weight_decay * p).astype(g.dtype) if decayed else g

        return jax.tree.map(add, updates, params, match(params, patterns)), state

    return optax.GradientTransformation(init, update)


def _milestones(durations: Sequence[str], total_steps: int, to_steps: Callable[[str], int]) -> tuple[int, ...]:
    if isinstance(durations, str) or not durations:
        raise ValueError(
            f"schedule 'step' needs milestones, a tuple such as ('40 epochs', '60 epochs'), not {durations!r}"
        )
    milestones = tuple(map(to_steps, durations))
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise ValueError(f"milestones must increase: {tuple(durations)} are steps {milestones}")
    for text, milestone in zip(durations, milestones, strict=True):
        if milestone >= total_steps:
            logging.warning(
                "milestone %r (step %d) is not reached: training has %d steps",
                text,
                milestone,
                total_steps,
            )
    return milestones


def _patterns(mask) -> tuple[str, ...]:
    if isinstance(mask, str):
        raise ValueError(f"decay_mask must be a tuple of regular expressions, such as ({mask!r},), not a string")
    for pattern in mask:
        try:
            re.compile(pattern)
        except re.error as e:
            raise ValueError(f"decay_mask: {pattern!r} is not a regular expression: {e}") from e
    return tuple(mask)


def _read(config, required: Sequence[str], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    given = dict(config.items())
    names = (*required, *defaults)
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"{what}: unknown field {', '.join(unknown)}; the fields are {', '.join(names)}")
    if missing := [key for key in required if key not in given]:
        raise ValueError(f"{what}: missing {', '.join(missing)}")
    return {**defaults, **given}


def _check(c: Mapping[str, Any], key: str, below: float = math.inf) -> None:
    value = c[key]
    if isinstance(value, jax.Array):  # possibly traced: its value is not known here
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < below:
        limits = "at least 0" if below == math.inf else f"from 0 to below {below}"
        raise ValueError(f"{key} must be a number, {limits}, not {value!r}")


def _known(name: str, names: Sequence[str], what: str) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(names)}")


def _is_zero(x) -> bool:
    """Known to be zero while tracing: a traced number never is."""
    return isinstance(x, numbers.Real) and x == 0
