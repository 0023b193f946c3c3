"""A small text tower, its prompt and batches of triplets, that the tests of the training step share."""

from dataclasses import replace

import jax
import numpy as np

from clip_jax import model
from rtd_jax import phi
from rtd_jax.text.compose import Prompt
from tests.clip_jax.towers import END, TINY, parameters, texts

CONFIG = replace(TINY, dtype="float64")
PROMPT = Prompt(prefix=(3, 4, 5), marker_id=7, end_id=END)
LENGTHS = (9, 5, 16, 12, 7, 14, 6, 11)


def tower():
    """float64 parameters of the text tower."""
    return jax.tree.map(lambda a: a.astype(np.float64), parameters(TINY)["text"])


def network(seed: int = 0) -> phi.Network:
    """A φ of the tower's widths, in float64."""
    found = phi.init("phi", CONFIG.projection, CONFIG.text.width, jax.random.key(seed))
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), found.params)
    return phi.Network(phi.Phi(CONFIG.text.width, dtype="float64"), params)


def composed(lengths=LENGTHS, seed: int = 0) -> np.ndarray:
    """Texts that begin with the prompt, then random words without the marker."""
    ids = texts(CONFIG, lengths, seed=seed, width=max(lengths))
    ids[ids == PROMPT.marker_id] += 1
    ids[:, :4] = PROMPT.ids[:-1]
    return ids


def captions(n: int, seed: int) -> np.ndarray:
    ids = texts(CONFIG, np.random.default_rng(seed).integers(3, 12, n), seed=seed, width=12)
    ids[ids == PROMPT.marker_id] += 1
    return ids


def batch(n: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """All the columns that a step may ask for; the embeddings are those of the frozen tower."""
    lengths = np.resize(LENGTHS, n)
    ids = {"reference_ids": captions(n, seed + 1), "target_ids": captions(n, seed + 2)}
    encode = lambda ids: np.asarray(model.encode_text(CONFIG, {"text": tower()}, ids))
    return {
        "slot": np.arange(n, dtype=np.int32),
        "ids": composed(lengths, seed),
        **ids,
        "reference": encode(ids["reference_ids"]),
        "target": encode(ids["target_ids"]),
    }
