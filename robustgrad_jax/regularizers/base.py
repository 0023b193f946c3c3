"""What the regularisers share: their contract, their units, the cross-entropy, and the inner maximisation."""

import dataclasses
import math
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from launch.stages import require_number
from robustgrad_jax.gradients import Ball, Draws, Forward

PIXEL_RANGE = 255  # the largest ε, in levels of a pixel
Penalised = tuple[Array, Array, Any, dict[str, Array]]


class Penalty(Protocol):
    """What is added to the cross-entropy; a frozen dataclass whose fields are its section of the config.

    Args:
      logits_fn: (params, x) -> (logits, aux).
      params: what the value is differentiated with respect to, exactly, by `jax.grad`.
      x: (n, h, w, c), normalised. y: int (n,).
      draws: of all that is random.
      std: per channel, what the images were divided by.

    Returns:
      (value, logits, aux, parts): the weighted scalar; logits (n, k) and aux of the clean pass, so that the
      cross-entropy needs no other; the terms without their weights, for the log.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, logits_fn: Forward, params: Any, x: Array, y: Array, draws: Draws, *, std: Any) -> Penalised: ...


class Maximized(Protocol):
    """What an inner maximisation increases: (params, moved (n, …)) -> a scalar, the sum over the batch."""

    def __call__(self, params: Any, moved: Array, /) -> Array: ...


def in_network_units(radius: Any, x: Array, std: Any) -> Array:
    """ε of 255 levels of a pixel as a length per channel in the network's input: ε / (255 σ)."""
    return radius / (255 * jnp.asarray(std, x.dtype))


def check_numbers(penalty: Any, *, positive: tuple[str, ...] = (), **at_least: int) -> None:
    """Validate the numbers of a regulariser; traced ones pass.

    Args:
      penalty: a dataclass; its stackable fields must be at least 0, its radius at most the range of pixels.
      positive: fields that must be above 0.
      at_least: field -> its smallest value, for other fields.

    Raises:
      SettingError: a value is no number, or out of range.
    """
    stackable = {field.name: 0 for field in dataclasses.fields(penalty) if field.metadata.get("stackable")}
    for name, least in (stackable | at_least).items():
        value, most = getattr(penalty, name), PIXEL_RANGE if name == "radius" else math.inf
        if isinstance(value, jax.Array):
            continue
        if name in positive:
            require_number(penalty, name, above=0, most=most)
        else:
            require_number(penalty, name, least=least, most=most)


def ascend(
    objective: Maximized, params: Any, x: Array, ball: Ball, draws: Draws, *, steps: int, step_size: Any
) -> Array:
    """Sign ascent in the ball around x from a random or given start, unrolled; a constant to the outer derivative.

    Args:
      objective: what is maximised.
      params: of the network, constants here.
      x: (n, …).
      ball: where the result may be.
      draws: of the start, U(−1, 1)·radius; or the start itself.
      steps: of the ascent; with 0 the result is the start.
      step_size: in the units of `ball.radius`; None for 2 · radius / steps.

    Returns:
      The images after the last step, of x's shape.
    """
    local = ball.in_units_of(x)
    step = 2 * local.radius / max(steps, 1) if step_size is None else ball.length(x, "step_size", step_size)
    start = draws.perturbation(x, local.radius)
    # Frozen before the loop, not only after it: the outer derivative then never traces the inner one.
    frozen, x = jax.lax.stop_gradient((params, x))
    moved = x + start
    for _ in range(steps):
        direction = jnp.sign(jax.grad(objective, argnums=1)(frozen, moved))
        moved = local.project(moved + step * direction, x)
    return jax.lax.stop_gradient(moved)


def cross_entropy(logits: Array, y: Array) -> Array:
    """−log softmax(logits)_y of each example: (n, k), (n,) -> (n,)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)[:, 0]


def loss_gradient(logits_fn: Forward, params: Any, x: Array, y: Array) -> tuple[Array, Array, Any]:
    """Input gradient of the batch's summed cross-entropy (n, …), with logits and aux of the pass."""

    def total(x):
        logits, aux = logits_fn(params, x)
        return jnp.sum(cross_entropy(logits, y)), (logits, aux)

    gradient, (logits, aux) = jax.grad(total, has_aux=True)(x)
    return gradient, logits, aux
