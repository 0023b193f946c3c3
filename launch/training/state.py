"""Everything that training changes. Random keys are not here: they follow from the seed and the step."""

from typing import Any

import jax
import optax
from flax import struct


@struct.dataclass
class State:
    """Of a network whose parameters are all that it has; the optimiser may know a part of them only."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


@struct.dataclass
class NormState:
    """Of a network with batch norm."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}
