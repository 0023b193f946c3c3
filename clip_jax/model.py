"""CLIP's two towers in Linen, and the pure functions that encode with them.

Parameters are a plain nested dict; the blocks of a tower are stacked on a leading axis of layers, over which one loop
(`jax.lax.scan`) runs:

    image/patch/kernel (p, p, 3, w)  image/class_token (w,)  image/position (1 + (s/p)^2, w)
    image/pre_norm, image/post_norm: scale, bias (w,)        image/projection/kernel (w, d)
    text/tokens (v, w)  text/position (c, w)  text/final_norm: scale, bias (w,)  text/projection/kernel (w, d)
    {image,text}/blocks: norm1, norm2: scale, bias (L, w);  qkv: kernel (L, w, 3, w), bias (L, 3, w);
        out: kernel (L, w, w);  up: kernel (L, w, m);  down: kernel (L, m, w);  each with its bias
    logit_scale (): logarithm of the inverse temperature

Architecture: Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clip_jax import attention
from clip_jax.config import ClipConfig, ImageTower, TextTower, Tower

Params = dict[str, Any]
Array = jax.Array | np.ndarray
Intermediates = dict[str, jax.Array]

_LENGTHS = (16, 24, 32, 48, 77)  # static text lengths: one compiled program each


class ClipActivation(Protocol):
    """Elementwise; any shape."""

    def __call__(self, x: jax.Array, /) -> jax.Array: ...


_ACTIVATIONS: dict[str, ClipActivation] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """`dtype`, but at least float32: for softmax, layer norms and pooling."""
    return jnp.promote_types(dtype, jnp.float32)


def _dense(
    features: int | tuple[int, ...], dtype: jnp.dtype, std: float, name: str, bias: bool = True
) -> nn.DenseGeneral:
    init = nn.initializers.normal(std)
    return nn.DenseGeneral(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


def _norm(eps: float, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=eps, dtype=_wide(dtype), use_fast_variance=False, name=name)


def laid(config: ClipConfig, x: jax.Array) -> jax.Array:
    """States (b, n, w), and their cotangents, where the config says."""
    return x if config.stream is None else jax.lax.with_sharding_constraint(x, config.stream)


class ClipBlock(nn.Module):
    """One pre-norm block: attention, then a perceptron, each added to its input."""

    config: ClipConfig
    tower: Tower
    causal: bool
    intermediates: bool

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """x (b, n, w) -> (x, x or None): the loop's carry, and its output if intermediates are requested."""
        tower, width = self.tower, self.tower.width
        attention_std, residual_std = width**-0.5, width**-0.5 * (2 * tower.layers) ** -0.5
        norm = partial(_norm, tower.norm_eps, self.dtype)
        h = norm("norm1")(x).astype(self.dtype)
        h = self.attend(_dense((3, width), self.dtype, attention_std, "qkv")(h))
        x = x + _dense(width, self.dtype, residual_std, "out")(h)
        h = norm("norm2")(x).astype(self.dtype)
        h = _dense(tower.mlp_width, self.dtype, (2 * width) ** -0.5, "up")(h)
        h = _ACTIVATIONS[tower.activation](h)
        x = laid(self.config, x + _dense(width, self.dtype, residual_std, "down")(h))
        return x, x if self.intermediates else None

    def attend(self, qkv: jax.Array) -> jax.Array:
        """qkv (b, n, 3, w) -> (b, n, w): softmax(q k / sqrt(head width)) v in every head."""
        attend = attention.fused if self.config.attention == "cudnn" else attention.plain
        return attend(qkv, self.tower.heads, causal=self.causal)


def looped(block: type[ClipBlock], config: ClipConfig, tower: Tower) -> Any:
    """The module class that applies a block once for each layer of a tower: x -> (x, every block's output or None)."""
    # In a loop XLA cannot merge the recomputation with the first computation; in unrolled code it could.
    one = nn.remat(block, prevent_cse=config.unroll > 1) if config.recomputes else block
    return nn.scan(
        one,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=tower.layers,
        unroll=config.unroll,
    )


def _blocks(config: ClipConfig, tower: Tower, *, causal: bool, intermediates: bool) -> nn.Module:
    """The tower's stacked blocks: x (b, n, w) -> (x, every block's output (L, b, n, w) or None)."""
    return looped(ClipBlock, config, tower)(config, tower, causal, intermediates, name="blocks")


