"""RTD's training of the text encoder as stages: frozen embeddings of the triplets, the training, the CLIP it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging

import clip_jax
from clip_jax.config import DTYPES, ClipConfig
from clip_jax.training.clips import text_pass
from clip_jax.training.options import Computation
from launch.results import FieldsStage
from launch.stages import Stage, free, require, require_known, section
from launch.store import Store
from launch.training import accumulation
from launch.training.program import Pass, Program, State
from launch.training.sharding import Device, Layout
from rtd_jax.phi import Network
from rtd_jax.stages import galleries
from rtd_jax.stages.data import ClipSource, DataStage
from rtd_jax.stages.fitting import TextTraining, metrics_of
from rtd_jax.stages.phi import PhiFile, PhiTraining
from rtd_jax.text import vocabulary
from rtd_jax.text.compose import Prompt
from rtd_jax.text.triplets import Triplets
from rtd_jax.tuning import step, trained, training


@dataclass(frozen=True, kw_only=True)
class TripletEmbeddings(Stage):
    """The frozen encoder's embeddings of the triplets' captions, (n, d) each: ψ(T_r) and ψ(T_t)."""

    clip: ClipSource
    triplets: DataStage
    batch_size: int = free(256)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        return [text_pass(self.clip.outline(), self.batch_size, layout)]

    def make(self, store: Store) -> dict[str, np.ndarray]:
        clip, (train, val) = store.get(self.clip), store.get(self.triplets)
        texts = {
            "reference": train.references,
            "target": train.targets,
            "val_reference": val.references,
            "val_target": val.targets,
        }
        embed = partial(clip_jax.embed_texts, clip, batch_size=self.batch_size, progress=False)
        return {name: embed(part) for name, part in texts.items()}


@dataclass(frozen=True, eq=False)
class TunedText:
    """The trained text tower, and how it did on validation.

    Attributes:
      params: of the text tower with its whole vocabulary.
      metrics: at the best step.
    """

    params: dict[str, Any]
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Tuning(TextTraining, FieldsStage):
    """RTD: the text encoder learns to put composed queries where the frozen one puts the target captions.

    Attributes:
      phi: φ, which stays frozen.
      embeddings: of the triplets; they hold the CLIP too.
      objective: what is trained.
      compute: how the step computes.
      restrict_vocabulary: train the embeddings of tokens that the triplets use; the others only decay.
      text_batch_size: texts at a time in validation.
    """

    RESULT: ClassVar[Any] = TunedText

    SECTION = "rtd"

    phi: PhiTraining | PhiFile
    embeddings: TripletEmbeddings
    objective: step.Objective = field(default_factory=step.Objective)
    compute: Computation = field(default_factory=Computation)
    restrict_vocabulary: bool = True
    text_batch_size: int = free(256)

    def __post_init__(self) -> None:
        super().__post_init__()
        with section("optimizer"):
            ok = not self.restrict_vocabulary or self.optimizer.name == "adamw" or not vocabulary.decays(self.optimizer)
            problem = (
                "adds weight decay to the gradient, which moves every row of the token table; use 'adamw', "
                "weight_decay=0, or rtd.restrict_vocabulary=False"
            )
            require(ok, self.optimizer, "name", problem)

    @property
    def start(self) -> ClipSource:
        """The CLIP whose text tower is trained: in float32, whatever the frozen one is in."""
        return replace(self.embeddings.clip, dtype="float32")

    def tower(self, clip: clip_jax.Clip, train: Triplets) -> tuple[trained.TrainedTower, dict[str, np.ndarray]]:
        """The tower as it is trained, and the triplets' token ids in its vocabulary."""
        ids = trained.token_ids(clip, self.objective, train)
        return trained.restrict(clip, ids) if self.restrict_vocabulary else (trained.TrainedTower(clip, None), ids)

    def update(self, config: ClipConfig, prompt: Prompt, module: Any, examples: int, layout: Layout) -> training.Update:
        """One update of the text tower of a CLIP with the trained vocabulary."""
        optimizer, _ = self.create_optimizer(examples)
        return step.make_step(
            self.sharding.spread(self.compute.applied(config), layout),
            optimizer,
            module,
            self.objective,
            prompt=prompt,
            seed=self.seed,
            shards=layout.data_shards,
        )

    def program(self, layout: Layout) -> Program:
        """What is compiled for the longest texts; the triplets are read for their number and their tokens."""
        clip, (train, _) = self.start.outline(), self.embeddings.triplets.make()
        tower, _ = self.tower(clip, train)
        return self.program_for(tower, self.phi.network(clip), len(train), clip.config.text.context_length, layout)

    def program_for(
        self, tower: trained.TrainedTower, network: Network, examples: int, length: int, layout: Layout
    ) -> Program:
        """What is compiled for any tower and φ, arrays or shapes, and texts of `length` tokens."""
        config, prompt = tower.config, tower.prompt
        return self.program_of(
            lambda stage: stage.update(config, prompt, network.module, examples, layout),
            {"text": tower.params},
            examples,
            step.batch_shapes(config, self.objective, self.batch_size, length),
            {"phi": jax.eval_shape(lambda: network.params)},
        )

    def layout(self, devices: Sequence[Device] | None = None) -> Layout:
        layout = self.layout_by(self.sharding.rules(self.embeddings.clip.outline().config, ("text",)), devices)
        with section("rtd.objective"):
            accumulation.check(self.objective, self.batch_size, layout.data_shards, "rtd.batch_size")
        return layout

    def preflight(self, store: Store) -> None:
        clip, (train, _) = store.get(self.start), store.get(self.embeddings.triplets)
        self.check_fit(len(train), {"text": clip.params["text"]})
        self.layout()

    def make(self, store: Store) -> TunedText:
        clip, (train, val) = store.get(self.start), store.get(self.embeddings.triplets)
        embeddings, network = store.get(self.embeddings), store.get(self.phi).network
        logging.info("%d triplets to train on, %d to validate on", len(train), len(val))
        tower, ids = self.tower(clip, train)
        table = trained.make_table(tower.config, self.objective, embeddings, ids)
        layout = self.layout()
        _, rate = self.create_optimizer(len(table))

        def whole(state: State) -> dict[str, Any]:
            """The text tower of a state with the whole vocabulary."""
            restricted = tower.subset is not None
            decay = vocabulary.decay(self.optimizer, rate, int(state.step)) if restricted else 1.0
            return tower.whole(state.params, decay)

        frozen = embeddings["val_reference"], embeddings["val_target"]
        held_back = trained.Validation(network, val, *frozen, self.text_batch_size)
        cirr = None if self.cirr is None else galleries.recall(store, self.cirr)
        check = lambda tuned: held_back.measure(tuned) if cirr is None else cirr(tuned, network)
        outcome = self.fit(
            store,
            lambda stage: stage.update(tower.config, tower.prompt, network.module, len(table), layout),
            {"text": tower.params},
            layout=layout,
            config=tower.config,
            table=table,
            evaluate=lambda state: check(trained.with_text(clip, whole(state))),
            resident={"phi": network.params},
        )
        return TunedText(whole(outcome.state), metrics_of(outcome))


@dataclass(frozen=True, kw_only=True)
class TunedClip(Stage):
    """The CLIP with RTD's text encoder, as a checkpoint of it would be read.

    Attributes:
      tuning: trains the encoder.
      dtype: of the checkpoint's weights, to which the text encoder is rounded.
    """

    KEPT = False

    tuning: Tuning
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_known(self, "dtype", [name for name in DTYPES if name != "float64"])

    def make(self, store: Store) -> clip_jax.Clip:
        clip, text = store.get(self.tuning.start), store.get(self.tuning).params
        return trained.with_text(clip, trained.rounded(text, self.dtype))
