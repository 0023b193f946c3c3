"""LinCIR: a φ network from captions alone (Gu et al., CVPR 2024, https://arxiv.org/abs/2312.01998).

A caption's embedding goes through φ, and the pseudo token takes the place of the caption's keywords. The text encoder,
which stays frozen, must reproduce the embedding of the whole caption:

    loss = mean (ψ(caption with its keywords replaced, [$] = φ(ψ(caption) + level · u · n)) − ψ(caption))²,

u ~ U(0, 1) and n ~ N(0, I) per caption. The noise bridges the gap between embeddings of texts and of images.
"""

from collections.abc import Sequence

import numpy as np
from absl import logging

import clip_jax
from clip_jax import model
from clip_jax.config import ClipConfig
from launch.training import keys, sharding
from rtd_jax import losses
from rtd_jax.phi.networks import ApplyPhi
from rtd_jax.text import masking
from rtd_jax.text.compose import BASE
from rtd_jax.tuning import feed, training


def prepare(
    clip: clip_jax.Clip,
    captions: Sequence[str],
    matcher: masking.Matcher,
    *,
    seed: int | None = None,
    batch_size: int = 256,
) -> feed.TextTable:
    """Captions as training reads them: `caption`, their embeddings (n, d), and `ids` of the masked captions.

    As published, given a seed: a random word is masked in a caption without a keyword, and "a photo of $" stands for a
    caption whose markers do not fit the context. Without one, both are left out.

    Args:
      clip: whose text encoder is used.
      captions: the texts.
      matcher: finds their keywords.
      seed: of the random words.
      batch_size: captions embedded at a time.

    Raises:
      ValueError: no caption is left.
    """
    masked = masking.mask(captions, matcher, seed=seed)
    usable = {row: text for row, text in enumerate(masked) if text is not None}
    if not usable:
        raise ValueError(f"no caption has a keyword that the matcher knows ({matcher.note}), such as {captions[0]!r}")
    ids = clip.tokenize([*usable.values()])
    whole = (ids == clip.marker_id).any(1)
    if seed is not None and not whole.all():
        fitting = [text if fits else BASE for text, fits in zip(usable.values(), whole, strict=True)]
        ids, whole = clip.tokenize(fitting), np.ones_like(whole)
    if not whole.any():
        raise ValueError(f"every marker was cut off: {clip.config.text.context_length} tokens hold no masked caption")
    ids, kept = ids[whole], np.flatnonzero(whole)
    logging.info("%d of %d captions are masked (keywords by %s)", len(kept), len(captions), matcher.note)
    rows = [*usable]
    embeddings = clip_jax.embed_texts(clip, [captions[rows[i]] for i in kept], batch_size=batch_size, progress=False)
    return feed.table(clip.config, {"caption": embeddings}, {"ids": ids})


def make_loss(config: ClipConfig, apply_phi: ApplyPhi, *, marker_id: int, noise, seed) -> training.TextLoss:
    """LinCIR's loss of φ's parameters.

    Args:
      config: of the CLIP.
      apply_phi: φ in training.
      marker_id: the token that the pseudo token replaces.
      noise: its level; may be traced.
      seed: of noise and dropout; may be traced.
    """

    def loss(params, batch, step, axis_name):
        caption = batch["caption"]
        x = caption + noise * training.noise(keys.stream(seed, "noise", step), batch["slot"], caption.shape[1])
        pseudo = apply_phi(params, x, training.dropout_key(seed, step, axis_name, batch))
        frozen = batch[sharding.RESIDENT]["clip"]
        masked = model.encode_text(config, frozen, batch["ids"], pseudo_tokens=pseudo, marker_id=marker_id)
        return losses.lincir(masked, caption), {"cosine": training.cosine(masked, caption).mean()}

    return loss
