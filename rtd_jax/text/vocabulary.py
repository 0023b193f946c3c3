"""Train only the rows of the token table that the training texts use: the others change by weight decay alone.

Two fifths of ViT-B/32's text tower are the embeddings of 49,408 tokens, and a set of captions uses a few thousand of
them. A token that occurs in no text gets no gradient, so Adam's moments of its row stay zero, and the row follows from
the learning rates alone. Left out of the state, it costs neither gradient nor moments nor their memory traffic.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from clip_jax.config import ClipConfig
from launch.training.optim import Optimizer, Rate
from rtd_jax.text.compose import Prompt

TOKENS = "tokens"  # the table's name in a text tower's parameters


@dataclass(frozen=True)
class TokenSubset:
    """Some tokens of a vocabulary, renumbered.

    Attributes:
      kept: int32 (v',), ascending: their ids in the whole vocabulary.
    """

    kept: np.ndarray

    def localize(self, ids: np.ndarray) -> np.ndarray:
        """ids in the smaller vocabulary's numbers, int32 of the same shape; larger ids stay larger.

        Raises:
          ValueError: an id that was not kept.
        """
        ids = np.asarray(ids)
        places = np.searchsorted(self.kept, ids)
        known = self.kept[np.minimum(places, len(self.kept) - 1)] == ids
        if not known.all():
            raise ValueError(f"token {ids[~known][0]} is not among the {len(self.kept)} that were kept")
        return places.astype(np.int32)

    def localize_prompt(self, prompt: Prompt) -> Prompt:
        """The prompt in the smaller vocabulary's numbers."""
        *prefix, marker, end = self.localize(np.array(prompt.ids)).tolist()
        return Prompt(tuple(prefix), marker, end)

    def narrow(self, config: ClipConfig) -> ClipConfig:
        """The config of a CLIP with this vocabulary."""
        eos = config.text.eos_token_id
        eos = None if eos is None else int(np.searchsorted(self.kept, eos))
        text = replace(config.text, vocab_size=len(self.kept), eos_token_id=eos, bos_token_id=None, pad_token_id=None)
        return replace(config, text=text)

    def take(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A text tower's parameters, or their shapes, with the kept rows of the token table alone."""
        table = params[TOKENS]
        if isinstance(table, jax.ShapeDtypeStruct):
            rows = jax.ShapeDtypeStruct((len(self.kept), *table.shape[1:]), table.dtype)
        else:
            rows = np.asarray(jax.device_get(table))[self.kept]
        return dict(params) | {TOKENS: rows}

    def restore(self, params: Mapping[str, Any], table: np.ndarray, decay: float = 1.0) -> dict[str, Any]:
        """Trained parameters with the whole token table again, in NumPy.

        Args:
          params: of the text tower, of this vocabulary.
          table: (v, w), the whole table as it was before training.
          decay: factor of the rows that were left out; see `decay`.
        """
        table = np.asarray(table) * np.asarray(decay, table.dtype)
        table[self.kept] = np.asarray(params[TOKENS])
        return dict(params) | {TOKENS: table}


def used(config: ClipConfig, *ids: np.ndarray) -> TokenSubset:
    """The tokens of some texts, and the end token.

    Args:
      config: of the CLIP.
      *ids: int arrays of any shapes: all texts that will be encoded, prompts and padding included.
    """
    parts = [np.unique(np.asarray(part)) for part in ids]
    end = [config.text.eos_token_id] if config.text.eos_token_id is not None else []
    return TokenSubset(np.unique(np.concatenate([*parts, end])).astype(np.int32))


def decays(optimizer: Optimizer, path: str = f"text/{TOKENS}") -> bool:
    """Whether the optimiser's weight decay reaches the token table.

    Args:
      optimizer: of the text tower.
      path: of the table in the optimiser's parameters.
    """
    return optimizer.weight_decay != 0 and any(re.fullmatch(pattern, path) for pattern in optimizer.decay_mask)


def decay(optimizer: Optimizer, rate: Rate, steps: int, *, path: str = f"text/{TOKENS}") -> float:
    """The factor by which some steps of the optimiser change a parameter whose gradient is always zero.

    Args:
      optimizer: of the text tower.
      rate: the learning rate as a function of the step.
      steps: the number of steps made.
      path: of the table in the optimiser's parameters.

    Raises:
      ValueError: an optimiser that adds the decay to the gradient: its moments do not stay zero.
    """
    if not decays(optimizer, path):
        return 1.0
    if optimizer.name != "adamw":
        raise ValueError(
            f"optimiser {optimizer.name!r} puts weight_decay={optimizer.weight_decay} into the gradient, which moves "
            "every row of the token table: use adamw, weight_decay 0, or train the whole table"
        )
    rates = np.broadcast_to(np.asarray(rate(np.arange(steps)), np.float64), steps)
    return math.prod((1 - rates * float(optimizer.weight_decay)).tolist())
