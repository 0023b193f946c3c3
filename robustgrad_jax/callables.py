"""Functions of a network as pytrees: their weights are arguments of the compiled program, not constants in it.

Attacks, curves and sensitivities compile the functions they are given. A closure over the weights bakes them into
the program, which is then compiled again for every checkpoint; a `jax.tree_util.Partial` carries them as leaves. So
`Partial(attributions.gradient, logits_of(model, variables))` is an attribution that compiles once per model. Plain
functions work as well; they compile once per function object.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial

Result = TypeVar("Result")


class LogitsFn(Protocol):
    """A network in evaluation mode: x (n, h, w, c), normalised -> logits (n, classes)."""

    def __call__(self, x: Array, /) -> Array: ...


class AttributionFn(Protocol):
    """An attribution of a network: x (n, h, w, c) and y int (n,) -> (n, h, w, c) or (n, h, w)."""

    def __call__(self, x: Array, y: Array, /) -> Array: ...


@dataclasses.dataclass(frozen=True)
class _Logits:
    """Equal for equal models, so that two calls of `logits_of` share one program."""

    model: nn.Module

    def __call__(self, variables, x):
        return self.model.apply(variables, x)[0]


def logits_of(model: nn.Module, variables: Any) -> Partial:
    """logits_fn(x) -> (n, classes) of a model in evaluation mode.

    Args:
      model: linen module, (variables, x) -> (logits, out).
      variables: the model's, with its batch statistics.
    """
    return Partial(_Logits(model), variables)


def as_pytree(fn: Callable) -> Partial:
    """`fn` as an argument of a jitted function: a Partial unchanged, any other function by its identity."""
    return fn if isinstance(fn, Partial) else Partial(fn)


def check_classes(y: Array, logits: Any) -> None:
    """Raise ValueError if a class of y, where it can be read, has no logit in (n, classes), an array or its shape."""
    if len(logits.shape) != 2:
        raise ValueError(f"logits must be (n, classes), got shape {logits.shape}")
    if _can_be_read(y):
        classes = np.asarray(y)
        low, high = classes.min(), classes.max()
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(f"y holds classes {low} to {high}, but there are {logits.shape[-1]} logits")


def check_labels(
    x: Array, y: Array, logits_fn: Callable[..., Array] | None, attribution_fn: Callable[..., Array] | None = None
) -> None:
    """Raise ValueError if a label of x, where it can be read, is a class that the network does not have.

    Inside a jit labels cannot be read; there the gradients and values of such a class are NaN.

    Args:
      x: (n, …). y: int (n,).
      logits_fn: tells how many classes there are.
      attribution_fn: traced with the labels where there is no logits_fn; those of `robustgrad_jax.attributions` look.
    """
    if not _can_be_read(y):
        return
    if logits_fn is not None:
        check_classes(y, jax.eval_shape(logits_fn, x))
    elif attribution_fn is not None:
        jax.eval_shape(lambda x: attribution_fn(x, y), x)


def _can_be_read(y: Array) -> bool:
    return not isinstance(y, Tracer) and np.size(y) > 0 and getattr(y, "is_fully_addressable", True)


def map_chunks(fn: Callable[[Array], Result], count: int, chunk: int) -> Result:
    """fn(0 … count - 1) in chunks: a loop over ceil(count / chunk) calls, each with `chunk` int32 indices.

    Args:
      fn: (chunk,) -> pytree of (chunk, …) arrays; surplus indices of the last call repeat the last one, and their
        results are dropped.
      chunk: how many indices at a time; memory grows with it.

    Returns:
      The pytree of (count, …) arrays.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    chunk = min(chunk, count)
    calls = -(-count // chunk)
    indices = jnp.minimum(jnp.arange(calls * chunk), count - 1).reshape(calls, chunk)
    if calls == 1:
        return fn(indices[0])
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], jax.lax.map(fn, indices))