class Patches(nn.Module):
    """pixels (b, s, s, 3) -> (b, (s/p)^2, w), row by row: the convolution of stride p as one matrix product.

    Initialised like a PyTorch convolution: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """

    tower: ImageTower

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        b, s, _, c = pixels.shape
        p, width = self.tower.patch_size, self.tower.width
        bound = (p * p * c) ** -0.5
        uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
        kernel = self.param("kernel", uniform, (p, p, c, width)).astype(pixels.dtype)
        x = pixels.reshape(b, s // p, p, s // p, p, c).swapaxes(2, 3).reshape(b, -1, p * p * c)
        return x @ kernel.reshape(-1, width)


class ImageEncoder(nn.Module):
    """pixels (b, s, s, 3) -> embeddings (b, d), not normalised."""

    config: ClipConfig
    intermediates: bool = False

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        config, tower = self.config, self.config.image
        width, dtype = tower.width, jnp.dtype(config.dtype)
        x = Patches(tower, name="patch")(pixels.astype(dtype))
        token = self.param("class_token", nn.initializers.normal(width**-0.5), (width,))
        position = self.param("position", nn.initializers.normal(width**-0.5), (tower.tokens, width))
        token = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, width))
        x = jnp.concatenate([token, x], axis=1) + position.astype(x.dtype)
        norm = partial(_norm, tower.norm_eps, dtype)
        first = x = laid(config, norm("pre_norm")(x).astype(dtype))
        x, states = _blocks(config, tower, causal=False, intermediates=self.intermediates)(x)
        pooled = norm("post_norm")(x[:, 0])
        out = {}
        if self.intermediates:
            out = {
                "hidden_states": jnp.concatenate([first[None], states]),
                "last_hidden_state": x,
                "pooled": pooled,
            }
        embeddings = _dense(config.projection, dtype, width**-0.5, "projection", bias=False)(pooled)
        return embeddings.astype(pooled.dtype), out


