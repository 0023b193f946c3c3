"""The text tower as RTD trains it, the triplets as its step reads them, and validation on held-back triplets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from absl import logging

import clip_jax
from clip_jax.config import ClipConfig
from launch.training.sharding import local
from rtd_jax import losses, phi
from rtd_jax.text import compose, triplets, vocabulary
from rtd_jax.tuning import feed, step

RECALL = "val/recall"


@dataclass(frozen=True, eq=False)
class TrainedTower:
    """The text tower as it is trained: with the CLIP's whole vocabulary, or with the tokens of the triplets alone.

    Attributes:
      clip: the published CLIP, its parameters arrays or shapes.
      subset: the tokens that are trained; None for all.
    """

    clip: clip_jax.Clip
    subset: vocabulary.TokenSubset | None

    @property
    def config(self) -> ClipConfig:
        """Of the CLIP with this vocabulary."""
        return self.subset.narrow(self.clip.config) if self.subset else self.clip.config

    @property
    def params(self) -> dict[str, Any]:
        """Of the text tower, before training."""
        params = self.clip.params["text"]
        return self.subset.take(params) if self.subset else params

    @property
    def prompt(self) -> compose.Prompt:
        """What all queries begin with, in this vocabulary's numbers."""
        prompt = compose.prompt(self.clip)
        return self.subset.localize_prompt(prompt) if self.subset else prompt

    def whole(self, params: Mapping[str, Any], decay: float) -> dict[str, Any]:
        """The trained text tower with the whole vocabulary, on this process.

        Args:
          params: of a training state, {"text": …}.
          decay: factor of the rows of the token table that were left out.
        """
        text = local(params["text"])
        return self.subset.restore(text, self.clip.params["text"][vocabulary.TOKENS], decay) if self.subset else text


def token_ids(clip: clip_jax.Clip, objective: step.Objective, train: triplets.Triplets) -> dict[str, np.ndarray]:
    """The token ids that the step reads, int32 (n, t) by name; see `step.columns`."""
    makers = {
        "reference_ids": lambda: clip.tokenize(train.references),
        "target_ids": lambda: clip.tokenize(train.targets),
        "ids": lambda: (
            compose.tokenize(clip, train.modifications)
            if objective.concatenation == "refined"
            else clip.tokenize([*map(compose.plain_text, train.references, train.modifications)])
        ),
    }
    return {name: makers[name]() for name in step.columns(objective) if name in makers}


def restrict(clip: clip_jax.Clip, ids: Mapping[str, np.ndarray]) -> tuple[TrainedTower, dict[str, np.ndarray]]:
    """The tower with the tokens of some texts and of the prompt alone, and the texts in its numbers."""
    subset = vocabulary.used(clip.config, *ids.values(), np.array(compose.prompt(clip).ids))
    logging.info("the triplets use %d of %d tokens", len(subset.kept), clip.config.text.vocab_size)
    return TrainedTower(clip, subset), {name: subset.localize(column) for name, column in ids.items()}


def make_table(
    config: ClipConfig, objective: step.Objective, embeddings: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]
) -> feed.TextTable:
    """Triplets as the step reads them.

    Args:
      config: of the CLIP, with the vocabulary that `ids` are in.
      objective: says which columns are needed.
      embeddings: of the frozen encoder: "reference" and "target", (n, d) each.
      ids: of `token_ids`.
    """
    return feed.table(config, {name: embeddings[name] for name in step.columns(objective) if name in embeddings}, ids)


@dataclass(frozen=True, eq=False)
class Validation:
    """Held-back triplets with texts in place of images.

    The query is "a photo of $ that T_c" with φ(ψ(T_r)) for $, by the trained encoder. The gallery is ψ of the targets
    and, as distractors, of the references.

    Attributes:
      network: φ.
      triplets: n of them.
      references: (n, d), ψ(T_r), not normalised.
      targets: (n, d), ψ(T_t), not normalised.
      batch_size: texts at a time.
    """

    network: phi.Network
    triplets: triplets.Triplets
    references: np.ndarray
    targets: np.ndarray
    batch_size: int = 256

    def measure(self, clip: clip_jax.Clip) -> dict[str, float]:
        """Recall of the target among all captions, in percent, by a CLIP's text encoder. Ties count against it."""
        captions = [*self.triplets.targets, *self.triplets.references]
        distinct, rows = np.unique(captions, return_inverse=True)
        gallery = np.empty((len(distinct), self.references.shape[1]), np.float32)
        gallery[rows] = np.concatenate([self.targets, self.references])
        gallery, target = losses.unit_rows(gallery), rows[: len(self.triplets)]
        queries = compose.queries(
            clip, self.network, self.references, self.triplets.modifications, batch_size=self.batch_size
        )
        similarity = queries @ gallery.T
        ahead = (similarity >= similarity[np.arange(len(target)), target][:, None]).sum(1) - 1
        return {RECALL: 100 * float((ahead < 1).mean()), "val/recall_at_10": 100 * float((ahead < 10).mean())}


def rounded(params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Parameters as a checkpoint of that type gives them back: rounded to it, and float32 again."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(dtype, copy=False).astype(np.float32, copy=False), dict(params)
    )


def with_text(clip: clip_jax.Clip, text: Mapping[str, Any]) -> clip_jax.Clip:
    """The CLIP with other parameters of the text tower, of the type that it has itself."""
    own = jax.tree.map(lambda leaf: leaf.astype(clip.config.dtype, copy=False), dict(text))
    return replace(clip, params={**clip.params, "text": own})
