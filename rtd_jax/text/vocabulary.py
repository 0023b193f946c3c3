"""Training only those rows of the token table that the training texts use: the others cannot change but by decay.

Two fifths of ViT-B/32's text tower are the embeddings of 49,408 tokens, and a set of captions uses a few thousand of
them. A token that no text has gets no gradient, so Adam's moments of its row stay zero, and the row follows from the
learning rates alone. Left out of the state, it costs neither gradient nor moments nor their traffic.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from clip_jax.config import ClipConfig
from rtd_jax.text.compose import Prompt

TOKENS = "tokens"  # the table's name in a text tower's parameters


@dataclass(frozen=True, eq=False)
class Restricted:
    """A text tower whose vocabulary is the tokens of some texts.

    Attributes:
      config: of the CLIP, with that vocabulary.
      params: of the text tower.
      kept: int32 (v',), ascending: the ids that are there, in the whole vocabulary's numbers.
      table: (v, w), the whole table as it was.
    """

    config: ClipConfig
    params: dict[str, Any]
    kept: np.ndarray
    table: np.ndarray

    def localise(self, ids: np.ndarray) -> np.ndarray:
        """ids in the smaller vocabulary's numbers, int32 of the same shape; larger ones stay larger.

        Raises:
          ValueError: an id that was not kept.
        """
        ids = np.asarray(ids)
        found = np.searchsorted(self.kept, ids)
        known = self.kept[np.minimum(found, len(self.kept) - 1)] == ids
        if not known.all():
            raise ValueError(f"token {ids[~known][0]} is not among the {len(self.kept)} that were kept")
        return found.astype(np.int32)

    def localise_prompt(self, prompt: Prompt) -> Prompt:
        """The prompt in the smaller vocabulary's numbers."""
        *prefix, marker, end = self.localise(np.array(prompt.ids)).tolist()
        return Prompt(tuple(prefix), marker, end)

    def restore(self, params: Mapping[str, Any], decay: float = 1.0) -> dict[str, Any]:
        """Trained parameters with the whole table again, in NumPy.

        Args:
          params: of the text tower, of this vocabulary.
          decay: what the other rows are multiplied by; see `decay`.
        """
        table = self.table * np.asarray(decay, self.table.dtype)
        table[self.kept] = np.asarray(params[TOKENS])
        return dict(params) | {TOKENS: table}


def restrict(config: ClipConfig, params: Mapping[str, Any], *ids: np.ndarray) -> Restricted:
    """The tower with the tokens of these texts only.

    Args:
      config: of the CLIP.
      params: of its text tower, in its whole vocabulary.
      *ids: int arrays of any shapes, all texts that will be encoded with it, prompts and padding included.
    """
    parts = [np.unique(np.asarray(part)) for part in ids]
    own = [config.text.eos_token_id] if config.text.eos_token_id is not None else []
    kept = np.unique(np.concatenate([*parts, own])).astype(np.int32)
    table = np.asarray(jax.device_get(params[TOKENS]))
    eos = None if config.text.eos_token_id is None else int(np.searchsorted(kept, config.text.eos_token_id))
    text = replace(config.text, vocab_size=len(kept), eos_token_id=eos, bos_token_id=None, pad_token_id=None)
    return Restricted(replace(config, text=text), dict(params) | {TOKENS: table[kept]}, kept, table)


def decay(optimizer: Mapping[str, Any], schedule: Callable, steps: int, *, path: str = f"text/{TOKENS}") -> float:
    """What `steps` steps of the optimiser make of a parameter whose gradient is always zero: its factor.

    Args:
      optimizer: the config that `launch.training.optim.create` takes.
      schedule: of `launch.training.optim.create`.
      steps: how many were made.
      path: of the table in the optimiser's parameters.

    Raises:
      ValueError: an optimiser that puts the decay into the gradient: its moments do not stay zero.
    """
    optimizer = dict(optimizer.items())
    patterns = optimizer.get("decay_mask", (".*",))
    if not optimizer["weight_decay"] or not any(re.fullmatch(pattern, path) for pattern in patterns):
        return 1.0
    if optimizer["name"] != "adamw":
        raise ValueError(
            f"optimiser {optimizer['name']!r} puts weight_decay={optimizer['weight_decay']} into the gradient, which "
            "moves every row of the token table: take adamw, weight_decay 0, or train the whole table"
        )
    rates = np.broadcast_to(np.asarray(schedule(np.arange(steps)), np.float64), steps)
    return math.prod((1 - rates * float(optimizer["weight_decay"])).tolist())
