"""Parts of a training's settings: how the towers are computed, what batches are made of, devices, cadence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

import clip_jax
from clip_jax.config import DTYPES, ClipConfig
from clip_jax.sharding import partition_rules, spread
from clip_jax.training import composition, measures
from launch.data import scenes
from launch.stages import about, free, require, require_known
from launch.training import sharding
from launch.training.fit import BestLoop
from launch.training.sharding import Layout

_REMAT = {"auto": None, "yes": True, "no": False}


@dataclass(frozen=True)
class Computation:
    """How the towers are computed.

    Attributes:
      dtype: of activations and matrix products.
      remat: recompute blocks in the backward pass, less memory for a third more work: "yes", "no", or "auto", if a
        tower has 24 blocks or more (from ViT-L/14 on).
      unroll: all blocks in line instead of a loop: slower to compile, faster where they are small.
    """

    dtype: str = "float32"
    remat: str = free("auto")
    unroll: bool = free(False)

    def __post_init__(self) -> None:
        require_known(self, "dtype", DTYPES)
        require_known(self, "remat", _REMAT)

    def applied(self, config: ClipConfig) -> ClipConfig:
        """The config of a CLIP that is computed in this way."""
        return replace(config, dtype=self.dtype, remat=_REMAT[self.remat], unroll=self.unroll or 1)

    def of(self, clip: clip_jax.Clip) -> clip_jax.Clip:
        """The same CLIP, computed in this way."""
        return replace(clip, config=self.applied(clip.config))


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
    """How a training is spread over devices.

    Attributes:
      mode: "jit" or "pmap"; see `launch.training.sharding`.
      model: devices that share one copy of the parameters ("jit" only).
      fsdp: split parameters and the optimiser's states over all devices, not only over those of `model`: less memory,
        and weights are exchanged ("jit" only).
    """

    mode: str = "jit"
    model: int = free(1)
    fsdp: bool = free(False)

    def __post_init__(self) -> None:
        require_known(self, "mode", sharding.MODES)
        require(isinstance(self.model, int) and self.model >= 1, self, "model", "a whole number of devices, at least 1")
        whole = "mode 'pmap' keeps whole parameters; take 1, or mode 'jit'"
        require(self.model == 1 or self.mode == "jit", self, "model", whole)
        require(
            not self.fsdp or self.mode == "jit", self, "fsdp", "mode 'pmap' keeps whole parameters; take mode 'jit'"
        )

    def rules(self, config: ClipConfig, towers: Sequence[str] = ("image", "text")) -> Sequence[tuple[str, P]]:
        """Which parameters of these towers are split; raises `SettingError` if they cannot be."""
        with about("sharding.model"):
            return partition_rules(config, self.model, towers=towers) if self.model > 1 else ()

    def spread(self, config: ClipConfig, layout: Layout) -> ClipConfig:
        """The config of a CLIP that is trained on such a layout."""
        return spread(config, layout.mesh) if layout.rules or layout.fsdp else config

    def laid(self, clip: clip_jax.Clip, layout: Layout) -> clip_jax.Clip:
        """The CLIP with its parameters, or their shapes, where its training has them on such a layout.

        Those that are on devices already stay as they are.
        """
        first, params = jax.tree.leaves(clip.params)[0], clip.params
        if not isinstance(first, jax.Array):
            params = (layout.abstract if isinstance(first, jax.ShapeDtypeStruct) else layout.place)(params)
        return replace(clip, config=self.spread(clip.config, layout), params=params)

    def layout(self, rules: Sequence[tuple[str, P]] = (), devices: Sequence[sharding.Device] | None = None) -> Layout:
        """Some devices, by default all, with parameters split by `rules`; raises `SettingError` if that cannot be."""
        with about("sharding.model"):
            model = self.model if rules else 1
            return sharding.layout(self.mode, model=model, rules=rules, fsdp=self.fsdp, devices=devices)


@dataclass(frozen=True)
class ClipLoop(BestLoop):
    """The loop of a CLIP training, see `launch.training.fit.Loop`."""

    METRICS: ClassVar[Sequence[str]] = measures.VALIDATION
    MODES: ClassVar[Sequence[str]] = ("max",)

    best_metric: str = "val/recall"
