"""Several splits in one table: members of a sweep whose seeds cut the same images differently share the resident."""

import hashlib
from collections.abc import Sequence

import numpy as np

from launch.data import feed
from launch.data.splits import Arrays, Split


def pooled(splits: Sequence[Split]) -> tuple[dict[str, np.ndarray], list[np.ndarray | None]]:
    """One table of all different examples of several splits.

    Args:
      splits: all in memory, or all streamed.

    Returns:
      (resident, rows): the table as `feed.resident` has it, without repetitions, and for each split the rows that its
      own examples have in it, int32 (n,). ({}, [None, …]) for streamed ones.
    """
    if not all(isinstance(split, Arrays) for split in splits):
        return {}, [None] * len(splits)
    known: dict[bytes, int] = {}
    images, labels, rows = [], [], []
    for split in splits:
        own = np.empty(len(split), np.int32)
        for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            digest = hashlib.blake2b(label.tobytes() + image.tobytes(), digest_size=20).digest()
            if (place := known.get(digest)) is None:
                place = known[digest] = len(known)
                images.append(image)
                labels.append(label)
            own[index] = place
        rows.append(own)
    return {"images": np.stack(images), "labels": np.array(labels, np.int32)}, rows


def moved(batch: feed.Batch, rows: np.ndarray | None) -> feed.Batch:
    """A batch of a split as one of the table: its "row" looked up in the split's rows."""
    return batch if rows is None else {**batch, "row": rows[batch["row"]]}
