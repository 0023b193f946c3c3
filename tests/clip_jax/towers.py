"""Small configs and inputs that the tests of clip_jax share."""

from dataclasses import replace

import jax
import numpy as np
from flax import traverse_util

from clip_jax import model
from clip_jax.config import ClipConfig, ImageTower, TextTower

END = 90  # of `TINY`'s texts; ids above it are ordinary words
TINY = ClipConfig(
    image=ImageTower(
        width=32, layers=3, heads=4, mlp_width=48, activation="gelu", norm_eps=1e-5, image_size=16, patch_size=4
    ),
    text=TextTower(
        width=24,
        layers=2,
        heads=4,
        mlp_width=96,
        activation="quick_gelu",
        norm_eps=1e-5,
        vocab_size=99,
        context_length=20,
        end_rule="eos_token_id",
        eos_token_id=END,
    ),
    projection=20,
)


def parameters(config: ClipConfig, seed: int = 0):
    """Random float32 parameters, drawn by NumPy: biases, scales and every head matter, and nothing has to compile."""
    rng = np.random.default_rng(seed)
    shapes = traverse_util.flatten_dict(jax.eval_shape(lambda: model.init(config, jax.random.key(0))))

    def draw(path, leaf):
        if path[-1] == "kernel":
            stacked, inputs = "blocks" in path, leaf.shape[-3] if "qkv" in path else np.prod(leaf.shape[:-1])
            scale = (inputs / (leaf.shape[0] if stacked and "qkv" not in path else 1)) ** -0.5
            return scale * rng.normal(size=leaf.shape)
        return (1.0 if path[-1] in ("scale", "logit_scale") else 0.0) + 0.2 * rng.normal(size=leaf.shape)

    params = {path: np.asarray(draw(path, leaf), np.float32) for path, leaf in shapes.items()}
    return traverse_util.unflatten_dict(params)


def images(config: ClipConfig, n: int, seed: int = 0) -> np.ndarray:
    size = config.image.image_size
    return np.random.default_rng(seed).normal(size=(n, size, size, 3)).astype(np.float32)


def texts(config: ClipConfig, lengths, *, seed: int = 0, width: int | None = None) -> np.ndarray:
    """Texts whose end token stands at `lengths` - 1, with random words before and padding 0 behind it."""
    rng = np.random.default_rng(seed)
    end = config.text.vocab_size - 1 if config.text.end_rule == "largest_id" else config.text.eos_token_id
    words = np.setdiff1d(np.arange(1, config.text.vocab_size), [end])
    ids = np.zeros((len(lengths), width or config.text.context_length), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[: length - 1] = rng.choice(words, length - 1)
        row[length - 1] = end
    return ids


def largest_id(config: ClipConfig) -> ClipConfig:
    """The same with OpenAI's own rule for the end of a text."""
    return replace(config, text=replace(config.text, end_rule="largest_id", eos_token_id=None))
