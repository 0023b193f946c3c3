"""Data sets with a spurious attribute, by name, and image-caption pairs for the modality gap."""

from collections.abc import Mapping, Sequence

import numpy as np

from launch.data.splits import Rows
from tldr_jax.datasets import scenes, spuco, wilds
from tldr_jax.datasets.grouped import SPLITS, Grouped, Groups, Part, split

__all__ = ["NAMES", "SPLITS", "TRAIN_EXAMPLES", "Grouped", "Groups", "Part", "groups", "load", "split"]

_GROUPS = {
    "celeba": wilds.CELEBA,
    "celeba_tfds": wilds.CELEBA,
    "scenes": scenes.GROUPS,
    "spuco_animals": spuco.GROUPS,
    "waterbirds": wilds.WATERBIRDS,
}
NAMES = tuple(_GROUPS)
# Published sizes of the training splits, for programs that are compiled without the data; Scenes' is its default.
TRAIN_EXAMPLES = {
    "celeba": 162_770,
    "celeba_tfds": 162_770,
    "scenes": 3000,
    "spuco_animals": 42_000,
    "waterbirds": 4795,
}
_SUBSET = 0x7D5  # keeps the draw of subsets apart from others of the same seed


def groups(name: str) -> Groups:
    """Classes and spurious values of a data set; nothing is read.

    Raises:
      ValueError: an unknown name; the message lists the valid ones.
    """
    if name not in _GROUPS:
        raise ValueError(f"unknown data set {name!r}; valid names: {', '.join(map(repr, NAMES))}")
    return _GROUPS[name]


def load(
    name: str,
    path: str = "",
    *,
    splits: Sequence[str] = SPLITS,
    examples: Mapping[str, int] | None = None,
    seed: int = 0,
    correlation: float = 0.95,
) -> Grouped:
    """Read a data set.

    Args:
      name: one of `NAMES`.
      path: its folder; for celeba_tfds that of TFDS ("" is the usual place); ignored for scenes.
      splits: which of train, val and test.
      examples: size of a seeded subset by split; 0 or absent for all images, of which Scenes draws as many as one asks
        for: by default 3,000 and 2,000, the number of validation images must be given.
      seed: of the subsets, and of Scenes.
      correlation: scenes: the share of training images whose background gives the class away.

    Raises:
      FileNotFoundError: the data is missing; the message describes the layout.
      ValueError: an unknown name, or rows and images that do not fit together; the error names the row or the file.
    """
    groups(name)
    sizes = {split: (examples or {}).get(split, 0) for split in splits}
    if name == "scenes":
        return scenes.load(sizes, seed=seed, correlation=correlation)
    if name == "celeba_tfds":
        from tldr_jax.datasets import celeba_tfds  # TFDS takes seconds to import

        data = celeba_tfds.load(path, splits)
    else:
        data = spuco.load(path) if name == "spuco_animals" else wilds.load(name, path)
    parts = {split: _subset(split, data.parts[split], size, seed) for split, size in sizes.items()}
    counts = ", ".join(f"{len(part)} {split}" for split, part in parts.items())
    return Grouped(parts, data.groups, f"{data.note}: {counts}")


def _subset(split: str, part: Part, examples: int, seed: int) -> Part:
    if examples == 0:
        return part
    if not 0 < examples <= len(part):
        raise ValueError(f"data.{split}_examples={examples} of {len(part)}: set 1 to {len(part)}, or 0 for all of them")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _SUBSET))))
    rows = np.sort(generator.permutation(len(part))[:examples])
    return Part(Rows(part.images, rows), part.classes[rows], part.spurious[rows])
