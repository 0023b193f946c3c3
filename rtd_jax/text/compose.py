"""Queries of composed retrieval: a reference image's pseudo token in a sentence with the modification.

    "a photo of [$] that is blue"

The sentence is Saito et al.'s and Gu et al.'s (arXiv 2302.03084, 2312.01998); "$" is the marker whose token embedding
the pseudo token replaces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import clip_jax
from clip_jax import model
from clip_jax.tokenizer import MARKER
from rtd_jax.phi import Network, check_fits

BATCH = 256  # texts a step
BASE = f"a photo of {MARKER}"
Texts = Sequence[str | tuple[str, ...]]


@dataclass(frozen=True)
class Prompt:
    """The tokens that all queries begin with: those of `BASE`.

    Attributes:
      prefix: ids before the marker, the start token first.
      marker_id: what the pseudo token replaces.
      end_id: the end token.
    """

    prefix: tuple[int, ...]
    marker_id: int
    end_id: int

    @property
    def ids(self) -> tuple[int, ...]:
        """`BASE` as a whole."""
        return (*self.prefix, self.marker_id, self.end_id)


def prompt(clip: clip_jax.Clip) -> Prompt:
    """The prompt in a CLIP's tokens.

    Raises:
      ValueError: the tokenizer does not make the marker one token, at the end.
    """
    ids = clip.tokenize(BASE)[0]
    *prefix, marker, end = ids[: int(model.end_positions(clip.config, ids[None])[0]) + 1].tolist()
    if marker != clip.marker_id or marker in prefix:
        raise ValueError(f"{BASE!r} does not end in the marker {clip.marker_id} and an end token: {ids.tolist()}")
    return Prompt(tuple(prefix), marker, end)


def text(modification: str) -> str:
    """The sentence of a modification such as "is blue"; a blank one leaves the words before it, as published.

    Raises:
      ValueError: the marker inside.
    """
    if MARKER in modification:
        raise ValueError(f"the marker {MARKER!r} stands for the image and may not be in a text: {modification!r}")
    return f"{BASE} that {modification}"


def check_length(clip: clip_jax.Clip, modification: str) -> None:
    """Raise ValueError for a blank modification or one too long for the CLIP's text tower; also as `text`."""
    if not modification.strip():
        raise ValueError("a modification text is empty")
    sentence = text(modification)
    clip.tokenize(sentence)  # refuses what is not valid Unicode
    if clip.tokenizer is not None:
        count, most = len(clip.tokenizer.backend.encode(sentence).ids), clip.tokenizer.context_length
        if count > most:
            raise ValueError(f"the text has {count} tokens with {BASE!r} before it, this CLIP takes {most}; shorten it")


def plain_text(reference: str, modification: str) -> str:
    """Reference caption and modification in one sentence, without a pseudo token: the ablation of Byun et al. 2025."""
    return f"{reference} that {modification}"


def tokenize(clip: clip_jax.Clip, modifications: Sequence[str]) -> np.ndarray:
    """Ids, int32 (n, t), of the sentences of modifications; each begins with the prompt and has one marker.

    Raises:
      ValueError: as `text`, with the modification's number.
    """
    sentences = []
    for i, modification in enumerate(modifications):
        try:
            sentences.append(text(modification))
        except ValueError as error:
            raise ValueError(f"text {i}: {error}") from error
    ids = clip.tokenize(sentences)
    start = np.array(prompt(clip).ids[:-1])
    if len(bad := np.flatnonzero((ids[:, : len(start)] != start).any(1))):
        raise ValueError(f"text {bad[0]} does not begin with the tokens of {BASE!r}: {sentences[bad[0]]!r}")
    return ids


def orders(texts: Texts) -> list[list[str]]:
    """The texts; of queries with two captions (FashionIQ), both orders, joined by "and".

    Returns:
      One list of n texts, or two if any query has two captions.

    Raises:
      ValueError: a query with another number of captions.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be a list with one entry per image, not a string")
    pairs = [(text, text) if isinstance(text, str) else _both_orders(i, text) for i, text in enumerate(texts)]
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    return [first] if first == second else [first, second]


def _both_orders(i: int, captions: Sequence[str]) -> tuple[str, str]:
    if len(captions) not in (1, 2):
        raise ValueError(f"query {i} has {len(captions)} captions; there must be one or two")
    return " and ".join(captions), " and ".join(reversed(captions))


def queries(
    clip: clip_jax.Clip,
    phi: Network,
    images: Any,
    texts: Texts,
    *,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
) -> np.ndarray:
    """Query embeddings of reference images and their modifications.

    Args:
      clip: its text encoder is used, trained by RTD or not.
      phi: trained with the image encoder that gave the embeddings.
      images: float (n, d), embeddings as `clip_jax.embed_images` gives them, not normalised; or the n images, as it
        takes them.
      texts: n modifications; a tuple of two is used in both orders, and the normalised embeddings are averaged.
      prepare: makes φ's input from the embeddings; None for the embeddings themselves.
      batch_size: texts per step.
      progress: show a progress bar.

    Returns:
      float32 (n, d), normalised.

    Raises:
      ValueError: φ of the wrong width for the CLIP, another number of texts than of images, or a text that `text`
        refuses.
    """
    check_fits(phi, clip.config)
    if len(images) != len(texts):
        raise ValueError(f"there are {len(images)} images and {len(texts)} texts")
    if not len(texts):
        return np.empty((0, clip.config.projection), np.float32)
    embedded = np.ndim(images) == 2 and np.issubdtype(np.asarray(images).dtype, np.floating)
    images = images if embedded else clip_jax.embed_images(clip, images, batch_size=batch_size, progress=progress)
    prepared = images if prepare is None else prepare(images)
    tokens = np.concatenate([np.asarray(phi(part)) for part in _parts(np.asarray(prepared), 4 * batch_size)])
    sentences = [[text(modification) for modification in order] for order in orders(texts)]
    return _mean(
        [
            clip_jax.embed_texts(clip, order, pseudo_tokens=tokens, batch_size=batch_size, progress=progress)
            for order in sentences
        ]
    )


def modifications(
    clip: clip_jax.Clip, texts: Texts, *, template: str = "{}", batch_size: int = BATCH, progress: bool = False
) -> np.ndarray:
    """Embeddings of the modifications alone, float32 (n, d), normalised; two captions are averaged over both orders."""
    filled = [[template.format(text) for text in order] for order in orders(texts)]
    return _mean([clip_jax.embed_texts(clip, order, batch_size=batch_size, progress=progress) for order in filled])


def _parts(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]


def _mean(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the normalised embeddings, normalised again."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit(sum(unit(x) for x in embeddings))
