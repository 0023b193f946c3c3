"""Parts of a training's settings: how the towers are computed, what batches are made of, devices, cadence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jax.sharding import PartitionSpec as P

import clip_jax
from clip_jax.config import DTYPES, ClipConfig
from clip_jax.sharding import partition_rules
from clip_jax.training import composition, measures
from launch.data import scenes
from launch.stages import about, free, require, require_known, require_number
from launch.training import duration, sharding
from launch.training.sharding import Layout


@dataclass(frozen=True)
class Computation:
    """How the towers are computed.

    Attributes:
      dtype: of activations and matrix products.
      remat: recompute blocks in the backward pass: less memory, a third more work.
      unroll: all blocks in line instead of a loop: slower to compile, faster where they are small.
    """

    dtype: str = "float32"
    remat: bool = free(False)
    unroll: bool = free(False)

    def __post_init__(self) -> None:
        require_known(self, "dtype", DTYPES)

    def of(self, clip: clip_jax.Clip) -> clip_jax.Clip:
        """The same CLIP, computed in this way."""
        options = dict(dtype=self.dtype, remat=self.remat, unroll=self.unroll or 1)
        return replace(clip, config=replace(clip.config, **options))


@dataclass(frozen=True)
class Composition:
    """What batches are made of; see `composition.composer`.

    Attributes:
      alike: kinds of batch; () is shuffled, otherwise the names of attributes in which the members of a group agree.
      group: members of a group.
    """

    alike: tuple[tuple[str, ...], ...] = ((),)
    group: int = 8

    def __post_init__(self) -> None:
        require(self.alike, self, "alike", "names no kind of batch; use ((),) for shuffled batches")
        require(self.group >= 1, self, "group", "must be positive")

    def rows_at(self, examples: int, labels: np.ndarray | None, *, batch_size: int, seed: int) -> composition.RowsAt:
        """The rows of every step's batch; `labels` are Scenes' attributes of the images, int (n, 5), or None."""
        names = () if labels is None else tuple(scenes.ATTRIBUTES)
        for name in (name for kind in self.alike for name in kind):
            valid = ", ".join(map(repr, names)) or "none, so use ((),)"
            require(name in names, self, "alike", f"no attribute {name!r}; valid names: {valid}")
        alike = [[names.index(name) for name in kind] for kind in self.alike]
        return composition.composer(
            examples, seed=seed, batch_size=batch_size, alike=alike, group=self.group, attributes=labels
        )


@dataclass(frozen=True)
class Devices:
    """How a training is spread over devices: the negatives are those of the global batch in any case.

    Attributes:
      mode: "jit" or "pmap"; see `launch.training.sharding`.
      model: devices that share one copy of the parameters ("jit" only).
    """

    mode: str = "jit"
    model: int = 1

    def __post_init__(self) -> None:
        require_known(self, "mode", sharding.MODES)
        require(self.model >= 1, self, "model", "at least 1 device holds the parameters")
        require(self.model == 1 or self.mode == "jit", self, "model", "parameters are split only in mode 'jit'")

    def rules(self, config: ClipConfig) -> Sequence[tuple[str, P]]:
        """Which parameters are split; raises ValueError if they cannot be."""
        return partition_rules(config, self.model) if self.model > 1 else ()

    def layout(self, config: ClipConfig, batch_size: int) -> Layout:
        """The layout over all devices.

        Raises:
          SettingError: the devices cannot be shared in this way, or a batch does not divide over them.
        """
        with about("sharding.model"):
            layout = sharding.layout(self.mode, model=self.model, rules=self.rules(config))
        with about("batch_size"):
            layout.check_batch(batch_size)
        return layout


@dataclass(frozen=True)
class ClipLoop:
    """How often a training logs, validates and saves, and by what it chooses the best checkpoint."""

    log_every: int = free(50)  # steps
    eval_every: str = "0 steps"
    checkpoint_every: str = free("0 steps")
    best_metric: str = "val/recall"
    best_mode: str = "max"

    def __post_init__(self) -> None:
        require_number(self, "log_every", least=0)
        duration.check(self, "eval_every", "checkpoint_every")
        require_known(self, "best_metric", measures.VALIDATION)
        require_known(self, "best_mode", ("max",))
