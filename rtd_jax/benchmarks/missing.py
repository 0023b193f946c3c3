"""Images of a benchmark that are not there: refused, or left out together with the queries that need them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import logging

from launch.reading import InputError, MissingInput, paths, printable

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Present:
    """The part of a benchmark that can be used.

    Attributes:
      images: gallery rows of the images that are there.
      queries: rows of the queries whose own images are.
      missing: files of the other images.
      dropped: how many queries are left out.
    """

    images: np.ndarray
    queries: np.ndarray
    missing: tuple[Path, ...]
    dropped: int

    @property
    def places(self) -> np.ndarray:
        """int32 (g,), where each gallery image is among those that are there; -1 if it is not."""
        places = np.full(len(self.images) + len(self.missing), -1, np.int32)
        places[self.images] = np.arange(len(self.images))
        return places

    def of_images(self, values: Sequence[T]) -> list[T]:
        """The values of the gallery images that are there."""
        return [values[row] for row in self.images]

    def of_queries(self, values: Sequence[T]) -> list[T]:
        """The values of the queries that stay."""
        return [values[row] for row in self.queries]

    def rows(self, column: np.ndarray) -> np.ndarray:
        """A column of gallery rows, one for each query that stays, in the new gallery."""
        return self.places[column[self.queries]]

    def lists(self, lists: Sequence[Sequence[int]]) -> list[list[int]]:
        """Lists of gallery rows of the queries that stay, in the new gallery, less the missing images."""
        places = self.places.tolist()
        return [[places[row] for row in values if places[row] >= 0] for values in self.of_queries(lists)]

    @property
    def counts(self) -> dict[str, Any]:
        """Fields of a `RetrievalTask`."""
        return {"missing": self.missing, "dropped": self.dropped}


def present(
    name: str,
    images: Sequence[Path],
    own: Sequence[np.ndarray],
    *,
    listed: Path,
    skip: bool,
    served: bool = False,
    alone: Sequence[Sequence[int]] = (),
) -> Present:
    """Which images are there, and which queries can be asked with them.

    Args:
      name: of the benchmark.
      images: the gallery's files.
      own: columns int (q,) of gallery rows that a query cannot do without: its reference, its target.
      listed: the file that names the images, for errors.
      skip: leave missing images out.
      served: answers go to a test server, which wants all of them.
      alone: for each query the gallery that it has for itself, target included.

    Raises:
      MissingInput: images are missing and are not to be left out; or no query stays.
    """
    absent = paths.absent(images)
    here = np.ones(len(images), bool)
    here[absent] = False
    asked = np.logical_and.reduce([here[column] for column in own])
    if len(alone):  # a query needs something besides its target
        asked &= np.array([here[np.asarray(rows)].sum() > 1 for rows in alone], bool)
    missing = tuple(images[row] for row in absent)
    found = Present(np.flatnonzero(here), np.flatnonzero(asked), missing, int(np.count_nonzero(~asked)))
    if not missing:
        return found if not len(alone) else Present(found.images, np.arange(len(asked)), (), 0)
    count, of = len(set(missing)), len(set(images))
    says = f"{count:,} of {of:,} files that it names are missing, the first is {printable(missing[0])}"
    left = f"{found.dropped:,} of {len(asked):,} queries"
    if served:
        raise MissingInput(says, file=listed, remedy="the test server wants the answers to all queries: fetch them")
    if not skip:
        remedy = f"fetch them, or set evaluation.skip_missing=True to go on without them and without {left}"
        raise MissingInput(says, file=listed, remedy=remedy)
    if not len(found.queries):
        raise InputError(f"{says}; no query is left", file=listed)
    logging.warning("%s: %s, and with them %s are left out", name, says, left)
    return found
