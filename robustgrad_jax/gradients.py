"""Foundations of the package: input gradients, Hessian-vector products, noise, and the ball that it stays in.

g(x) is the *logit* of the true class, neither a probability nor a loss. With batch norm in training mode the logit of
an image depends on the whole batch; as in the code of Joo et al. 2023, the gradient is that of the sum over the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from launch.training import keys

NOISE_KINDS = ("uniform", "gaussian", "gradient", "gradient_sign")

Radius = float | Sequence[float] | Array  # a number, or one per channel
RandomKind = Literal["uniform", "gaussian"]  # those of `NOISE_KINDS` that need no gradient
AlongGradient = Callable[[Array], Array]  # source gradient (n, h, w, c) -> perturbation of the same shape


class Forward(Protocol):
    """A network as a function of its parameters.

    Args:
      params: any pytree.
      x: (n, h, w, c), normalised.

    Returns:
      logits (n, k), and aux, any pytree: batch statistics, say.
    """

    def __call__(self, params: Any, x: Array, /) -> tuple[Array, Any]: ...


def class_directions(y: Array, logits: Array) -> Array:
    """What a class's logit is differentiated by, (n, k): one-hot rows, and NaN for classes that do not exist.

    A row of zeros would give such a class an attribution of zeros, which nothing can change. Under jit, where labels
    cannot be looked at, NaN is what tells.
    """
    classes = logits.shape[-1]
    exists = (y >= 0) & (y < classes)
    return jnp.where(exists[:, None], jax.nn.one_hot(y, classes, dtype=logits.dtype), jnp.nan)


def of_classes(values: Array, y: Array) -> Array:
    """The value (n,) of each row's class y in (n, k); NaN for classes that do not exist."""
    picked = jnp.take_along_axis(values, y[:, None], axis=-1)[:, 0]  # of a negative class that from the end
    return jnp.where((y >= 0) & (y < values.shape[-1]), picked, jnp.nan)


def input_gradient(logits_fn: Forward, params: Any, x: Array, y: Array) -> tuple[Array, Array, Any]:
    """∇g(x), the input gradient of the true-class logit, with the pass that it comes from.

    Args:
      logits_fn: (params, x) -> (logits, aux).
      params: of the network.
      x: (n, h, w, c). y: int (n,).

    Returns:
      gradient (n, h, w, c), logits (n, k), aux.
    """
    logits, pullback, aux = jax.vjp(lambda x: logits_fn(params, x), x, has_aux=True)
    (gradient,) = pullback(class_directions(y, logits))
    return gradient, logits, aux


def hessian_vector_product(
    logits_fn: Forward, params: Any, x: Array, y: Array, direction: Array
) -> tuple[Array, Array, Array, Any]:
    """∇g(x) and Hv of the true-class logit, forward over reverse.

    Args:
      logits_fn, params, x, y: as in `input_gradient`.
      direction: v, of x's shape.

    Returns:
      gradient, product (n, h, w, c); logits (n, k); aux.
    """

    def gradient_of(x):
        gradient, logits, aux = input_gradient(logits_fn, params, x, y)
        return gradient, (logits, aux)

    gradient, product, (logits, aux) = jax.jvp(gradient_of, (x,), (direction,), has_aux=True)
    return gradient, product, logits, aux


def squared_norm(a: Array) -> Array:
    """Squared ℓ2 norm over pixels and channels: (n, …) -> (n,)."""
    return jnp.sum(jnp.square(a), axis=tuple(range(1, a.ndim)))


