"""Attention, and where cuDNN computes it: in half precision on NVIDIA's GPUs, without ever storing the scores."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from clip_jax.config import HALF, ClipConfig

_WIDEST, _MULTIPLE = 128, 8  # of a head, for cuDNN


def fastest(config: ClipConfig, devices: Iterable[Any]) -> ClipConfig:
    """The config with the attention that suits the JAX devices that it will be computed on."""
    widths = [tower.width // tower.heads for tower in (config.image, config.text)]
    fits = config.dtype in HALF and all(width <= _WIDEST and width % _MULTIPLE == 0 for width in widths)
    suits = fits and all(map(_is_recent, devices)) and has_cudnn()
    return replace(config, attention="cudnn" if suits else "xla")


def _is_recent(device: Any) -> bool:
    """Whether it is an NVIDIA GPU for which cuDNN has this kernel: from Ampere on."""
    return device.platform == "gpu" and float(getattr(device, "compute_capability", 0)) >= 8


@cache
def has_cudnn() -> bool:
    """Whether JAX finds cuDNN on this machine."""
    shape = jax.ShapeDtypeStruct((1, 2, 1, _MULTIPLE), jnp.bfloat16)
    try:
        jax.eval_shape(partial(jax.nn.dot_product_attention, implementation="cudnn"), shape, shape, shape)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def plain(qkv: jax.Array, heads: int, *, causal: bool) -> jax.Array:
    """qkv (b, n, 3, w) -> (b, n, w): softmax(q k / sqrt(head width)) v in every head, weights in float32 at least."""
    b, n, _, width = qkv.shape
    # (b, h, n, d): plain batches of matrices, which XLA multiplies nearly twice as fast on CPUs.
    q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, heads, -1), (2, 3), (0, 2))
    wide = jnp.promote_types(qkv.dtype, jnp.float32)
    scores = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=wide) * q.shape[-1] ** -0.5
    if causal:
        scores = jnp.where(jnp.tri(n, dtype=bool), scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    return jnp.matmul(weights, v).swapaxes(1, 2).reshape(b, n, width)


def fused(qkv: jax.Array, heads: int, *, causal: bool, implementation: Literal["cudnn", "xla"] = "cudnn") -> jax.Array:
    """As `plain`, by `jax.nn.dot_product_attention`.

    cuDNN's gradients need an even number of tokens: an odd one gets another, which no token sees.
    """
    b, n, _, width = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, heads, -1), 2, 0)
    lengths = None
    if n % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = None if causal else jnp.full((b,), n, jnp.int32)  # causal: the last token is seen by itself alone
    out = jax.nn.dot_product_attention(
        *(q, k, v),
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return out[:, :n].reshape(b, n, width)
