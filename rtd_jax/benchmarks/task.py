"""What a benchmark is made of: a gallery of images, queries, and how rankings of the gallery are scored."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from clip_jax.tokenizer import MARKER
from launch.reading import InputError, jsons, printable, records, shown
from launch.reading.records import Record


class Score(Protocol):
    """Metrics in percent of queries (q, d) in a gallery (g, d), both of unit length."""

    def __call__(self, queries: np.ndarray, gallery: np.ndarray) -> dict[str, float]: ...


class Submission(Protocol):
    """{file name: JSON content} for a test server, checked; arguments as of `Score`."""

    def __call__(self, queries: np.ndarray, gallery: np.ndarray) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class RetrievalTask:
    """One gallery and its queries.

    Attributes:
      name: "cirr", "fashioniq/dress", …
      images: g gallery images: files, or uint8 (g, h, w, 3).
      ids: g names of the images, all different.
      reference: int32 (q,), the gallery row of every query's reference image.
      texts: by set of phrasings ("" where there is only one) q tuples of modifications: one text, or FashionIQ's two.
      score: see `Score`; None without ground truth.
      submission: see `Submission`; None without a test server.
      target: int32 (q,), the gallery row of the right answer, or None where it is unknown; for pictures.
      query_images: q reference images where they are not those of the gallery.
      oracle: q captions of the targets, for an upper bound; () without captions.
      text_only: template of a query by the text alone, with "{}" for the text.
      missing: gallery images that are left out because their files are missing.
      dropped: how many queries are left out because they need one of these.
    """

    name: str
    images: Sequence[Path] | np.ndarray
    ids: Sequence[Any]
    reference: np.ndarray
    texts: Mapping[str, Sequence[tuple[str, ...]]]
    score: Score | None
    submission: Submission | None = None
    target: np.ndarray | None = None
    query_images: np.ndarray | None = None
    oracle: Sequence[str] = field(default=())
    text_only: str = "{}"
    missing: Sequence[Path] = field(default=())
    dropped: int = 0

    def __post_init__(self):
        if not len(self.ids):
            raise ValueError(f"{self.name}: the gallery is empty")
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise ValueError(f"{self.name}: {len(twice)} gallery ids occur more than once, such as {twice[0]!r}")
        if not len(self.reference):
            raise ValueError(f"{self.name}: there are no queries")
        for texts in self.texts.values():
            if empty := [i for i, query in enumerate(texts) if not "".join(query).strip()]:
                said = "%s: %d of %d queries have no text, the first is query %d; they are answered all the same"
                logging.warning(said, self.name, len(empty), len(texts), empty[0])
        # The marker stands for the image; where it means money, the word replaces it.
        clean = {key: [tuple(text.replace(MARKER, " dollar ") for text in query) for query in texts]
                 for key, texts in self.texts.items()}  # fmt: skip
        object.__setattr__(self, "texts", clean)

    def __len__(self) -> int:
        return len(self.reference)


def read_queries(path: Path) -> list[Record]:
    """The queries of a file, at least one."""
    queries = jsons.records(path)
    if not queries:
        raise InputError("there are no queries in it", file=path)
    return queries


def row(record: Record, name: str, kind: type, index: Mapping[Any, int]) -> int:
    """The gallery row of the image that a field names.

    Raises:
      InputError: the field is missing or has another type than `kind`, or the gallery lacks the image.
    """
    value = records.field(record, name, kind)
    if value not in index:
        raise record.error("is not in the gallery", name)
    return index[value]


def rows(record: Record, name: str, kind: type, index: Mapping[Any, int]) -> list[int]:
    """The gallery rows of the images, all different, that a field lists; raises as `row`, also for an empty list."""
    values = records.items(record, name, kind, at_least=1, distinct=True)
    if unknown := [value for value in values if value not in index]:
        raise record.error(f"{shown(unknown[0])} is not in the gallery", name)
    return [index[value] for value in values]


def targets(
    queries: Sequence[Record],
    name: str,
    kind: type,
    index: Mapping[Any, int],
    *,
    reference: np.ndarray,
    among: Sequence[Sequence[int]],
    candidates: str,
) -> np.ndarray:
    """The gallery rows of the queries' targets, int32 (q,).

    Args:
      queries, name, kind, index: as of `row`.
      reference: int32 (q,), rows of the reference images.
      among: the rows of each query that may be its target.
      candidates: what these are, for errors.

    Raises:
      InputError: as `row`; a target is the reference, or none of those that it may be.
    """
    target = np.array([row(query, name, kind, index) for query in queries], np.int32)
    for query, of_reference, of_target, valid in zip(queries, reference, target, among, strict=True):
        if of_target == of_reference:
            raise query.error("is the reference", name)
        if of_target not in valid:
            raise query.error(f"must be one of {candidates}", name)
    return target


def distinct(entries: Sequence[Record], name: str, kind: type) -> list[Any]:
    """A field of all records, whose values must be different."""
    values: dict[Any, Record] = {}
    for record in entries:
        value = records.field(record, name, kind)
        if value in values:
            raise record.error(f"is that of {values[value].place} already", name)
        values[value] = record
    return list(values)


def check_images(images: Sequence[Path], places: Sequence[str], file: Path) -> None:
    """Raise InputError for an image that the gallery has twice: of the two only one counts as found.

    Args:
      images: the gallery's files.
      places: of their names in the file.
      file: that lists them.
    """
    first: dict[Path, int] = {}
    for i, image in enumerate(images):
        if first.setdefault(image, i) != i:
            reason = f"{printable(image)} is the image of {places[first[image]]} already"
            raise InputError(reason, file=file, place=places[i])


def padded(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of gallery rows as the rows of an int32 array, filled up with -1."""
    array = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int32)
    for place, values in enumerate(lists):
        array[place, : len(values)] = values
    return array


def check_submission(answers: Mapping[str, Sequence[Any]], known: Sequence[Any], length: int, what: str) -> None:
    """Reject answers that a test server would reject.

    Raises:
      ValueError: no answers, a query with another number of ids than `length`, a repeated or an unknown one.
    """
    gallery = set(known)
    if not answers:
        raise ValueError(f"{what}: there are no answers")
    for query, ids in answers.items():
        if len(ids) != length or len(set(ids)) != length:
            raise ValueError(
                f"{what}, query {query}: {length} different ids are needed, got {len(ids)}, {len(set(ids))} different"
            )
        if unknown := [i for i in ids if i not in gallery]:
            raise ValueError(f"{what}, query {query}: {unknown[0]!r} is not in the gallery")
