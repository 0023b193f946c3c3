"""CelebA prepared with TensorFlow Datasets (`celeb_a`), read without TensorFlow: blond or not, men and women."""

import numpy as np

from launch.data import tfds_sets
from tldr_jax.datasets.grouped import Grouped, Part

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def load(path: str = "") -> Grouped:
    """Attributes of all records are read once, without decoding; images are decoded when they are asked for.

    Args:
      path: TFDS data folder; "" for $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      FileNotFoundError: not prepared there, in the version and format wanted.
      ValueError: a record that cannot be read.
    """
    directory = tfds_sets.prepared("celeb_a", path)
    parts = {}
    for name, split in _SPLITS.items():
        records = tfds_sets.Records(directory, split)
        labels = tfds_sets.scan(records, lambda r: (r["attributes"]["Blond_Hair"], r["attributes"]["Male"]))
        labels = np.array(labels, np.int32).reshape(-1, 2)
        parts[name] = Part(records, labels[:, 0].copy(), labels[:, 1].copy())
    note = f"CelebA (TFDS) from {directory}"
    return Grouped(parts, ("not blond", "blond"), ("female", "male"), np.ones((2, 2), bool), note)
