"""Small checkpoints of every kind for the tests of loading."""

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
from clip_jax import model, preprocess, tokenizer
from clip_jax.config import ClipConfig, ImageTower, TextTower
from tests.clip_jax import towers


def config(**text) -> ClipConfig:
    """Towers whose sizes are told apart by every wrong transposition; fields of the text tower may be given."""
    end = {"end_rule": "eos_token_id", "eos_token_id": 40, "bos_token_id": 39, "pad_token_id": 0}
    return ClipConfig(
        image=ImageTower(
            width=24, layers=2, heads=3, mlp_width=56, activation="gelu", norm_eps=1e-5, image_size=15, patch_size=5
        ),
        text=TextTower(
            **dict(width=20, layers=3, heads=5, mlp_width=44, activation="quick_gelu", norm_eps=1e-5)
            | dict(vocab_size=50, context_length=12)
            | end
            | text
        ),
        projection=28,
    )


def inputs(of: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (3, s, s, 3) and ids (3, t) of texts that end at different places."""
    return towers.images(of, 3), towers.texts(of, (of.text.context_length, 3, 6))


_encode_image = jax.jit(model.encode_image, static_argnums=0)
_encode_text = jax.jit(model.encode_text, static_argnums=0)


def embed(clip: clip_jax.Clip, pixels, ids) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, d) of both towers; compiled once for all checkpoints of one config."""
    texts = _encode_text(clip.config, clip.params, ids)
    return np.asarray(_encode_image(clip.config, clip.params, pixels)), np.asarray(texts)


def equal(ours, theirs) -> None:
    """The same tree with the same values and types."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def whole() -> clip_jax.Clip:
    """With a tokenizer and a preprocessing of its own."""
    words = tokenizer.build(["a red circle on green grass $"], context_length=12)
    of = config(vocab_size=words.vocab_size, eos_token_id=words.end_id, pad_token_id=words.pad_id)
    spec = preprocess.Preprocessing(size=15, crop=15, mean=(0.5, 0.4, 0.3))
    return clip_jax.Clip(of, jax.tree.map(jnp.asarray, towers.parameters(of)), words, spec)
