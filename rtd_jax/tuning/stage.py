"""RTD's training as a stage of `experiment`: triplets, their frozen embeddings, the trained text encoder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import logging

import clip_jax
from clip_jax import sharding as partition
from clip_jax.losses import normalise
from launch.run import Run
from launch.training import optim, sharding
from rtd_jax import phi, sources
from rtd_jax.text import compose, triplets, vocabulary
from rtd_jax.tuning import feed, step, training

RECALL = "val/recall"


@dataclass(frozen=True, eq=False)
class Tower:
    """The text tower as it is trained, of the CLIP's whole vocabulary or of the tokens that the triplets use.

    Attributes:
      clip: the CLIP that it is from.
      restricted: how it was restricted, or None.
    """

    clip: clip_jax.Clip
    restricted: vocabulary.Restricted | None

    @property
    def config(self):
        return self.restricted.config if self.restricted else self.clip.config

    @property
    def params(self):
        return self.restricted.params if self.restricted else self.clip.params["text"]

    def prompt(self) -> compose.Prompt:
        whole = compose.prompt(self.clip)
        return self.restricted.localise_prompt(whole) if self.restricted else whole

    def with_params(self, params, decay: float) -> clip_jax.Clip:
        """The CLIP with trained parameters; `decay` is what the rows that were left out are multiplied by."""
        text = training.local(params["text"])
        text = self.restricted.restore(text, decay) if self.restricted else text
        return replace(self.clip, params={**self.clip.params, "text": text})


def make_table(
    clip: clip_jax.Clip, objective: step.Objective, train: triplets.Triplets, *, batch_size: int, cache: Path
) -> feed.Table:
    """Triplets as the step reads them; what the frozen encoder says of them is computed once, mapped from a file."""
    embed = lambda texts: clip_jax.embed_texts(clip, texts, batch_size=batch_size, cache=cache, progress=False)
    made: dict[str, Callable] = {
        "reference": lambda: embed(train.references),
        "target": lambda: embed(train.targets),
        "reference_ids": lambda: clip.tokenize(train.references),
        "target_ids": lambda: clip.tokenize(train.targets),
        "ids": lambda: (
            compose.tokenize(clip, train.modifications)
            if objective.concatenation == "refined"
            else clip.tokenize([*map(compose.plain_text, train.references, train.modifications)])
        ),
    }
    columns = {name: made[name]() for name in step.columns(objective) if name != "slot"}
    ids = {name: column for name, column in columns.items() if name.endswith("ids")}
    return feed.table(clip.config, {name: column for name, column in columns.items() if name not in ids}, ids)


def restrict(clip: clip_jax.Clip, table: feed.Table) -> tuple[Tower, feed.Table]:
    """The tower with the tokens of the table and the prompt alone, and the table in its numbers."""
    restricted = vocabulary.restrict(
        clip.config, clip.params["text"], *table.ids.values(), np.array(compose.prompt(clip).ids)
    )
    ids = {name: restricted.localise(column) for name, column in table.ids.items()}
    logging.info("%d of %d tokens are in the triplets", len(restricted.kept), clip.config.text.vocab_size)
    return Tower(clip, restricted), replace(table, ids=ids)


def validation(
    tower: Tower,
    network: phi.Network,
    val: triplets.Triplets,
    decay: Callable[[int], float],
    *,
    batch_size: int,
    cache: Path,
) -> Callable:
    """`state -> metrics` on held-back triplets, texts in place of images: the recall of the target among all captions.

    The query is "a photo of $ that T_c" with φ(ψ(T_r)) for $, by the trained encoder; the gallery is ψ of the targets
    and, as distractors, of the references.
    """
    references, targets = (
        clip_jax.embed_texts(tower.clip, texts, batch_size=batch_size, cache=cache, progress=False)
        for texts in (val.references, val.targets)
    )
    distinct, rows = np.unique([*val.targets, *val.references], return_inverse=True)
    gallery = np.empty((len(distinct), references.shape[1]), np.float32)
    gallery[rows] = np.concatenate([targets, references])
    gallery, own = np.asarray(normalise(gallery)), rows[: len(val)]

    def evaluate(state) -> dict[str, float]:
        tuned = tower.with_params(state.params, decay(int(state.step)))
        found = compose.queries(tuned, network, references, val.modifications, batch_size=batch_size)
        similarity = found @ gallery.T
        ahead = (similarity >= similarity[np.arange(len(own)), own][:, None]).sum(1) - 1  # ties count against it
        return {RECALL: 100 * float((ahead < 1).mean()), "val/recall_at_10": 100 * float((ahead < 10).mean())}

    return evaluate


def train(
    config, run: Run, clip: clip_jax.Clip, network: phi.Network, cache: Path
) -> tuple[clip_jax.Clip, dict[str, float]]:
    """The CLIP with the text encoder of the best step, and that step and its metrics."""
    stage, options = config.rtd, dict(batch_size=config.evaluation.batch_size, cache=cache)
    objective = step.Objective(**stage.objective)
    trained_on, val = sources.triplets(config.triplets, seed=config.seed)
    logging.info("%d triplets to train on, %d to validate on", len(trained_on), len(val))
    tower, table = Tower(clip, None), make_table(clip, objective, trained_on, **options)
    if stage.restrict_vocabulary:
        tower, table = restrict(clip, table)
    layout = _layout(config, tower.config)
    optimizer, schedule, steps, to_steps = optim.of_run(stage, examples=len(table))
    decay = partial(vocabulary.decay, stage.optimizer, schedule) if tower.restricted else lambda steps: 1.0
    compute = dict(dtype=config.model.dtype, remat=config.model.remat, unroll=config.model.unroll or 1)
    state, metrics = training.fit(
        run,
        stage,
        config=tower.config,
        layout=layout,
        state=step.create_state(tower.params, optimizer),
        step=step.make_step(
            replace(tower.config, **compute),
            optimizer,
            network.module,
            objective,
            prompt=tower.prompt(),
            seed=config.seed,
            shards=layout.data_shards,
        ),
        table=table,
        evaluate=validation(tower, network, val, decay, **options),
        best=(RECALL, "max"),
        steps=steps,
        to_steps=to_steps,
        seed=config.seed,
        resident={"phi": jax.device_get(network.params)},
    )
    return tower.with_params(state.params, decay(int(state.step))), metrics


def _layout(config, architecture) -> sharding.Layout:
    shards = config.sharding.model
    rules = partition.partition_rules(architecture, shards, towers=("text",)) if shards > 1 else ()
    layout = sharding.layout(config.sharding.mode, model=shards, rules=rules)
    layout.check_batch(config.rtd.batch_size, "rtd.batch_size")
    return layout
