"""Gradients of a batch that is computed in parts, one after the other, so that memory holds the activations of one.

A step is written as a function of (parameters, rows), and `Parts` says how many parts each device's share of the rows
has. With one part the gradients are those of `jax.value_and_grad`, and nothing else is compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from launch.stages import require, require_number

Differentiated = Callable[[Any], tuple[tuple[jax.Array, Any], Any]]


class MeanOverRows(Protocol):
    """(parameters, rows) -> (loss, aux): the means over the rows."""

    def __call__(self, params: Any, rows: Any, /) -> tuple[jax.Array, Any]: ...


class EncodeRows(Protocol):
    """(parameters, rows) -> what the loss compares, arrays (b, …)."""

    def __call__(self, params: Any, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class Parts:
    """How a batch is divided.

    Attributes:
      count: parts of each device's share.
      groups: devices over which the rows are spread; 1 where they are those of one device, as under `pmap`.
    """

    count: int = 1
    groups: int = 1

    def along(self, axis_name: str | None) -> "Parts":
        """The same for a step that sees one device's rows, on a mapped axis; None for one that sees all."""
        return self if axis_name is None else replace(self, groups=1)

    def divide(self, rows: Any) -> Any:
        """(b, …) -> (count, b / count, …): a part has rows of every device, and no row changes its device.

        Raises:
          ValueError: the rows do not divide.
        """

        def divided(x: jax.Array) -> jax.Array:
            if len(x) % (self.groups * self.count):
                raise ValueError(
                    f"a batch of {len(x)} does not divide over {self.groups} devices and {self.count} parts "
                    "(accumulation)"
                )
            x = x.reshape(self.groups, self.count, -1, *x.shape[1:]).swapaxes(0, 1)
            return x.reshape(self.count, -1, *x.shape[3:])

        return jax.tree.map(divided, rows)

    def join(self, parts: Any) -> Any:
        """The inverse: (count, b / count, …) -> (b, …), in the order of the batch."""

        def joined(x: jax.Array) -> jax.Array:
            x = x.reshape(self.count, self.groups, -1, *x.shape[2:]).swapaxes(0, 1)
            return x.reshape(-1, *x.shape[3:])

        return jax.tree.map(joined, parts)


WHOLE = Parts()


def check(owner: Any, batch_size: int, shards: int, name: str = "batch_size") -> None:
    """Validate `owner.accumulation` for batches over so many devices.

    Raises:
      SettingError: it is no number of parts, or a device's share does not divide into them.
    """
    require_number(owner, "accumulation", least=1)
    problem = f"{name}={batch_size} does not divide over {shards} devices and as many parts"
    require(batch_size % (owner.accumulation * shards) == 0, owner, "accumulation", problem)


def differentiate(objective: MeanOverRows, rows: Any, parts: Parts = WHOLE) -> Differentiated:
    """Loss, aux and gradients of the mean of an objective over the parts.

    They are those of all rows at once where loss and aux are means over rows that know nothing of each other. What
    rows of one part have in common is of that part: the statistics of batch norm, negatives of a contrast. Aux is the
    mean of the parts', so that running statistics move once, by the mean of the parts' statistics.

    Args:
      objective: (params, rows) -> (loss, aux), floats.
      rows: the batch, arrays (b, …).
      parts: how it is divided.

    Returns:
      `params -> ((loss, aux), gradients)`; sums of gradients are at least float32.
    """
    whole = jax.value_and_grad(objective, has_aux=True)
    if parts.count == 1:
        return lambda params: whole(params, rows)

    def differentiated(params: Any) -> tuple[tuple[jax.Array, Any], Any]:
        def add(total: Any, part: Any) -> tuple[Any, Any]:
            values, gradients = whole(params, part)
            return jax.tree.map(jnp.add, total, gradients), values

        total, values = jax.lax.scan(add, _zeros(params), parts.divide(rows))
        mean = lambda x, p: (x / parts.count).astype(p.dtype)
        return jax.tree.map(lambda x: x.mean(0), values), jax.tree.map(mean, total, params)

    return differentiated


def contrast(encode: EncodeRows, loss_of: MeanOverRows, rows: Any, parts: Parts = WHOLE) -> Differentiated:
    """The same for a loss that compares all rows with each other: the gradients are those of all at once.

    All rows are encoded first, without gradients; then the gradients of the loss with respect to what came out go back
    through one part after the other, which is encoded again (Gao et al. 2021, arXiv 2101.06983).

    Args:
      encode: (params, rows) -> arrays (b, …), each row's of that row alone.
      loss_of: (params, encoded) -> (loss, aux), of the whole batch in its order.
      rows, parts: as for `differentiate`.
    """
    if parts.count == 1:
        return lambda params: jax.value_and_grad(lambda p: loss_of(p, encode(p, rows)), has_aux=True)(params)

    def differentiated(params: Any) -> tuple[tuple[jax.Array, Any], Any]:
        divided = parts.divide(rows)
        encoded = jax.lax.map(lambda part: encode(params, part), divided)
        compare = jax.value_and_grad(lambda p, e: loss_of(p, parts.join(e)), argnums=(0, 1), has_aux=True)
        values, (own, cotangents) = compare(params, encoded)

        def pull(total: Any, part: Any) -> tuple[Any, None]:
            rows, cotangent = part
            _, back = jax.vjp(lambda p: encode(p, rows), params)
            return jax.tree.map(jnp.add, total, back(cotangent)[0]), None

        begin = jax.tree.map(lambda zero, g: zero + g, _zeros(params), own)
        total, _ = jax.lax.scan(pull, begin, (divided, cotangents))
        return values, jax.tree.map(lambda x, p: x.astype(p.dtype), total, params)

    return differentiated


def _zeros(params: Any) -> Any:
    """Sums of gradients to begin with."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