class TextEncoder(nn.Module):
    """ids (b, t) -> embeddings (b, d), not normalised."""

    config: ClipConfig
    intermediates: bool = False

    @nn.compact
    def __call__(
        self, ids: jax.Array, pseudo_tokens: jax.Array | None = None, marker_id: int | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        config, tower = self.config, self.config.text
        width, dtype = tower.width, jnp.dtype(config.dtype)
        tokens = self.param("tokens", nn.initializers.normal(0.02), (tower.vocab_size, width))
        position = self.param("position", nn.initializers.normal(0.01), (tower.context_length, width))
        # A plain gather: its gradient costs what writing the dense table costs, 40 ms for 49,408 rows of 512 on one CPU
        # core; sorting the ids first gains nothing, and a one-hot product is slower at every vocabulary from 300 up.
        x = tokens[ids].astype(dtype)
        if pseudo_tokens is not None:
            x = _replace(x, ids == marker_id, pseudo_tokens.astype(dtype))
        first = x = laid(config, x + position[: ids.shape[1]].astype(dtype))
        x, states = _blocks(config, tower, causal=True, intermediates=self.intermediates)(x)
        norm = _norm(tower.norm_eps, dtype, "final_norm")
        at_end = jnp.arange(ids.shape[1]) == end_positions(config, ids)[:, None]
        pooled = norm(jnp.where(at_end[..., None], x.astype(_wide(dtype)), 0).sum(1))
        out = {}
        if self.intermediates:
            last = norm(x)
            # As in transformers, the last hidden state is the normalised one and the last of hidden_states is not.
            out = {
                "hidden_states": jnp.concatenate([first[None], states]),
                "last_hidden_state": last,
                "pooled": pooled,
            }
        embeddings = _dense(config.projection, dtype, width**-0.5, "projection", bias=False)(pooled)
        return embeddings.astype(pooled.dtype), out


def _replace(x: jax.Array, mask: jax.Array, pseudo: jax.Array) -> jax.Array:
    """x (b, t, w) with pseudo tokens (b, w) or (b, n, w) where mask (b, t) is set; n of them in order of place."""
    if pseudo.ndim == 2:
        return jnp.where(mask[..., None], pseudo[:, None], x)
    n = pseudo.shape[1]
    which = jnp.where(mask, jnp.cumsum(mask, axis=1) - 1, n)
    for i in range(n):
        x = jnp.where((which == i)[..., None], pseudo[:, i, None], x)
    return x


@partial(jax.jit, static_argnames="config")
def init(config: ClipConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters: both towers are initialised as OpenAI's code initialises its text tower.

    Standard deviations, with width w and L layers: qkv w^-0.5; out and down w^-0.5 (2L)^-0.5; up (2w)^-0.5; tokens
    0.02; text positions 0.01; image positions, class token and projections w^-0.5. Patches are uniform, as in a PyTorch
    convolution; biases are 0; the temperature is 0.07.
    """
    image_key, text_key = jax.random.split(key)
    size = config.image.image_size
    image = ImageEncoder(config).init(image_key, jnp.zeros((1, size, size, 3)))
    text = TextEncoder(config).init(text_key, jnp.zeros((1, 1), jnp.int32))
    return {"image": image["params"], "text": text["params"], "logit_scale": jnp.asarray(-np.log(0.07), jnp.float32)}


@partial(jax.jit, static_argnames=("config", "intermediates"))
def encode_image(
    config: ClipConfig, params: Params, pixels: Array, *, intermediates: bool = False
) -> jax.Array | tuple[jax.Array, Intermediates]:
    """Embeddings of preprocessed images.

    Args:
      config: static.
      params: the whole tree of `init`; only "image" is read.
      pixels: float, (b, s, s, 3), normalised with CLIP's mean and standard deviation.
      intermediates: also return intermediate results.

    Returns:
      (b, d) in float32, not normalised. With intermediates also a dict, in transformers' sense: `hidden_states`
      (L + 1, b, n, w), `last_hidden_state` (b, n, w), `pooled` (b, w).

    Raises:
      ValueError: the images do not have the tower's shape.
    """
    size = config.image.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise ValueError(f"images must have shape (batch, {size}, {size}, 3), got {pixels.shape}")
    encode: Any = ImageEncoder(config, intermediates).apply  # its type says nothing about what the module returns
    embeddings, out = encode({"params": params["image"]}, pixels)
    return (embeddings, out) if intermediates else embeddings


@partial(jax.jit, static_argnames=("config", "intermediates"))
def encode_text(
    config: ClipConfig,
    params: Params,
    ids: Array,
    *,
    pseudo_tokens: Array | None = None,
    marker_id: int | None = None,
    intermediates: bool = False,
) -> jax.Array | tuple[jax.Array, Intermediates]:
    """Embeddings of tokenized texts.

    Args:
      config: static.
      params: the whole tree of `init`; only "text" is read.
      ids: int, (b, t) with t up to the context length; ids after the end token do not matter.
      pseudo_tokens: (b, w), which replaces the token embedding wherever `ids == marker_id`, or (b, n, w), which fills
        the n such places of each text in order; positions are added afterwards. Call `check_marker` where the ids
        are made: a compiled program cannot notice a text without the marker.
      marker_id: the id whose embedding is replaced.
      intermediates: also return intermediate results.

    Returns:
      (b, d) in float32, not normalised. With intermediates also a dict, in transformers' sense: `hidden_states`
      (L + 1, b, t, w), `last_hidden_state` (b, t, w), normalised, `pooled` (b, w).

    Raises:
      ValueError: ids or pseudo tokens have the wrong shape; pseudo tokens without a marker.
    """
    tower = config.text
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= tower.context_length:
        raise ValueError(f"ids must have shape (batch, 1 to {tower.context_length}), got {ids.shape}")
    if pseudo_tokens is not None:
        shape = pseudo_tokens.shape
        if len(shape) not in (2, 3) or shape[0] != ids.shape[0] or shape[-1] != tower.width:
            b = ids.shape[0]
            raise ValueError(f"pseudo tokens must be ({b}, {tower.width}) or ({b}, n, {tower.width}), got {shape}")
        if marker_id is None:
            raise ValueError("pseudo tokens need the marker_id that they replace")
    encode: Any = TextEncoder(config, intermediates).apply  # as above
    embeddings, out = encode({"params": params["text"]}, ids, pseudo_tokens, marker_id)
    return (embeddings, out) if intermediates else embeddings


def end_positions(config: ClipConfig, ids: Any) -> Any:
    """Where each text ends by the config's rule: (b, t) -> (b,), NumPy or JAX like `ids`.

    A text without `eos_token_id` ends at 0, as in transformers; `cut` refuses such a text.
    """
    tower: TextTower = config.text
    return (ids if tower.end_rule == "largest_id" else ids == tower.eos_token_id).argmax(-1)


def text_lengths(config: ClipConfig) -> tuple[int, ...]:
    """The static lengths that `cut` chooses from, ascending; the last is the context length."""
    longest = config.text.context_length
    return (*(n for n in _LENGTHS if n < longest), longest)


def cut(config: ClipConfig, ids: np.ndarray) -> np.ndarray:
    """ids (b, t) without the columns that no text needs, on the host.

    Attention is causal and pooling is at the end token, so later ids change nothing.

    Args:
      config: for its end rule and context length.
      ids: int, (b, t).

    Returns:
      (b, n), n the shortest of `text_lengths` that keeps every end token, or t if that is less.

    Raises:
      ValueError: a text has no end token; the error names the row.
    """
    ids = np.asarray(ids)
    ends = end_positions(config, ids)
    eos = config.text.eos_token_id
    if eos is not None and len(bad := np.flatnonzero(ids[np.arange(len(ids)), ends] != eos)):
        raise ValueError(f"text {bad[0]} has no end token {eos}")
    needed = int(ends.max(initial=0)) + 1
    return ids[:, : next((n for n in text_lengths(config) if n >= needed), ids.shape[1])]


def check_marker(ids: Array, marker_id: int, n: int | None = None) -> None:
    """Raise ValueError unless every text has the marker n times (None: at least once); the error names the row.

    Args:
      ids: int, (b, t), on the host.
      marker_id: the id that pseudo tokens replace.
      n: number of pseudo tokens per text.
    """
    counts = (np.asarray(ids) == marker_id).sum(-1)
    if len(bad := np.flatnonzero(counts != n if n is not None else counts == 0)):
        needed = "the pseudo tokens need it" if n is None else f"the pseudo tokens need {n}"
        raise ValueError(f"text {bad[0]} has the marker {marker_id} {counts[bad[0]]} times; {needed}")
