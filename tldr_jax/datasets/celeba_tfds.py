"""CelebA prepared with TensorFlow Datasets (`celeb_a`), read without TensorFlow: blond or not, men and women."""

from collections.abc import Sequence

import numpy as np

from launch.data import tfds_sets
from tldr_jax.datasets.grouped import SPLITS, Grouped, Part
from tldr_jax.datasets.wilds import CELEBA

_TFDS_NAMES = {"train": "train", "val": "validation", "test": "test"}


def load(path: str = "", splits: Sequence[str] = SPLITS) -> Grouped:
    """Attributes of all records are read once, without decoding; images are decoded when they are indexed.

    Args:
      path: TFDS data folder; "" for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      splits: which are read.

    Raises:
      FileNotFoundError: not prepared there in the required version and format.
      ValueError: an unreadable record.
    """
    directory = tfds_sets.prepared("celeb_a", path)
    parts = {}
    for split in splits:
        records = tfds_sets.Records(directory, _TFDS_NAMES[split])
        labels = tfds_sets.scan(records, lambda r: (r["attributes"]["Blond_Hair"], r["attributes"]["Male"]))
        labels = np.array(labels, np.int32).reshape(-1, 2)
        parts[split] = Part(records, labels[:, 0].copy(), labels[:, 1].copy())
    return Grouped(parts, CELEBA, f"CelebA (TFDS) from {directory}")
