"""Run with 4 fake CPU devices: prints, as JSON, what a small CLIP's evaluation gives when its training splits it."""

import json
import math
import sys
from typing import Any

import jax
import numpy as np

from clip_jax.training import experiment, measures
from launch.stages import Stage
from launch.training import sharding
from tests.clip_jax.training.small import small

LAYOUTS = {"whole": {}, "model": {"sharding.model": 2}, "fsdp": {"sharding.fsdp": True}}


def share(params: Any, part: Any) -> float:
    """How much of parameters a device has."""
    leaves = jax.tree.leaves(params)
    return sum(math.prod(part(leaf)) for leaf in leaves) / sum(leaf.size for leaf in leaves)


def evaluate(**overrides: Any) -> dict[str, float]:
    """The metrics of random parameters; the share of a tower that a device holds, and what passes are compiled for."""
    root = experiment.plan(small(**overrides))
    held: dict[str, float] = {}
    for one in root.passes(sharding.layout()):
        (params,) = (part for part in one.arguments if isinstance(part, dict))
        held[one.name] = share(params, lambda leaf: leaf.sharding.shard_shape(leaf.shape))
    measure = measures.measure

    class Results:
        def get(self, stage: Stage) -> Any:
            if stage is not root.training:
                return stage.make(self)  # pyright: ignore[reportArgumentType]
            params = jax.tree.map(
                lambda leaf: np.asarray(leaf).view(np.memmap), stage.clip.make(self).params
            )  # as read
            return {"params": params, "best_step": 0, "metrics": {}}

    def watched(embedder: Any, *arguments: Any) -> dict[str, float]:
        for name, tower in (("images", "image"), ("texts", "text")):
            there = share(embedder.clip.params[tower], lambda leaf: leaf.addressable_shards[0].data.shape)
            held[name] = max(held[name], there)
        return measure(embedder, *arguments)

    measures.measure = watched
    try:
        return root.make(Results()) | held  # pyright: ignore[reportArgumentType]
    finally:
        measures.measure = measure


if __name__ == "__main__":
    sharding.SPLIT_LEAST = 1
    json.dump({name: evaluate(**overrides) for name, overrides in LAYOUTS.items()}, sys.stdout)
