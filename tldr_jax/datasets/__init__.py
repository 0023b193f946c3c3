"""Data sets with a spurious attribute, and image-caption pairs for the modality gap, by name."""

import dataclasses

import numpy as np

from launch.data.splits import Rows
from tldr_jax.datasets.grouped import Grouped, Part, split

__all__ = ["NAMES", "Grouped", "Part", "load", "split"]

NAMES = ("celeba", "celeba_tfds", "scenes", "spuco_animals", "waterbirds")
_SUBSET = 0x7D5  # keeps the draw of subsets apart from others of the same seed


def load(config) -> Grouped:
    """Reads a data set.

    Args:
      config: `data` of a config: name (one of `NAMES`), path, image_size, flip, workers; seed (of Scenes, and of
        subsets) and train_examples, val_examples, test_examples (a seeded subset; 0 for all); for Scenes correlation.

    Raises:
      FileNotFoundError: data that are not there; the layout expected is named.
      ValueError: an unknown name, or rows and images that do not fit together; the row or the file is named.
    """
    if config.name not in NAMES:
        raise ValueError(f"no data set {config.name!r}; there are: {', '.join(NAMES)}")
    if config.name == "scenes":
        from tldr_jax.datasets import scenes

        return scenes.load(config)
    if config.image_size < 1:
        raise ValueError(f"data.image_size={config.image_size}: {config.name} has no native size, take 224 for example")
    if config.name == "celeba_tfds":
        from tldr_jax.datasets import celeba_tfds

        found = celeba_tfds.load(config.path)
    elif config.name == "spuco_animals":
        from tldr_jax.datasets import spuco

        found = spuco.load(config.path)
    else:
        from tldr_jax.datasets import wilds

        found = wilds.load(config.name, config.path)
    wanted = {name: config[f"{name}_examples"] for name in found.parts}
    parts = {name: _subset(name, part, wanted[name], config.seed) for name, part in found.parts.items()}
    sizes = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
    return dataclasses.replace(found, parts=parts, note=f"{found.note}: {sizes}")


def _subset(name: str, part: Part, examples: int, seed: int) -> Part:
    if examples == 0:
        return part
    if not 0 < examples <= len(part):
        raise ValueError(f"data.{name}_examples={examples} of {len(part)}: take 1 to {len(part)}, or 0 for all of them")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _SUBSET))))
    rows = np.sort(generator.permutation(len(part))[:examples])
    return Part(Rows(part.images, rows), part.classes[rows], part.spurious[rows])
