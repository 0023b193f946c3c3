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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging

from launch.stages import about, is_number, require, require_known, stackable
from launch.training import duration
from launch.training.accumulation import Differentiated
from launch.training.program import LOSS

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine")

Rate = Callable[[Any], jax.Array]
ToSteps = Callable[[str], int]


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step (the number of updates made before, from 0).

    Attributes:
      name: "constant"; "step", multiplied by `factor` from every milestone on; "cosine", half a period from the end of
        the warm-up to the end of training, down to `final` times the learning rate.
      warmup: linear from learning_rate / w at step 0 to the full rate at w - 1.
      milestones: durations from the start of training (the warm-up included), increasing.
      factor, final: see `name`.
    """

    name: str = "constant"
    warmup: str = "0 steps"
    milestones: tuple[str, ...] = ()
    factor: float = stackable(0.1, argument=False)
    final: float = stackable(0.0, argument=False)

    def __post_init__(self) -> None:
        require_known(self, "name", SCHEDULES)
        for name in ("factor", "final"):
            _require_number(self, name)
        if self.name == "step" and (isinstance(self.milestones, str) or not self.milestones):
            require(False, self, "milestones", "'step' needs a tuple such as ('40 epochs', '60 epochs')")
        duration.check(self, "warmup", "milestones")

    def rate(self, learning_rate: Any, *, total_steps: int, to_steps: ToSteps) -> Rate:
        """`step -> learning rate`.

        Args:
          learning_rate: number or traced scalar.
          total_steps: steps of the whole training, the end of the cosine.
          to_steps: turns a duration such as "5 epochs" into steps.

        Raises:
          SettingError: milestones that do not increase.
        """
        with about("warmup"):
            warmup = to_steps(self.warmup)
        if warmup and warmup >= total_steps:
            logging.warning("warm-up %r takes %d of %d steps: none is left after it", self.warmup, warmup, total_steps)
        milestones = self._milestones(total_steps, to_steps) if self.name == "step" else ()
        rest = max(total_steps - warmup, 1)

        def rate(step):
            step = jnp.asarray(step).astype(float)  # int32 / int would be float32 under x64 too
            scale = 1.0
            if self.name == "step":
                scale = self.factor ** sum(jnp.where(step >= milestone, 1, 0) for milestone in milestones)
            elif self.name == "cosine":
                done = jnp.clip((step - warmup) / rest, 0.0, 1.0)
                scale = self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(math.pi * done))
            if warmup:
                scale = scale * jnp.minimum((step + 1) / warmup, 1.0)
            return jnp.asarray(learning_rate * scale)

        return rate

    def _milestones(self, total_steps: int, to_steps: ToSteps) -> tuple[int, ...]:
        with about("milestones"):
            milestones = tuple(map(to_steps, self.milestones))
        increasing = all(later > earlier for earlier, later in itertools.pairwise(milestones))
        require(increasing, self, "milestones", f"milestones must increase; they are at steps {milestones}")
        for text, milestone in zip(self.milestones, milestones, strict=True):
            if milestone >= total_steps:
                logging.warning(
                    "milestone %r (step %d) is never reached: training has %d steps", text, milestone, total_steps
                )
        return milestones


@dataclass(frozen=True)
class Optimizer:
    """An optimiser and its learning-rate schedule; defaults are PyTorch's.

    Attributes:
      name: sgd, adam or adamw; fields of the others are ignored.
      learning_rate, weight_decay: see the module's docstring.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
      momentum, nesterov: sgd only.
      b1, b2, eps: adam and adamw only.
      decay_mask: regular expressions over parameter paths such as "conv1/kernel". A parameter whose whole path one of
        them matches is decayed; (".*",) decays all, as PyTorch does, () none.
      schedule: of the learning rate.
    """

    name: str
    learning_rate: float = stackable()
    weight_decay: float = stackable()
    clip_norm: float = stackable(0.0, off_at_zero=True)
    momentum: float = stackable(0.0, off_at_zero=True, argument=False)
    nesterov: bool = False
    b1: float = stackable(0.9, argument=False)
    b2: float = stackable(0.999, argument=False)
    eps: float = stackable(1e-8, argument=False)
    decay_mask: tuple[str, ...] = (".*",)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        require_known(self, "name", OPTIMIZERS)
        for name in ("learning_rate", "weight_decay", "momentum", "eps", "clip_norm"):
            _require_number(self, name)
        for name in ("b1", "b2"):
            _require_number(self, name, below=1)
        if self.name == "sgd" and self.nesterov:
            require(not _is_zero(self.momentum), self, "momentum", "nesterov=True needs a momentum above 0")
        if isinstance(self.decay_mask, str):
            example = f"({self.decay_mask!r},)"
            require(False, self, "decay_mask", f"must be a tuple of regular expressions, such as {example}")
        for pattern in self.decay_mask:
            try:
                re.compile(pattern)
            except re.error as error:
                require(False, self, "decay_mask", f"{pattern!r} is not a regular expression: {error}")

    def create(self, *, total_steps: int, to_steps: ToSteps) -> tuple[optax.GradientTransformation, Rate]:
        """The optimiser, and its learning rate as a function of the step.

        Args:
          total_steps: steps of the whole training, the end of the cosine.
          to_steps: turns a duration such as "5 epochs" into steps (`launch.training.duration.to_steps` with its sizes
            bound).

        Returns:
          `(transformation, rate)`. The transformation's `init` raises ValueError if a regular expression in
          `decay_mask` matches no parameter; its `update` needs the parameters.
        """
        rate = self.schedule.rate(self.learning_rate, total_steps=total_steps, to_steps=to_steps)
        decay = _add_decay(self.weight_decay, self.decay_mask)
        parts = [] if _is_zero(self.clip_norm) else [_clip(self.clip_norm)]
        if self.name == "sgd":
            parts.append(decay)
            if not _is_zero(self.momentum):
                parts.append(optax.trace(decay=self.momentum, nesterov=self.nesterov))
        else:
            moments = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
            parts += [decay, moments] if self.name == "adam" else [moments, decay]
        parts.append(optax.scale_by_learning_rate(rate))
        return optax.chain(*parts), rate


def match(params: Any, patterns: Sequence[str]) -> Any:
    """Which parameters the regular expressions select: a pytree of bool like `params`.

    A parameter is selected when an expression matches its whole path, keys joined by "/"
    (``"block1/conv/kernel"``).

    Raises:
      ValueError: an expression matches no parameter; the error lists some of the valid paths.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in paths):
            shown = ", ".join(paths[:8]) + (f", … ({len(paths)} in all)" if len(paths) > 8 else "")
            raise ValueError(
                f"{pattern!r} matches no whole parameter path ('.*kernel' matches all kernels); paths: {shown}"
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
        match(params, patterns)  # a mistyped expression fails here, even while the decay is 0
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


def _require_number(owner: Any, name: str, below: float = math.inf) -> None:
    value = getattr(owner, name)
    if isinstance(value, jax.Array):  # possibly traced: its value is not known here
        return
    limits = "at least 0" if below == math.inf else f"from 0 to below {below}"
    require(is_number(value) and 0 <= value < below, owner, name, f"must be a number, {limits}")


def _is_zero(x) -> bool:
    """Known to be zero while tracing: a traced number never is."""
    return isinstance(x, numbers.Real) and x == 0


def descend(
    differentiated: Differentiated,
    params: Any,
    optimizer: optax.GradientTransformation,
    opt_state: optax.OptState,
    axis_name: str | None = None,
) -> tuple[Any, optax.OptState, Any, dict[str, jax.Array]]:
    """One update down a gradient, pure.

    Args:
      differentiated: `params -> ((loss, aux), gradients)`, of the parameters that are trained; see
        `launch.training.accumulation`.
      params: before the update.
      optimizer: whose state is `opt_state`.
      opt_state: before the update.
      axis_name: the mesh axis to average gradients, loss and aux over; None where the batch is global.

    Returns:
      Parameters and optimiser state after the update, aux, and {"loss", "gradient_norm"}.
    """
    (loss, aux), gradients = differentiated(params)
    if axis_name is not None:
        gradients, loss, aux = jax.lax.pmean((gradients, loss, aux), axis_name)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    logs = {LOSS: loss, "gradient_norm": optax.global_norm(gradients)}
    return optax.apply_updates(params, updates), opt_state, aux, logs
