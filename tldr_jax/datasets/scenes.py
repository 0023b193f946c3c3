"""Scenes as a data set with a spurious attribute: curved or angular shapes on land or water. Nothing to download."""

from collections.abc import Mapping

from launch.data import scenes
from launch.data.scenes import world
from tldr_jax.datasets.grouped import Grouped, Groups, Part

GROUPS = Groups(world.FAMILIES, world.GROUNDS)
_SIZES = {"train": 3000, "test": 2000}


def load(examples: Mapping[str, int], *, seed: int, correlation: float) -> Grouped:
    """Classes curved and angular, spuriously tied to land and water; see `launch.data.scenes.classification`.

    Args:
      examples: images by split; splits that are absent are not drawn, 0 is the default size.
      seed: of everything; the splits are independent draws.
      correlation: share of training images whose background gives the class away.

    Raises:
      ValueError: no validation images, or a correlation outside [0, 1].
    """
    if examples.get("val") == 0:
        raise ValueError("data.val_examples=0: the retrained head is chosen on validation images; set it to 800, say")
    sizes = {split: size or _SIZES[split] for split, size in examples.items()}
    train, val, test = sizes.get("train", 1), sizes.get("val", 0), sizes.get("test", 1)
    drawn = scenes.classification(seed, train=train, val=val, test=test, correlation=correlation)
    arrays = {"train": drawn.splits.train, "val": drawn.splits.val, "test": drawn.splits.test}
    parts = {split: Part(arrays[split].images, drawn.groups[split] // 2, drawn.groups[split] % 2) for split in sizes}
    counts = ", ".join(f"{size} {split}" for split, size in sizes.items())
    note = f"Scenes, curved or angular shapes with land or water at {correlation:.0%}, seed {seed}: {counts}"
    return Grouped(parts, GROUPS, note)
