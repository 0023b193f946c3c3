"""The training of a classifier."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.data import Spec, Splits, feed
from launch.stages import (
    SettingError,
    Stage,
    about,
    free,
    numbers,
    require,
    require_known,
    require_number,
    section,
    stackable,
    stacked_numbers,
    with_numbers,
)
from launch.store import Store
from launch.training import accumulation, duration, fit, keys, sharding
from launch.training.accumulation import Parts
from launch.training.optim import Optimizer
from launch.training.pace import NonFiniteLoss
from launch.training.places import One, Place, stack
from launch.training.program import Batch, Metrics, NormState, Numbers, Pass, Program, Step, as_arrays
from robustgrad_jax import training
from robustgrad_jax.gradients import Draws
from robustgrad_jax.measures import evaluation, means
from robustgrad_jax.regularizers import Penalty
from robustgrad_jax.stages.inputs import Architecture, ImageSplits, Pretrained, Variables


@dataclass(frozen=True)
class TrainingLoop(fit.BestLoop):
    """The loop of a classifier's training, see `launch.training.fit.Loop`; without a metric the last state counts."""

    METRICS: ClassVar[Sequence[str]] = ("val/accuracy", "val/cross_entropy", "")

    eval_every: str = "1 epoch"
    checkpoint_every: str = free("1 epoch")
    best_metric: str = "val/accuracy"


