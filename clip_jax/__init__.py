"""CLIP in Flax: reads the published checkpoints, encodes and trains under jit on one device or a mesh."""

from clip_jax.clip import Clip, load, outline, save
from clip_jax.embed import Embedder, embed_images, embed_texts
from clip_jax.files.sources import embedded, located
from clip_jax.spread import placed

__all__ = [
    "Clip",
    "Embedder",
    "embed_images",
    "embed_texts",
    "embedded",
    "load",
    "located",
    "outline",
    "placed",
    "save",
]
