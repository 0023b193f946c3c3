"""A stage that trains a network by gradient: what pretraining and ERM have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from launch.data import Split, feed
from launch.stages import (
    Stage,
    about,
    free,
    numbers,
    require,
    require_known,
    require_number,
    section,
    stackable,
    with_numbers,
)
from launch.store import Store
from launch.training import accumulation, duration
from launch.training import sharding as mesh
from launch.training.accumulation import Parts
from launch.training.fit import Cadence, Loop, Training, alone, train
from launch.training.optim import Optimizer
from launch.training.places import One
from launch.training.program import Batch, Numbers, Program, Step, as_arrays
from launch.training.program import NormState as State
from tldr_jax.classifier import backbones, erm
from tldr_jax.classifier.backbones import Backbone


@dataclass(frozen=True)
class BestCheckpoint:
    """The checkpoint that is kept, instead of the last one.

    Attributes:
      metric: of the validation images, "accuracy" or "wga"; the highest is best.
      every: how often it is measured, a duration.
    """

    metric: str
    every: str

    def __post_init__(self):
        require_known(self, "metric", ("accuracy", "wga"))
        duration.check(self, "every")


@dataclass(frozen=True)
class Examples:
    """Shapes of training data.

    Attributes:
      count: images.
      label: shape of one label, () or (5,).
      in_memory: the images live on the devices; otherwise each batch brings its own.
    """

    count: int
    label: tuple[int, ...] = ()
    in_memory: bool = True


@dataclass(frozen=True, kw_only=True)
class Supervised(Stage):
    """A network trained by the mean of a loss over labelled images; its result is the variables, on the host.

    Attributes:
      backbone: the network.
      optimizer: of all parameters.
      duration: of the training.
      batch_size: over all devices.
      accumulation: parts that a device's share of a batch is computed in, one after the other, for want of memory;
        batch norm is of each part.
      seed: of fresh parameters, order and augmentation.
      sharding: "jit" (batch norm over the global batch) or "pmap" (per device).
      loop: logs, evaluations and checkpoints; they decide nothing of the result.
    """

    SECTION: ClassVar[str]  # of the config, for messages

    backbone: Backbone
    optimizer: Optimizer
    duration: str
    batch_size: int
    accumulation: int = 1
    seed: int = stackable(0)
    sharding: str = "jit"
    loop: Loop = free(Loop())

    def __post_init__(self) -> None:
        duration.check(self, "duration")
        require_number(self, "seed", least=0)
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require_number(self, "accumulation", least=1)
        require_known(self, "sharding", mesh.MODES)

    @property
    def outputs(self) -> int:
        """Width of the logits."""
        raise NotImplementedError

    @property
    def loss(self) -> erm.Loss:
        """Loss of each example."""
        raise NotImplementedError

    def training_data(self) -> Examples:
        """Shapes of the training data, without reading them."""
        raise NotImplementedError

    def prepare(self, seed: Any, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        """A training batch with `image`, uint8, augmented, and `label`."""
        raise NotImplementedError

    @property
    def trains(self) -> bool:
        """Whether there is a step to be trained."""
        return self._steps(1)[1] > 0

    def check_batch(self, examples: int) -> None:
        """Refuse a batch that is larger than the set: it would have images several times."""
        with section(self.SECTION):
            self._cadence(examples)
            fits = self.batch_size <= examples or not self.trains
            require(fits, self, "batch_size", f"more than the {examples} training images")

    def layout(self, devices: Sequence[mesh.Device] | None = None) -> mesh.Layout:
        """See `launch.training.program.TrainedStage`."""
        layout = mesh.layout(self.sharding, devices=devices)
        with section(self.SECTION):
            layout.check_batch(self.batch_size)
            accumulation.check(self, self.batch_size, layout.data_shards)
        return layout

    def preflight(self, store: Store) -> None:
        self.layout()

    def model(self) -> nn.Module:
        """The network."""
        return self.backbone.create(self.outputs)

    def step(self, examples: int, shards: int) -> Step:
        """The training step for a training set of this size, which defines an epoch; `shards` as in `Parts`."""

        def prepare(values: Numbers, batch: Batch, step: jax.Array):
            full = self.prepare(with_numbers(self, values).seed, batch, step)
            return self.backbone.normalize(full["image"]), full["label"]

        parts = Parts(self.accumulation, shards)
        return erm.make_step(self.model(), self.loss, prepare, partial(self._optimizer, examples), parts)

    def program(self, layout: mesh.Layout) -> Program:
        """Step and shapes, without data; see `launch.training.program`."""
        data, shape = self.training_data(), jax.ShapeDtypeStruct
        values = as_arrays(numbers(self))
        variables = backbones.template(self.model(), self.backbone.image_shape)
        state = jax.eval_shape(partial(self._state, data.count), values, variables)
        own = lambda size, name, inner: {name: shape((size, *inner), jnp.uint8 if inner[2:] else jnp.int32)}
        images = lambda size: own(size, "image", self.backbone.image_shape) | own(size, "label", data.label)
        batch = {"slot": shape((self.batch_size,), jnp.int32)}
        if not data.in_memory:
            return Program(self.step(data.count, layout.data_shards), values, state, batch | images(self.batch_size))
        whole = images(data.count)
        resident = {"images": feed.Table.shapes(whole["image"]), "labels": whole["label"]}
        batch |= {"row": shape((self.batch_size,), jnp.int32)}
        return Program(self.step(data.count, layout.data_shards), values, state, batch, resident)

    def train(
        self,
        store: Store,
        variables: Mapping[str, Any],
        split: Split,
        resident: Mapping[str, Any],
        *,
        evaluate=None,
        best: BestCheckpoint | None = None,
    ) -> dict[str, Any]:
        """Train from `variables`, or continue a training that was stopped.

        Args:
          store: keeps metrics and checkpoints.
          variables: the initial ones, on the host.
          split: training images.
          resident: tables and arrays that the devices keep.
          evaluate: see `erm.validation`; None for no evaluation.
          best: which checkpoint is returned; None for the last state.

        Returns:
          Variables on the host.
        """
        layout = self.layout()
        self.check_batch(len(split))
        steps = self._steps(len(split))[1]
        values = as_arrays(numbers(self))
        if not steps:
            return jax.tree.map(np.asarray, dict(variables))
        state = jax.jit(partial(self._state, len(split)))(values, dict(variables))
        training = Training(
            place=One(layout),
            step=self.step(len(split), layout.data_shards),
            numbers=values,
            batches=lambda start: feed.train_batches(
                split,
                seed=self.seed,
                batch_size=self.batch_size,
                start=start,
                **layout.share,
            ),
            batch_size=self.batch_size,
            steps=steps,
            evaluate=alone(evaluate) if evaluate is not None else None,
            resident=resident,
            cadence=self._cadence(len(split), best),
            best=(f"val/{best.metric}", "max") if best else None,
        )
        return jax.tree.map(np.asarray, train(store, self, state, training).state.variables)

    def _steps(self, examples: int):
        to_steps = partial(duration.to_steps, examples=examples, batch_size=self.batch_size)
        with about("duration"):
            return to_steps, to_steps(self.duration)

    def _cadence(self, examples: int, best: BestCheckpoint | None = None) -> Cadence:
        loop = replace(self.loop, eval_every=best.every) if best else self.loop
        return loop.cadence(self._steps(examples)[0])

    def _optimizer(self, examples: int, values: Numbers):
        to_steps, steps = self._steps(examples)
        return with_numbers(self, values).optimizer.create(total_steps=steps, to_steps=to_steps)[0]

    def _state(self, examples: int, values: Numbers, variables: Mapping[str, Any]) -> State:
        # from the same numbers as the step, which may be traced: a part that is off at 0 still has its state
        optimizer = self._optimizer(examples, values)
        return State(jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"]))
