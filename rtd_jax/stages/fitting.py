"""What trained stages share: settings, the program, the run of the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import jax
import optax
from jax.sharding import PartitionSpec as P

from clip_jax.config import ClipConfig
from clip_jax.training.options import Devices
from launch.stages import Stage, about, free, numbers, require, require_known, section, stackable, with_numbers
from launch.store import Store
from launch.training import duration
from launch.training import sharding as mesh
from launch.training.fit import Cadence, Loop, Outcome, Training, alone, train
from launch.training.optim import Optimizer, Rate, ToSteps
from launch.training.places import One
from launch.training.program import Program, State, Step, as_arrays
from rtd_jax.phi.validation import RECALL
from rtd_jax.stages.data import require_whole
from rtd_jax.stages.galleries import GalleryEmbeddings
from rtd_jax.tuning import feed, training


@dataclass(frozen=True)
class TextLoop(Loop):
    """The loop of a training on texts, see `launch.training.fit.Loop`."""

    eval_every: str = "100 steps"
    checkpoint_every: str = free("500 steps")


class MakeUpdate(Protocol):
    """The update of a stage whose numbers may be traced."""

    def __call__(self, stage: Any, /) -> training.Update: ...


@dataclass(frozen=True, kw_only=True)
class TextTraining(Stage):
    """A training on a table of examples; the state with the best "val/recall" is its result.

    Attributes:
      batch_size: examples per step, over all devices.
      cirr: CIRR's val split, whose recall@1 chooses the best state, as published; None: examples that are held back.
      batches: "shuffled", as published, or "by_length", texts of similar length together; see `rtd_jax.tuning.feed`.
      seed: of the initial parameters, the order, and the random numbers of the steps.
    """

    SECTION: ClassVar[str]  # of the config, for messages

    batch_size: int
    duration: str
    optimizer: Optimizer
    loop: TextLoop = field(default_factory=TextLoop)
    sharding: Devices = field(default_factory=Devices)
    cirr: GalleryEmbeddings | None = None
    batches: str = "shuffled"
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        require_whole(self, "batch_size")
        require_known(self, "batches", ("shuffled", "by_length"))
        duration.check(self, "duration", least=1)

    def layout(self, devices: Sequence[mesh.Device] | None = None) -> mesh.Layout:
        """See `launch.training.program.TrainedStage`."""
        return self.layout_by((), devices)

    def layout_by(self, rules: Sequence[tuple[str, P]], devices: Sequence[mesh.Device] | None) -> mesh.Layout:
        """Devices over which the batch divides, with parameters split by `rules`."""
        layout = self.sharding.layout(rules, devices)
        with section(self.SECTION):
            layout.check_batch(self.batch_size)
        return layout

    def check_fit(self, examples: int, params: Any) -> None:
        """Raise `SettingError` for what does not fit so many examples, or these parameters (or their shapes)."""
        with section(self.SECTION):
            require(self.batch_size <= examples, self, "batch_size", f"more than the {examples} examples to train on")
            self.cadence(examples)
            with section("optimizer.schedule"):
                optimizer, _ = self.create_optimizer(examples)
            with about("optimizer.decay_mask"):
                jax.eval_shape(optimizer.init, params)

    def cadence(self, examples: int) -> Cadence:
        """How often things happen in a training on so many examples."""
        with section("loop"):
            return self.loop.cadence(self.to_steps(examples))

    def to_steps(self, examples: int) -> ToSteps:
        """The function that turns durations into steps."""
        return partial(duration.to_steps, examples=examples, batch_size=self.batch_size)

    def create_optimizer(self, examples: int) -> tuple[optax.GradientTransformation, Rate]:
        """The optimiser, and its learning rate as a function of the step."""
        to_steps = self.to_steps(examples)
        with about("duration"):
            total = to_steps(self.duration)
        return self.optimizer.create(total_steps=total, to_steps=to_steps)

    def step_of(self, make_update: MakeUpdate) -> Step:
        """The step of this stage, with the program's numbers in place of its own."""

        def step(numbers, state, batch, *, axis_name: str | None = None):
            return make_update(with_numbers(self, numbers))(state, batch, axis_name=axis_name)

        return step

    def rows_at(self, table: feed.TextTable) -> feed.BatchRows:
        """The rows of every step's batch."""
        lengths = table.lengths if self.batches == "by_length" else None
        return feed.grouped_rows(len(table), seed=self.seed, batch_size=self.batch_size, lengths=lengths)

    def program_of(
        self, make_update: MakeUpdate, params: Any, examples: int, batch: Mapping[str, Any], resident: Any
    ) -> Program:
        """The program of a step, from the shapes of parameters, batch and resident arrays."""
        optimizer, _ = self.create_optimizer(examples)
        state = jax.eval_shape(partial(training.create_state, optimizer=optimizer), params)
        return Program(self.step_of(make_update), as_arrays(numbers(self)), state, batch, resident)

    def fit(
        self,
        store: Store,
        make_update: MakeUpdate,
        params: Any,
        *,
        layout: mesh.Layout,
        config: ClipConfig,
        table: feed.TextTable,
        evaluate: Callable[[State], Mapping[str, float]],
        resident: Mapping[str, Any],
    ) -> Outcome:
        """Train from initial parameters on a table; `config` is that of the CLIP, for the lengths of texts.

        Raises:
          ValueError: a batch that is larger than the table.
        """
        rows_at = self.rows_at(table)
        whole = Training(
            place=One(layout),
            step=self.step_of(make_update),
            numbers=as_arrays(numbers(self)),
            batches=lambda start: feed.batches(config, table, rows_at, start=start, **layout.share),
            batch_size=self.batch_size,
            steps=self.to_steps(len(table))(self.duration),
            evaluate=alone(evaluate),
            resident=resident,
            cadence=self.cadence(len(table)),
            best=(RECALL, "max"),
        )
        optimizer, _ = self.create_optimizer(len(table))
        return train(store, self, training.host_state(params, optimizer), whole)


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """The step of a training's best state, and its metrics."""
    return {"best_step": float(outcome.step), **outcome.metrics}