@overload
def draw_noise(
    kind: RandomKind, key: Array, slots: Array, shape: Sequence[int], radius: Any, dtype: Any = ...
) -> Array: ...
@overload
def draw_noise(
    kind: str, key: Array, slots: Array, shape: Sequence[int], radius: Any, dtype: Any = ...
) -> Array | AlongGradient: ...
def draw_noise(
    kind: str, key: Array, slots: Array, shape: Sequence[int], radius: Any, dtype: Any = jnp.float32
) -> Array | AlongGradient:
    """The perturbation z of x' = x + z.

    Args:
      kind: "uniform" U(-1, 1)·radius, "gaussian" N(0, 1)·radius, "gradient" and "gradient_sign": the source gradient or
        its sign over its own ℓ2 norm, times radius.
      key: scalar key.
      slots: int (n,), the place of each example in the global batch.
      shape: (n, h, w, c).
      radius: in x's units, scalar or per channel: ε / (255 σ).
      dtype: of z.

    Returns:
      z of `shape`, or for the two gradient kinds a function of the source gradient that gives it.

    Raises:
      ValueError: the kind is unknown; the message lists the valid ones.
    """
    if kind == "uniform":
        each = lambda k: jax.random.uniform(k, shape[1:], dtype, -1.0, 1.0)
    elif kind == "gaussian":
        each = lambda k: jax.random.normal(k, shape[1:], dtype)
    elif kind in ("gradient", "gradient_sign"):

        def along(gradient: Array) -> Array:
            direction = jnp.sign(gradient) if kind == "gradient_sign" else gradient
            norm = jnp.sqrt(squared_norm(direction))[:, None, None, None]
            return radius * direction / (norm + 1e-8)

        return along
    else:
        raise ValueError(f"unknown noise {kind!r}; valid names: {', '.join(map(repr, NOISE_KINDS))}")
    return radius * jax.vmap(each)(keys.per_example(key, slots))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
    """Where the random perturbations of a batch come from: each example's from the key and its own slot.

    Attributes:
      key: scalar key; None where nothing is drawn, or `start` is given.
      slots: int (n,), the place of each example in the data set or the global batch, so that its numbers do not depend
        on how it is divided; 0 … n-1 by default.
      start: perturbations to take instead of random ones, in x's units.
    """

    key: Array | None = None
    slots: Array | None = None
    start: Array | None = None

    def fold(self, number: int | Array) -> "Draws":
        """Other draws of the same examples, one for each number."""
        return Draws(jax.random.fold_in(self._key(), number), self.slots)

    @overload
    def noise(self, kind: RandomKind, x: Array, radius: Any) -> Array: ...
    @overload
    def noise(self, kind: str, x: Array, radius: Any) -> Array | AlongGradient: ...
    def noise(self, kind: str, x: Array, radius: Any) -> Array | AlongGradient:
        """`draw_noise` for x (n, …).

        Raises:
          ValueError: there is no key, or another number of slots than examples.
        """
        return draw_noise(kind, self._key(), self._slots(x), x.shape, radius, x.dtype)

    def signs(self, x: Array) -> Array:
        """+1 or −1 with equal chances, of the shape and type of x (n, …); errors as `noise`."""
        each = lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype)
        return jax.vmap(each)(keys.per_example(self._key(), self._slots(x)))

    def perturbation(self, x: Array, radius: Any) -> Array:
        """`start`, or a uniform draw from the ball of this radius: x's shape.

        Raises:
          ValueError: there is neither key nor start, or one of them has the wrong shape.
        """
        if self.start is None:
            return self.noise("uniform", x, radius)
        start = jnp.asarray(self.start, x.dtype)
        if start.shape != x.shape:
            raise ValueError(f"start must have x's shape {x.shape}, got {start.shape}")
        return start

    def _slots(self, x: Array) -> Array:
        slots = jnp.arange(len(x)) if self.slots is None else self.slots
        if jnp.shape(slots) != x.shape[:1]:
            raise ValueError(f"{x.shape[0]} images need as many slots (n,), got shape {jnp.shape(slots)}")
        return slots

    def _key(self) -> Array:
        if self.key is None:
            raise ValueError("this draws random numbers: pass Draws(key=…), or Draws(start=…) to use your own")
        return self.key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ball:
    """Where a perturbed image may be: an ℓ∞ ball around the image, within a range of values.

    Attributes:
      radius: in the images' normalised units; with `std` in pixel units, 1 being the range from black to white.
      std: per channel, what the images were divided by.
      value_range: (low, high) in the images' units, numbers or one per channel; None for no limits.
    """

    radius: Radius
    std: Radius | None = None
    value_range: tuple[Radius, Radius] | None = None

    def in_units_of(self, x: Array) -> "LocalBall":
        """The same ball in the units of x (n, …, c).

        Raises:
          ValueError: a radius that is not positive, or a number of channels that is not x's.
        """
        limits = self.value_range
        if limits is not None:
            low, high = limits
            limits = (_per_channel(x, "value_range", low), _per_channel(x, "value_range", high))
        return LocalBall(self.length(x, "radius", self.radius), limits)

    def length(self, x: Array, name: str, value: Radius) -> Array:
        """A length in the units of `radius`, such as a step size, as an array (c,) in the units of x.

        Args:
          x: images (n, …, c).
          name: of the length, for the error.
          value: the length.

        Raises:
          ValueError: as `in_units_of`.
        """
        scaled = _per_channel(x, name, value)
        if self.std is not None:
            scaled = scaled / _per_channel(x, "std", self.std)
        if not isinstance(scaled, Tracer):
            known = np.asarray(scaled)
            if not np.all((known > 0) & np.isfinite(known)):
                raise ValueError(f"{name} must be positive, got {known}")
        return scaled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LocalBall:
    """A `Ball` in the units of its images.

    Attributes:
      radius: (c,).
      value_range: (low, high), each (c,); None for no limits.
    """

    radius: Array
    value_range: tuple[Array, Array] | None

    def project(self, moved: Array, x: Array) -> Array:
        """`moved` brought back into the ball around x, then into the range."""
        return self.clip(jnp.clip(moved, x - self.radius, x + self.radius))

    def clip(self, moved: Array) -> Array:
        """`moved` brought back into the range of values."""
        return moved if self.value_range is None else jnp.clip(moved, *self.value_range)


def _per_channel(x: Array, name: str, value: Radius) -> Array:
    array = jnp.asarray(value, x.dtype)
    if array.shape not in ((), (1,), x.shape[-1:]):
        raise ValueError(f"{name} has shape {array.shape}; it must be one number or {x.shape[-1]}, one per channel")
    return jnp.broadcast_to(array, x.shape[-1:])