@dataclass(frozen=True)
class Classifier(Stage):
    """A network that is trained; its best state on validation, or its last.

    Attributes:
      images: what it is trained and validated on.
      architecture: of the network.
      regularizer: what is added to the cross-entropy.
      optimizer: of all parameters.
      initial: the network to begin with; None for random weights.
      batch_size: over all devices.
      accumulation: parts that a device's share of a batch is computed in, one after the other, for want of memory; the
        gradients are those of the whole, except that batch norm is of each part.
      duration: of the training.
      mode: "jit" or "pmap", see `launch.training.sharding`; in the latter, batch norm is per device.
      loop: what is logged, validated and saved.
      val_batch_size: images at a time in validation.
      seed: of initial weights, order, augmentation and noise.
    """

    STACKS: ClassVar[bool] = True

    images: ImageSplits
    architecture: Architecture
    regularizer: Penalty
    optimizer: Optimizer
    initial: Pretrained | None = None
    batch_size: int = 128
    accumulation: int = 1
    duration: str = "300 epochs"
    mode: str = "jit"
    loop: TrainingLoop = field(default_factory=TrainingLoop)
    val_batch_size: int = free(128)
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        require_number(self, "batch_size", least=1)
        require_number(self, "accumulation", least=1)
        duration.check(self, "duration", least=1)
        require_known(self, "mode", sharding.MODES)

    def check(self) -> None:
        """Validate what depends on the data and the network.

        Raises:
          SettingError: there are no validation images to choose a state by, a batch is larger than the training set,
            durations are too long or milestones do not increase, or an expression of optimizer.decay_mask matches no
            parameter.
        """
        spec = self.images.data.spec()
        if self.loop.best_metric and not spec.val_examples:
            way_out = "hold out some, or set loop.best_metric='' for the last"
            problem = f"=0: the best state is chosen by {self.loop.best_metric}; {way_out}"
            raise SettingError("data.val_examples", problem)
        require(self.batch_size <= spec.examples, self, "batch_size", f"more than the {spec.examples} training images")
        self._cadence(spec)
        with about("data.image_size"):
            shapes = self.architecture.shapes(spec)
        with about("optimizer.decay_mask"), section("optimizer.schedule"):
            jax.eval_shape(self._optimizer(spec).init, shapes["params"])

    def layout(self, devices: Sequence[sharding.Device] | None = None) -> sharding.Layout:
        """See `launch.training.program.TrainedStage`."""
        layout = sharding.layout(self.mode, devices=devices)
        layout.check_batch(self.batch_size)
        accumulation.check(self, self.batch_size, layout.data_shards)
        return layout

    def check_devices(self) -> None:
        self.layout()

    def make(self, store: Store) -> dict[str, Any]:
        """{"variables": of the best state or the last, on the host; "best_step"; "metrics": of its validation}."""
        layout = self.layout()
        splits, spec = store.get(self.images), self.images.data.spec()
        batches = partial(feed.train_batches, splits.train, seed=self.seed, batch_size=self.batch_size, **layout.share)
        whole = self._training(
            One(layout),
            shards=layout.data_shards,
            numbers=as_arrays(numbers(self)),
            batches=lambda start: batches(start=start),
            evaluate=self._evaluate(layout, splits),
            resident=feed.resident(splits.train),
        )
        return _result(fit.train(store, self, self.initial_state(spec, self._initial(store)), whole))

    def _evaluate(self, layout: sharding.Layout, splits: Splits) -> fit.Evaluate | None:
        """The metrics of validation images; None if there are none."""
        if splits.val is None:
            return None
        over_val, accuracy = means.over_split(layout, splits.val, self.val_batch_size), self._accuracy(splits)
        return fit.alone(lambda state: _validation(over_val(accuracy, state.variables)))

    @classmethod
    def make_together(cls, stages: Sequence["Classifier"], store: Store) -> dict[int, Exception]:
        """Train several as one program; see `Stage.make_together`."""
        begin, first = time.perf_counter(), stages[0]
        spec, initial = first.images.data.spec(), first._initial(store)
        values = as_arrays(stacked_numbers(stages))
        create = jax.vmap(lambda own: with_numbers(first, own).initial_state(spec, initial), axis_size=len(stages))
        accuracy = first._accuracy(store.get(first.images))

        def training_of(indices: Sequence[int]) -> fit.Training:
            place = stack(len(indices))
            resident, batches, val_batches = _stacked_feeds([stages[i] for i in indices], store)
            over_val = means.of_stack(place, accuracy)

            def evaluate(numbers: Any, states: Any, resident: Any) -> fit.Values:
                return [_validation(values) for values in over_val(states, resident, val_batches())]

            own = {name: value[list(indices)] for name, value in values.items()}
            validate = evaluate if spec.val_examples else None
            return first._training(place, numbers=own, batches=batches, resident=resident, evaluate=validate)

        outcomes = fit.train_together(store, stages, jax.device_get(jax.jit(create)(values)), training_of)
        failures: dict[int, Exception] = {}
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, NonFiniteLoss):
                failures[index] = outcome
            else:
                store.put(stages[index], _result(outcome), time.perf_counter() - begin)
        return failures

    @classmethod
    def outline_together(cls, stages: Sequence["Classifier"], devices: Sequence[sharding.Device]) -> list[Pass]:
        """What `make_together` compiles on these devices."""
        first = stages[0]
        program = first.program(sharding.layout(devices=devices[:1]))
        numbers = as_arrays(stacked_numbers(stages))
        place, name = stack(len(stages), devices), f"{len(stages)} {cls.__name__}s"
        return fit.outlines(place, name, replace(program, numbers=numbers), first.loop)

    def program(self, layout: sharding.Layout) -> Program:
        """The program that it compiles, for a global batch over the devices of `layout`."""
        spec = self.images.data.spec()
        shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype)
        batch: dict[str, Any] = {"slot": shape(jnp.int32, self.batch_size)}
        resident: dict[str, Any] = {}
        if spec.in_memory:
            batch["row"] = shape(jnp.int32, self.batch_size)
            resident["images"] = feed.Table.shapes(shape(jnp.uint8, spec.examples, *spec.image_shape))
            resident["labels"] = shape(jnp.int32, spec.examples)
        else:
            batch["image"] = shape(jnp.uint8, self.batch_size, *spec.image_shape)
            batch["label"] = shape(jnp.int32, self.batch_size)
        state = jax.eval_shape(partial(self.initial_state, spec))
        return Program(self._step(layout.data_shards), as_arrays(numbers(self)), state, batch, resident)

    def initial_state(self, spec: Spec, initial: Variables | None = None) -> NormState:
        """The state before the first step, from given variables or random ones; its numbers may be traced."""
        return training.create_state(
            self.architecture.module(spec), self._optimizer(spec), spec.image_shape, self.seed, initial
        )

    def _step(self, shards: int) -> Step:
        """The step, whose batches are spread over so many devices."""
        data = self.images.data
        spec, (mean, std) = data.spec(), data.statistics()
        module, prepare = self.architecture.module(spec), training.Normalized(mean, std)

        def step(
            numbers: Numbers, state: NormState, batch: Batch, *, axis_name: str | None = None
        ) -> tuple[NormState, Metrics]:
            stage = with_numbers(self, numbers)
            stream = partial(keys.stream, stage.seed, step=state.step)
            if spec.in_memory:
                x, y = prepare.augmented(batch, stream("augment"), padding=data.crop_padding, flip=data.flip)
            else:
                x, y = prepare(batch)  # streamed images were cropped and flipped on the host
            draws = Draws(stream("regularizer"), batch["slot"])
            optimizer = stage._optimizer(spec)
            return training.update(
                *(module, optimizer, stage.regularizer, state, x, y, draws),
                std=std,
                axis_name=axis_name,
                parts=Parts(self.accumulation, shards),
            )

        return step

    def _optimizer(self, spec: Spec) -> optax.GradientTransformation:
        steps, to_steps = self._steps(spec)
        return self.optimizer.create(total_steps=steps, to_steps=to_steps)[0]

    def _steps(self, spec: Spec) -> tuple[int, Any]:
        """The number of steps, and the function that turns a duration into steps."""
        to_steps = partial(duration.to_steps, examples=spec.examples, batch_size=self.batch_size)
        with about("duration"):
            return to_steps(self.duration), to_steps

    def _cadence(self, spec: Spec) -> fit.Cadence:
        with section("loop"):
            return self.loop.cadence(self._steps(spec)[1])

    def _training(self, place: Place, *, shards: int = 1, **parts: Any) -> fit.Training:
        """The training of this stage, or of a stack of its kind; `parts` are the fields that differ.

        `shards` is the number of devices over which one training's batches are spread.
        """
        spec = self.images.data.spec()
        return fit.Training(
            place=place,
            step=self._step(shards),
            batch_size=self.batch_size,
            steps=self._steps(spec)[0],
            cadence=self._cadence(spec),
            best=(self.loop.best_metric, self.loop.best_mode) if self.loop.best_metric else None,
            **parts,
        )

    def _accuracy(self, splits: Splits) -> evaluation.Measure:
        module = self.architecture.module(self.images.data.spec())
        return evaluation.accuracy(module, training.Normalized(splits.mean, splits.std))

    def _initial(self, store: Store) -> Variables | None:
        return None if self.initial is None else store.get(self.initial)["variables"]


