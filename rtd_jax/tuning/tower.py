"""Both of RTD's queries of an example from one pass through the text tower, and what all examples share only once.

The queries of a batch are

    <start> a photo of [s_i] that <modification i> <end>        composed
    <start> a photo of [s_i] <end>                              plain

Attention is causal, so the words before the pseudo token have the same states in every text of the batch, and the plain
query differs from the composed one's beginning by its end token alone. The tower therefore sees the prefix once, and of
each example its tokens from the pseudo token on and one more end token, which attends to the prefix, the pseudo token
and itself. The results are those of `clip_jax.model.encode_text` on all the texts, up to rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax import model
from clip_jax.config import ClipConfig
from rtd_jax.text.compose import Prompt


class _QueryBlock(model.ClipBlock):
    """A block over the tokens of g groups, x (g, p + m n, w): p shared ones, then n of each of m examples.

    Attributes:
      prefix: p.
      rows: m.
      plain: whether an example's last token is the plain query's end.
    """

    prefix: int
    rows: int
    plain: bool

    def attend(self, qkv: jax.Array) -> jax.Array:
        """qkv (g, p + m n, 3, w) -> (g, p + m n, w)."""
        groups, _, _, width = qkv.shape
        rest = qkv[:, self.prefix :].reshape(groups, self.rows, -1, 3, self.tower.heads, width // self.tower.heads)
        n = rest.shape[2]
        q, k, v = jnp.moveaxis(rest, (3, 4), (0, 2))  # (g, h, m, n, d) each
        flat = lambda x: x.reshape(groups, self.tower.heads, self.rows * n, -1)
        deep = lambda x: x.reshape(groups, self.tower.heads, self.rows, n, -1)
        shared = qkv[:, : self.prefix].reshape(groups, self.prefix, 3, self.tower.heads, -1)
        _, shared_k, shared_v = jnp.moveaxis(shared, (2, 3), (0, 2))  # (g, h, p, d) each
        wide = jnp.promote_types(self.dtype, jnp.float32)
        to_shared = jnp.matmul(flat(q), shared_k.swapaxes(2, 3), preferred_element_type=wide)
        to_own = jnp.matmul(q, k.swapaxes(3, 4), preferred_element_type=wide)
        to_own = jnp.where(_visible(n, self.plain), to_own, -jnp.inf)
        scores = jnp.concatenate([deep(to_shared), to_own], axis=-1) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores).astype(self.dtype)
        mixed = jnp.matmul(weights[..., self.prefix :], v)
        mixed += deep(jnp.matmul(flat(weights[..., : self.prefix]), shared_v))
        mixed = jnp.moveaxis(mixed, 1, 3).reshape(groups, -1, width)
        return jnp.concatenate([super().attend(qkv[:, : self.prefix]), mixed], axis=1)


def _visible(n: int, plain: bool) -> jax.Array:
    """Which of an example's tokens behind the prefix each of them attends to: bool (n, n)."""
    causal = jnp.tri(n, dtype=bool)
    if not plain:
        return causal
    place = jnp.arange(n)
    return causal.at[-1].set((place == 0) | (place == n - 1))  # the plain query's end: the pseudo token and itself


def encode_queries(
    config: ClipConfig,
    params: dict[str, Any],
    ids: jax.Array,
    pseudo_tokens: jax.Array,
    *,
    prompt: Prompt,
    plain: bool = True,
    groups: int = 1,
) -> jax.Array:
    """Embeddings of the composed and the plain queries.

    Args:
      config: of the CLIP.
      params: of the text tower (the tree's "text").
      ids: int (b, t), of `rtd_jax.text.compose.tokenize`: each text begins with the prompt. Not checked here.
      pseudo_tokens: (b, w).
      prompt: what the texts begin with.
      plain: whether to encode the plain queries too.
      groups: parts of the batch that each compute the prefix for themselves. Give the number of devices over which
        the batch is spread, and nothing but the weights' gradients crosses them; the result does not depend on it.

    Returns:
      (b, 2, d) in float32, not normalised: composed, then plain; (b, 1, d) without `plain`.

    Raises:
      ValueError: shapes that do not fit, or a batch that does not divide into the groups.
    """
    tower, dtype, p = config.text, jnp.dtype(config.dtype), len(prompt.prefix)
    b, t = ids.shape
    if not p + 2 <= t <= tower.context_length or pseudo_tokens.shape != (b, tower.width) or b % groups:
        raise ValueError(
            f"ids (b, {p + 2} to {tower.context_length}), pseudo tokens (b, {tower.width}) and a b that divides into "
            f"{groups} groups are needed, got {ids.shape} and {pseudo_tokens.shape}"
        )
    rows, rest = b // groups, ids[:, p:]  # the prefix is the same in all texts
    places = jnp.arange(p, t)
    if plain:
        rest = jnp.concatenate([rest, jnp.full((b, 1), prompt.end_id, rest.dtype)], axis=1)
        places = jnp.append(places, p + 1)
    tokens, position = params["tokens"], params["position"].astype(dtype)
    x = jnp.concatenate([pseudo_tokens.astype(dtype)[:, None], tokens[rest[:, 1:]].astype(dtype)], axis=1)
    x += position[places]
    shared = tokens[jnp.array(prompt.prefix)].astype(dtype) + position[:p]
    shared = jnp.broadcast_to(shared, (groups, *shared.shape))
    x = model.laid(config, jnp.concatenate([shared, x.reshape(groups, -1, tower.width)], axis=1))
    blocks = model.looped(_QueryBlock, config, tower)(config, tower, True, False, p, rows, plain)
    x, _ = blocks.apply({"params": params["blocks"]}, x)
    x = x[:, p:].reshape(b, -1, tower.width)
    ends = model.end_positions(config, ids)[:, None] - p
    if plain:
        ends = jnp.concatenate([ends, jnp.full((b, 1), rest.shape[1] - 1, ends.dtype)], axis=1)
    return _pool(config, params, x, ends)


def _pool(config: ClipConfig, params: dict[str, Any], x: jax.Array, ends: jax.Array) -> jax.Array:
    """States x (b, n, w) at the ends (b, r), normalised and projected: (b, r, d)."""
    dtype = jnp.dtype(config.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    at_end = jnp.arange(x.shape[1]) == ends[..., None]
    pooled = jnp.where(at_end[..., None], x.astype(wide)[:, None], 0).sum(2)
    norm = nn.LayerNorm(epsilon=config.text.norm_eps, dtype=wide, use_fast_variance=False)
    pooled = norm.apply({"params": params["final_norm"]}, pooled)
    projection = nn.Dense(config.projection, use_bias=False, dtype=dtype)
    return jnp.asarray(projection.apply({"params": params["projection"]}, pooled)).astype(wide)
