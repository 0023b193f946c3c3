"""CLIP in Flax: reads the published checkpoints, encodes and trains under jit on one device or a mesh."""

from clip_jax.clip import Clip, embedded, load, save
from clip_jax.embed import embed_images, embed_texts

__all__ = ["Clip", "embed_images", "embed_texts", "embedded", "load", "save"]