def _result(outcome: fit.Outcome) -> dict[str, Any]:
    variables = jax.device_get(outcome.state.variables)
    return {"variables": variables, "best_step": outcome.step, "metrics": dict(outcome.metrics)}


def _validation(values: Mapping[str, float]) -> dict[str, float]:
    return {f"val/{name}": value for name, value in values.items() if name != "examples"}


def _stacked_feeds(stages: Sequence[Classifier], store: Store) -> tuple[dict[str, np.ndarray], Any, Any]:
    """What a stack reads: images that all members share, and batches (k, b, …).

    Seeds cut a data set differently: their splits are pooled, so that every image is on a device once.

    Returns:
      The resident images; `batches(start)` of training, and `val_batches()`.
    """
    first = stages[0]
    members = [(stage.images.key, stage.seed) for stage in stages]
    different = dict(zip(members, stages, strict=True))
    splits = {member: store.get(stage.images) for member, stage in different.items()}
    vals = {member: own.val for member, own in splits.items() if own.val is not None}
    resident, rows = feed.pooled([own.train for own in splits.values()] + list(vals.values()))
    train_rows = dict(zip(splits, rows[: len(splits)], strict=True))
    val_rows = dict(zip(vals, rows[len(splits) :], strict=True))

    def stacked(feeds: Mapping[Any, Iterable[feed.Batch]], rows: Mapping[Any, Any]) -> Iterator[dict[str, np.ndarray]]:
        for parts in zip(*feeds.values(), strict=True):
            moved = {member: feed.moved(part, rows[member]) for member, part in zip(feeds, parts, strict=True)}
            yield {name: np.stack([moved[member][name] for member in members]) for name in moved[members[0]]}

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        make = partial(feed.train_batches, batch_size=first.batch_size, start=start)
        return stacked({member: make(splits[member].train, seed=member[1]) for member in splits}, train_rows)

    def val_batches() -> Iterator[dict[str, np.ndarray]]:
        size = min(first.val_batch_size, *map(len, vals.values()))
        return stacked({member: feed.eval_batches(val, batch_size=size) for member, val in vals.items()}, val_rows)

    return resident, batches, val_batches
