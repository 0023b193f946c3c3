"""Local gradient alignment (Joo et al., AAAI 2023) and the Hessian-norm baseline (Dombrowski et al. 2022).

Everything here is a pure function of a `logits_fn(params, x) -> (logits, aux)`: x (n, h, w, c) normalised, logits
(n, k), aux any pytree (batch statistics, say). g(x) is the *logit* of the true class, neither a probability nor a
loss. With batch norm in training mode an image's logit leans on the whole batch; as in the original, the gradient is
that of the batch's sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from launch.training import keys
from robustgrad_jax import metrics

LogitsFn = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
NOISE_KINDS = ("uniform", "gaussian", "gradient", "gradient_sign")


def input_gradient(logits_fn: LogitsFn, params, x, y) -> tuple[jax.Array, jax.Array, Any]:
    """∇g(x), the input gradient of the true-class logit, with the pass that it comes from.

    Args:
      logits_fn: (params, x) -> (logits, aux).
      x: (n, h, w, c). y: int (n,).

    Returns:
      gradient (n, h, w, c), logits (n, k), aux.
    """
    logits, pullback, aux = jax.vjp(lambda x: logits_fn(params, x), x, has_aux=True)
    (gradient,) = pullback(jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype))
    return gradient, logits, aux


def hessian_vector_product(logits_fn: LogitsFn, params, x, y, direction):
    """∇g(x) and Hv of the true-class logit, forward over reverse.

    Returns:
      gradient, product (n, h, w, c); logits (n, k); aux.
    """

    def gradient_of(x):
        gradient, logits, aux = input_gradient(logits_fn, params, x, y)
        return gradient, (logits, aux)

    gradient, product, (logits, aux) = jax.jvp(gradient_of, (x,), (direction,), has_aux=True)
    return gradient, product, logits, aux


def squared_norm(a: jax.Array) -> jax.Array:
    """Squared ℓ2 norm over pixels and channels: (n, …) -> (n,)."""
    return jnp.sum(jnp.square(a), axis=tuple(range(1, a.ndim)))


def distances(source: jax.Array, perturbed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Batch means of the squared ℓ2 distance and of the cosine distance (1 - cos)/2 of two gradients (n, …)."""
    l2 = jnp.mean(squared_norm(source - perturbed))
    return l2, jnp.mean(metrics.cosine_distance(source, perturbed))


def gradient_alignment(
    logits_fn: LogitsFn,
    params,
    x: jax.Array,
    y: jax.Array,
    noise: jax.Array | Callable[[jax.Array], jax.Array],
    *,
    detach_source: bool = True,
    variant: str = "difference",
):
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
    if variant not in ("difference", "jvp"):
        raise ValueError(f"unknown variant {variant!r} of gradient alignment; there are difference, jvp")
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


def hessian_norm(logits_fn: LogitsFn, params, x, y, direction) -> jax.Array:
    """mean ‖Hv‖², H the Hessian of the true-class logit, one direction v an image (Dombrowski et al. 2022).

    With v ~ N(0, I) its expectation is the mean squared Frobenius norm of H.

    Args:
      logits_fn, params, x, y: as in `gradient_alignment`.
      direction: v, of x's shape.

    Returns:
      A scalar, exact under `jax.grad` with respect to params.
    """
    return jnp.mean(squared_norm(hessian_vector_product(logits_fn, params, x, y, direction)[1]))


def draw_noise(kind: str, key: jax.Array, slots: jax.Array, shape, radius, dtype=jnp.float32):
    """The perturbation z of x' = x + z.

    Args:
      kind: "uniform" U(-1, 1)·radius, "gaussian" N(0, 1)·radius, "gradient" and "gradient_sign": the source gradient or
        its sign over its own ℓ2 norm, times radius.
      key: scalar key; slots: int (n,), each example's place in the global batch.
      shape: (n, h, w, c).
      radius: in x's units, scalar or per channel: ε / (255 σ).

    Returns:
      z of `shape`, or for the two gradient kinds a function of the source gradient that gives it.
    """
    if kind == "uniform":
        each = lambda k: jax.random.uniform(k, shape[1:], dtype, -1.0, 1.0)
    elif kind == "gaussian":
        each = lambda k: jax.random.normal(k, shape[1:], dtype)
    elif kind in ("gradient", "gradient_sign"):

        def along(gradient):
            direction = jnp.sign(gradient) if kind == "gradient_sign" else gradient
            norm = jnp.sqrt(squared_norm(direction))[:, None, None, None]
            return radius * direction / (norm + 1e-8)

        return along
    else:
        raise ValueError(f"unknown noise {kind!r}; there are {', '.join(NOISE_KINDS)}")
    return radius * jax.vmap(each)(keys.per_example(key, slots))
