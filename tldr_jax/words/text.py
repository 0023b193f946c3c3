"""Words to the two embedding tables that a text batch is drawn from.

A text example is a target word and a spurious word, each under its own prompt template; its embedding is the mean
of the two. Every (word, template) is embedded once, and the pairs are index arithmetic on the tables: they are never
written out, neither as strings nor as embeddings.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from clip_jax import Clip, embed_texts
from tldr_jax.words import WordList, WordSet
from tldr_jax.words.templates import Templates, fill

Array = np.ndarray | jax.Array


@struct.dataclass
class TextSet:
    """Embedded words; a pytree. Classes are 0..C-1, spurious values 0..S-1, both in the order of the word set.

    Attributes:
      target: float32, (Wt, T, d): embeddings of the target words under each of T templates, not normalised.
      target_class: int32, (Wt,), the class of each target word.
      spurious: float32, (Ws, T, d), of the spurious words under their T templates.
      spurious_value: int32, (Ws,), the value of each spurious word.
      allowed: bool, (C, S): the pairs of class and value that are combined.
    """

    target: Array
    target_class: Array
    spurious: Array
    spurious_value: Array
    allowed: Array


def embed(
    clip: Clip, word_set: WordSet, templates: Templates, *, batch_size: int = 256, progress: bool = True
) -> TextSet:
    """Every word under every template, embedded once.

    Args:
      clip: the CLIP.
      word_set: C classes and S spurious values; their words in order, class after class.
      templates: T for target words and T for spurious words.
      batch_size: prompts per step, over all local devices.
      progress: show a progress bar.

    Raises:
      ValueError: a prompt that is longer than the CLIP's context.
    """
    tables = [
        [fill(template, word, articles=templates.articles) for own in lists for word in own.words for template in forms]
        for lists, forms in ((word_set.target, templates.target), (word_set.spurious, templates.spurious))
    ]
    embeddings = embed_prompts(clip, tables[0] + tables[1], batch_size=batch_size, progress=progress)
    target, spurious = np.split(embeddings, [len(tables[0])])
    shape = (-1, len(templates.target), embeddings.shape[1])
    return _of(word_set, target.reshape(shape), spurious.reshape(shape))


def outline(word_set: WordSet, templates: Templates, width: int) -> TextSet:
    """What `embed` gives, with the shapes of the embeddings, of so many numbers each, in their place."""
    counts = [sum(len(own.words) for own in lists) for lists in (word_set.target, word_set.spurious)]
    return _of(word_set, *(jax.ShapeDtypeStruct((count, len(templates.target), width), np.float32) for count in counts))


def narrow(tables: TextSet, word_set: WordSet, kept: WordSet) -> TextSet:
    """The rows of the words that are kept, so that one embedding serves every choice of filters.

    Args:
      tables: `embed(clip, word_set, ...)`.
      word_set: what was embedded.
      kept: some of its words, in their order.

    Raises:
      ValueError: a word that was not embedded in its list.
    """
    target, spurious = _rows(word_set.target, kept.target), _rows(word_set.spurious, kept.spurious)
    return _of(kept, np.asarray(tables.target)[target], np.asarray(tables.spurious)[spurious])


def embed_prompts(clip: Clip, prompts: Sequence[str], *, batch_size: int = 256, progress: bool = True) -> np.ndarray:
    """Embeddings of prompts, not normalised, float32 (n, d). Equal prompts are embedded once.

    Raises:
      ValueError: a prompt that is longer than the CLIP's context, and would be cut; the error names it.
    """
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    _check_length(clip, list(distinct))
    embeddings = embed_texts(clip, list(distinct), batch_size=batch_size, progress=progress)
    if len(distinct) == len(prompts):
        return embeddings
    return embeddings[[distinct[prompt] for prompt in prompts]]


def _of(word_set: WordSet, target: Any, spurious: Any) -> TextSet:
    """The text set of words with these embeddings, or shapes."""
    return TextSet(target, _positions(word_set.target), spurious, _positions(word_set.spurious), word_set.allowed)


def _positions(lists: Sequence[WordList]) -> np.ndarray:
    """The position of each word's list, int32."""
    return np.repeat(np.arange(len(lists), dtype=np.int32), [len(own.words) for own in lists])


def _rows(lists: Sequence[WordList], kept: Sequence[WordList]) -> list[int]:
    """The rows of the kept words among all words."""
    place = {entry: row for row, entry in enumerate((own.name, word) for own in lists for word in own.words)}
    entries = [(own.name, word) for own in kept for word in own.words]
    if missing := [entry for entry in entries if entry not in place]:
        raise ValueError(f"{missing[0][1]!r} of {missing[0][0]!r} is not among the embedded words")
    return [place[entry] for entry in entries]


def _check_length(clip: Clip, prompts: Sequence[str]) -> None:
    if clip.tokenizer is None:
        return  # `embed_texts` reports what is missing
    context = clip.tokenizer.context_length
    for prompt, encoding in zip(prompts, clip.tokenizer.backend.encode_batch_fast(prompts), strict=True):
        if len(encoding.ids) > context:
            raise ValueError(
                f"the prompt {prompt!r} has {len(encoding.ids)} tokens, this CLIP reads {context} and would lose its "
                "end: leave out the word, or use shorter templates"
            )
