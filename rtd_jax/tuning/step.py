"""RTD's training step: the text tower learns to put composed queries where the frozen one puts the target captions.

Byun et al., "Reducing Task Discrepancy of Text Encoders for Zero-Shot Composed Image Retrieval", ICCV 2025
(arXiv 2406.09188). For a triplet of captions (reference T_r, modification T_c, target T_t), frozen text encoder ψ,
trained one ψ̃ and pseudo-token network φ:

    s = φ(ψ(T_r) + level · u · n),  u ~ U(0, 1) per example, n ~ N(0, I)
    queries  ψ̃("a photo of [s] that T_c"), ψ̃("a photo of [s]")      targets  ψ(T_t), ψ(T_r)

and `losses.target_anchored` of all of them. ψ's embeddings do not change, so they come with the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from clip_jax import model
from clip_jax.config import ClipConfig
from launch.stages import require, require_known, stackable
from launch.training import keys, sharding
from launch.training.accumulation import Parts, contrast, differentiate
from launch.training.optim import descend
from launch.training.program import State
from rtd_jax import losses
from rtd_jax.text.compose import Prompt
from rtd_jax.tuning import tower, training
from rtd_jax.tuning.training import Update

Rows = Mapping[str, jax.Array]

NEGATIVES = ("per_device", "global")
CONCATENATIONS = ("refined", "plain")


@dataclass(frozen=True)
class Objective:
    """What is trained; the defaults are the published ones, every other value an ablation.

    Attributes:
      temperature: τ of the loss.
      noise: its level, in units of the reference embeddings.
      negatives: "per_device", of the examples that one device computes at once (with accumulation: of one part);
        "global", of the whole batch, however it is spread over devices and parts.
      concatenation: "refined", reference as a pseudo token; "plain", the captions in one text,
        `rtd_jax.text.compose.plain_text`, without φ.
      hard_negatives: whether the queries without modification, whose targets are the references, are in the batch.
      frozen_targets: whether ψ stays as it was; if not, targets are ψ̃'s too, with their gradients.
      accumulation: parts that a device's share is computed in, one after the other. The gradients are those of the
        whole: with global negatives all embeddings are computed first, then each part's again with its gradients
        (Gao et al. 2021, arXiv 2101.06983).

    Raises:
      SettingError: an unknown name, or a number out of range.
    """

    temperature: float = stackable(0.07)
    noise: float = stackable(0.5)
    negatives: str = "per_device"
    concatenation: str = "refined"
    hard_negatives: bool = True
    frozen_targets: bool = True
    accumulation: int = 1

    def __post_init__(self):
        require_known(self, "negatives", NEGATIVES)
        require_known(self, "concatenation", CONCATENATIONS)
        require(self.temperature > 0, self, "temperature", "must be above 0")
        require(self.noise >= 0, self, "noise", "must be at least 0")
        whole = isinstance(self.accumulation, int) and self.accumulation >= 1
        require(whole, self, "accumulation", "must be a whole number, at least 1")


def columns(objective: Objective) -> tuple[str, ...]:
    """Names of the columns that a batch of b examples must have.

    slot             int32 (b,), the place in the global batch, from which the noise follows
    ids              int32 (b, t), the composed texts, cut: of `rtd_jax.text.compose.tokenize`, or plain concatenations
    reference        float32 (b, d), ψ(T_r) from a table, not normalised
    target           float32 (b, d), ψ(T_t)
    reference_ids    int32 (b, t'), T_r
    target_ids       int32 (b, t''), T_t
    """
    refined = objective.concatenation == "refined"
    trains_references = objective.hard_negatives and not (refined and objective.frozen_targets)
    needed = {
        "slot": refined,
        "ids": True,
        "reference": refined or (objective.hard_negatives and objective.frozen_targets),
        "target": objective.frozen_targets,
        "reference_ids": trains_references,
        "target_ids": not objective.frozen_targets,
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def batch_shapes(config: ClipConfig, objective: Objective, batch_size: int, length: int) -> dict[str, Any]:
    """The shapes of `columns` where the longest texts have `length` tokens."""
    ids = jax.ShapeDtypeStruct((batch_size, length), np.int32)
    embeddings = jax.ShapeDtypeStruct((batch_size, config.projection), np.float32)
    slot = jax.ShapeDtypeStruct((batch_size,), np.int32)
    shape_of = lambda name: slot if name == "slot" else ids if name.endswith("ids") else embeddings
    return {name: shape_of(name) for name in columns(objective)}


def create_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The initial state; its `params` is {"text": the text tower's parameters}, on the host.

    Args:
      params: of the text tower (a CLIP's tree "text").
      optimizer: of {"text": ...}.
    """
    return training.host_state({"text": params}, optimizer)


def make_step(
    config: ClipConfig,
    optimizer: optax.GradientTransformation,
    phi: nn.Module | None,
    objective: Objective,
    *,
    prompt: Prompt,
    seed: int,
    shards: int = 1,
) -> Update:
    """One update of the text tower, `(state, batch, *, axis_name=None) -> (state, metrics)`.

    Parameters stay in their own precision, float32 as a rule; `config.dtype` is that of the computation. Numbers of
    the objective and of the optimiser may be traced.

    Args:
      config: of the CLIP.
      optimizer: of {"text": ...}.
      phi: the network's module, its parameters in `batch["resident"]["phi"]`; None under "plain".
      objective: what is trained.
      prompt: of `rtd_jax.text.compose.prompt`.
      seed: of the noise; may be traced.
      shards: number of devices that a batch is spread over in mode "jit", the layout's `data_shards`.

    The batch holds `columns(objective)`. Metrics: "loss", "accuracy" (the share of composed queries whose target is the
    nearest of the targets), "gradient_norm".

    Raises:
      ValueError: no φ where one is needed.
    """
    if objective.concatenation == "refined" and phi is None:
        raise ValueError("concatenation 'refined' needs a φ network")
    encode = partial(_encode, config, objective, prompt)

    def step(state: State, batch, *, axis_name: str | None = None):
        rows = {name: batch[name] for name in columns(objective)}
        if phi is not None and objective.concatenation == "refined":
            reference, key = rows["reference"], keys.stream(seed, "noise", state.step)
            noise = objective.noise * training.noise(key, rows.pop("slot"), reference.shape[1])
            rows["pseudo"] = phi.apply({"params": batch[sharding.RESIDENT]["phi"]}, reference + noise)
        parts = Parts(objective.accumulation, shards).along(axis_name)
        encoded = partial(encode, groups=parts.groups)
        compare = partial(_loss, objective, groups=parts.groups, axis_name=axis_name)
        if objective.negatives == "global":
            differentiated = contrast(encoded, compare, rows, parts)
        else:  # every part has its own loss
            differentiated = differentiate(lambda params, rows: compare(params, encoded(params, rows)), rows, parts)
        params, opt_state, terms, logs = descend(differentiated, state.params, optimizer, state.opt_state, axis_name)
        return State(state.step + 1, params, opt_state), logs | terms

    return step


def _encode(config: ClipConfig, objective: Objective, prompt: Prompt, params, rows, *, groups: int):
    """Queries and targets of some rows, (b, r, d) each: composed first, then those without modification."""
    text, hard = partial(model.encode_text, config, {"text": params["text"]}), objective.hard_negatives
    if objective.concatenation == "refined":
        queries = tower.encode_queries(
            config, params["text"], rows["ids"], rows["pseudo"], prompt=prompt, plain=hard, groups=groups
        )
        references = []
    else:
        references = [text(rows["reference_ids"])] if hard else []
        queries = jnp.stack([text(rows["ids"]), *references], axis=1)
    if objective.frozen_targets:
        targets = [rows["target"], *([rows["reference"]] if hard else [])]
    else:
        references = [text(rows["reference_ids"])] if hard and not references else references
        targets = [text(rows["target_ids"]), *references]
    return queries, jnp.stack(targets, axis=1)


def _loss(objective: Objective, params, embeddings, *, groups: int, axis_name: str | None):
    """Loss and metrics of queries and targets (b, r, d), each group's rows one after the other."""
    del params
    queries, targets = embeddings
    sets, axis_name = ((), axis_name) if objective.negatives == "global" else ((groups,), None)
    grouped = lambda x: x.reshape(*sets, -1, x.shape[-1])
    loss = losses.target_anchored(grouped(queries), grouped(targets), objective.temperature, axis_name=axis_name)
    composed = losses.accuracy(grouped(queries[:, :1]), grouped(targets[:, :1]), axis_name=axis_name)
    return loss, {"accuracy": composed}
