"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) and its published weights.

`apply(variables, x, train=False) -> (logits, out)`: x (n, h, w, 3) normalised, `out["features"]` (n, width), the class
token after the last layer norm, which the linear head takes. Equal to timm's `vit_base_patch16_224` and torchvision's
`vit_b_16`: layer norms of epsilon 1e-6, exact GELU, biases everywhere, no dropout.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

_EPSILON = 1e-6


class VitBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm and beside a shortcut connection."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, tokens, width = x.shape
        dense = partial(nn.Dense, dtype=self.dtype)  # layer norms give at least float32
        y = nn.LayerNorm(epsilon=_EPSILON, name="norm1")(x)
        qkv = dense(3 * width, name="qkv")(y).reshape(n, tokens, 3, self.heads, width // self.heads)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(n, tokens, width)
        x = x + dense(width, name="out")(y)
        y = nn.LayerNorm(epsilon=_EPSILON, name="norm2")(x)
        y = nn.gelu(dense(4 * width, name="up")(y), approximate=False)
        return x + dense(width, name="down")(y)


class ViT(nn.Module):
    """A vision transformer of square images; B/16 by default."""

    num_classes: int
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        del train  # no dropout
        n, height, width, _ = x.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"images of {height}x{width} pixels do not divide into patches of {self.patch}")
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype, name="patch")(x)
        x = x.reshape(n, -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, self.width)).astype(x.dtype), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width)).astype(x.dtype)
        out = {}
        for i in range(self.depth):
            x = out[f"block{i}"] = VitBlock(self.heads, self.dtype, name=f"block{i}")(x)
        x = out["features"] = nn.LayerNorm(epsilon=_EPSILON, name="norm")(x)[:, 0]
        x = out["logits"] = nn.Dense(self.num_classes, name="fc")(x)
        return x, out


# Our module and leaf -> PyTorch's, below the prefix of the block.
_TIMM = {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patch/": "patch_embed.proj.",
    "norm/": "norm.",
    "fc/": "head.",
    "block": "blocks.{}.",
    "norm1/": "norm1.",
    "qkv/": "attn.qkv.",
    "out/": "attn.proj.",
    "norm2/": "norm2.",
    "up/": "mlp.fc1.",
    "down/": "mlp.fc2.",
}
_TORCHVISION = {
    "class_token": "class_token",
    "positions": "encoder.pos_embedding",
    "patch/": "conv_proj.",
    "norm/": "encoder.ln.",
    "fc/": "heads.head.",
    "block": "encoder.layers.encoder_layer_{}.",
    "norm1/": "ln_1.",
    "qkv/": "self_attention.in_proj_",
    "out/": "self_attention.out_proj.",
    "norm2/": "ln_2.",
    "up/": "mlp.0.",
    "down/": "mlp.3.",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def convert(tensors: Mapping[str, np.ndarray], template: Mapping) -> dict:
    """timm's or torchvision's tensors in the layout of a ViT's variables.

    Args:
      tensors: PyTorch's name -> array.
      template: the model's variables as shapes.

    Raises:
      ValueError: tensors are missing, extra or of another shape; the message lists them all.
    """
    names = _TORCHVISION if "class_token" in tensors else _TIMM
    tensors = {_modern(name): tensor for name, tensor in tensors.items()}
    flat: dict[Any, Any] = traverse_util.flatten_dict(template)
    names_of = {path: _torch_name(path, names) for path in flat}
    problems = []
    if missing := sorted(set(names_of.values()) - set(tensors)):
        problems.append(f"missing {', '.join(missing)}")
    if extra := sorted(set(tensors) - set(names_of.values())):
        problems.append(f"not in the model {', '.join(extra)}")
    converted = {}
    for path, leaf in flat.items():
        if names_of[path] not in tensors:
            continue
        array = _to_ours(np.asarray(tensors[names_of[path]]), path[-1])
        if array.shape != leaf.shape:
            problems.append(f"{names_of[path]} gives shape {array.shape}, the model's is {leaf.shape}")
        converted[path] = array
    if problems:
        raise ValueError("these weights do not fit the ViT: " + "; ".join(problems))
    return traverse_util.unflatten_dict(converted)


def _modern(name: str) -> str:
    """torchvision's current name of a tensor: its first checkpoints name the perceptron's layers differently."""
    return name.replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3.")


def _torch_name(path: tuple[str, ...], names: Mapping[str, str]) -> str:
    """("params", "block3", "qkv", "kernel") -> "blocks.3.attn.qkv.weight"."""
    _, *modules, leaf = path
    if not modules:
        return names[leaf]
    prefix = ""
    if modules[0].startswith("block"):
        prefix, modules = names["block"].format(modules[0].removeprefix("block")), modules[1:]
    return prefix + names[f"{modules[0]}/"] + _LEAVES[leaf]


def _to_ours(tensor: np.ndarray, leaf: str) -> np.ndarray:
    if leaf != "kernel":
        return tensor
    return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T)
