"""Scenes as a data set with a spurious attribute: curved or angular shapes on land or water. Nothing to download."""

import numpy as np

from launch.data import scenes
from launch.data.scenes import world
from tldr_jax.datasets.grouped import Grouped, Part


def load(config) -> Grouped:
    """Classes curved and angular, spuriously tied to land and water; see `launch.data.scenes.classification`.

    Args:
      config: `data` of a config: seed, train_examples, val_examples, test_examples, correlation.
    """
    if config.image_size not in (0, scenes.IMAGE_SIZE):
        raise ValueError(f"data.image_size={config.image_size}: Scenes has images of {scenes.IMAGE_SIZE} pixels")
    found = scenes.classification(
        config.seed,
        train=config.train_examples or 3000,
        val=config.val_examples,
        test=config.test_examples or 2000,
        correlation=config.correlation,
    )
    if found.splits.val is None:
        raise ValueError("data.val_examples=0: the retrained head is chosen on validation images, hold out some")
    arrays = {"train": found.splits.train, "val": found.splits.val, "test": found.splits.test}
    parts = {name: Part(arrays[name].images, groups // 2, groups % 2) for name, groups in found.groups.items()}
    return Grouped(parts, world.FAMILIES, world.GROUNDS, np.ones((2, 2), bool), found.splits.note)
