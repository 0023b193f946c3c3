"""What a trained stage compiles: a pure step, and the shapes of everything that goes into it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
import optax
from flax import struct

from launch.training.sharding import RESIDENT, Device, Layout

LOSS = "loss"  # the metric that every step has; all of them must stay finite

Batch = Mapping[str, Any]
Numbers = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class Step(Protocol):
    """One update, pure.

    Args:
      numbers: scalars in which members of a sweep may differ, by name: learning rate, weights, seed (see
        `launch.stages.numbers`). They are arguments of the compiled program, so that every member runs the same one.
      state: a pytree with an integer scalar `step`.
      batch: a global batch, or one device's share of it; under "resident" what every device keeps whole.
      axis_name: the mesh axis to average gradients, statistics and metrics over; None where the batch is global.

    Returns:
      The next state, and scalar metrics that include "loss".
    """

    def __call__(
        self, numbers: Numbers, state: Any, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[Any, Metrics]: ...


@dataclass(frozen=True)
class Program:
    """A step with the shapes of its arguments; nothing is computed to make one.

    Attributes:
      step: see `Step`.
      numbers: scalars, or their shapes.
      state: shapes of the state, as `jax.ShapeDtypeStruct`.
      batch: shapes of a global batch, without "resident".
      resident: shapes of the arrays that every device keeps whole, or None.
    """

    step: Step
    numbers: Numbers
    state: Any
    batch: Batch
    resident: Any = None


def repeated(step: Step) -> Step:
    """Several steps as one: `step` on one after the other of stacked batches (k, …); metrics are (k,)."""

    def steps(numbers: Numbers, state: Any, batch: Batch, *, axis_name: str | None = None) -> tuple[Any, Metrics]:
        shared = {name: value for name, value in batch.items() if name == RESIDENT}
        stacked = {name: value for name, value in batch.items() if name != RESIDENT}
        return jax.lax.scan(
            lambda state, own: step(numbers, state, {**own, **shared}, axis_name=axis_name), state, stacked
        )

    return steps


@dataclass(frozen=True)
class Pass:
    """A jitted function with the shapes of its arguments; nothing is computed to make one.

    Attributes:
      name: what it computes, "image embedding".
      function: from `jax.jit`.
      arguments: `jax.ShapeDtypeStruct`s that carry their shardings, or pytrees of them; static ones as they are.
      calls: how often a run calls it; 0 where only the data tells.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    calls: int = 0


class TrainedStage(Protocol):
    """What a trained stage says of its training, before anything is read or computed for it.

    Its field `loop`, a `launch.training.fit.Loop`, says how many steps a call runs.
    """

    def layout(self, devices: Sequence[Device] | None = None) -> Layout:
        """How it trains over some devices, by default over all: mode, model axis, partition rules.

        Raises:
          ValueError: it cannot be trained on so many.
        """
        ...

    def program(self, layout: Layout) -> Program:
        """What it compiles for that layout."""
        ...


class FrozenStage(Protocol):
    """A stage that computes without training, such as embeddings or attacks, may say what it compiles."""

    def passes(self, layout: Layout) -> Sequence[Pass]:
        """The compiled functions that take its time.

        Args:
          layout: all devices, in mode "jit"; a pass that each process makes alone uses those of one process.
        """
        ...


def as_arrays(numbers: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Numbers as arguments of a program: int32, or JAX's default float.

    Args:
      numbers: Python numbers, or lists of them with one for each member of a stack.

    Raises:
      ValueError: a value is not a number, or an integer of more than 32 bits; the error names it.
    """
    arrays = {}
    for name, value in numbers.items():
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            if isinstance(one, bool) or not isinstance(one, int | float):
                raise ValueError(f"{name}={one!r} is not a number, so it cannot be an argument of a program")
            if isinstance(one, int) and abs(one) >= 2**31:
                raise ValueError(f"{name}={one}: integers of a program have 32 bits; use one below {2**31}")
        whole = all(isinstance(one, int) for one in values)
        dtype = np.int32 if whole else jax.dtypes.canonicalize_dtype(float)
        arrays[name] = np.asarray(value, dtype)
    return arrays


# -- states: everything that training changes; random keys follow from the seed and the step -------------------------


@struct.dataclass
class State:
    """The state of a network that has parameters only; the optimiser may hold just a part of them."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


@struct.dataclass
class NormState:
    """The state of a network with batch norm."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}
