"""What a benchmark is made of: a gallery of images, queries, and how rankings of the gallery are scored."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.tokenizer import MARKER
from launch.data import images as image_files

Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]
Submission = Callable[[np.ndarray, np.ndarray], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Task:
    """One gallery and its queries.

    Attributes:
      name: "cirr", "fashioniq/dress", …
      images: g gallery images: files, or uint8 (g, h, w, 3).
      ids: g names of theirs, all different.
      reference: int32 (q,), the gallery row of every query's reference image.
      texts: by set of phrasings ("" where there is but one) q tuples of modifications: one text, or FashionIQ's two.
      score: (queries (q, d), gallery (g, d)), both of unit length -> metrics in percent. None without ground truth.
      submission: the same -> {file name: JSON content} for a test server, checked; None where there is no server.
      target: int32 (q,), the gallery row asked for, or None where it is not known; for pictures.
      query_images: q reference images where they are not those of the gallery.
      oracle: q captions of the targets, for an upper bound; () where there are none.
      text_only: the text alone as a query, "{}" in it.
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

    def __post_init__(self):
        if not len(self.ids):
            raise ValueError(f"{self.name}: the gallery is empty")
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise ValueError(f"{self.name}: {len(twice)} gallery ids occur more than once, such as {twice[0]!r}")
        if not len(self.reference):
            raise ValueError(f"{self.name}: there are no queries")
        for texts in self.texts.values():
            if empty := [i for i, own in enumerate(texts) if not "".join(own).strip()]:
                raise ValueError(f"{self.name}: {len(empty)} queries have no text, the first is query {empty[0]}")
        # The marker stands for the image: as a sign of money it is read as the word.
        clean = {key: [tuple(t.replace(MARKER, " dollar ") for t in own) for own in texts]
                 for key, texts in self.texts.items()}  # fmt: skip
        object.__setattr__(self, "texts", clean)

    def __len__(self) -> int:
        return len(self.reference)


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      FileNotFoundError, ValueError: it is not there, no JSON, or an object in it has a key twice; the file is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"{key!r} occurs {count} times in one object")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except ValueError as error:
        raise ValueError(f"{path} is no proper JSON: {error}") from error


def fields(entry: Mapping, names: Sequence[str], where: str) -> list[Any]:
    """Those values of an entry.

    Raises:
      ValueError: one is missing; names it and the entry.
    """
    missing = [name for name in names if name not in entry] if isinstance(entry, Mapping) else list(names)
    if missing:
        raise ValueError(f"{where}: no {missing[0]!r} in {json.dumps(entry)[:120]}")
    return [entry[name] for name in names]


def rows(names: Sequence[Any], index: Mapping[Any, int], where: str) -> np.ndarray:
    """The gallery rows of names: int32.

    Raises:
      ValueError: a name that the gallery lacks.
    """
    unknown = [name for name in names if name not in index]
    if unknown:
        raise ValueError(f"{where}: {len(unknown)} images are not in the gallery, the first is {unknown[0]!r}")
    return np.array([index[name] for name in names], np.int32)


def check_files(paths: Sequence[Path], listed: str) -> None:
    """Raises FileNotFoundError if images are missing: how many, the first, and the file that lists them."""
    with ThreadPoolExecutor(2 * image_files.decoding_threads()) as pool:  # a file system of a cluster answers slowly
        there = list(pool.map(Path.is_file, paths))
    missing = [path for path, found in zip(paths, there, strict=True) if not found]
    if missing:
        count = f"{len(missing)} of {len(paths)} images"
        raise FileNotFoundError(f"{count} that {listed} names are missing, the first is {missing[0]}")


def check_submission(answers: Mapping[str, Sequence[Any]], known: Sequence[Any], length: int, what: str) -> None:
    """Refuse answers that a test server would.

    Raises:
      ValueError: no answers, a query with another number of ids than `length`, a repeated or an unknown one.
    """
    known = set(known)
    if not answers:
        raise ValueError(f"{what}: there are no answers")
    for query, ids in answers.items():
        if len(ids) != length or len(set(ids)) != length:
            raise ValueError(
                f"{what}, query {query}: {length} different ids are needed, got {len(ids)}, {len(set(ids))} different"
            )
        if unknown := [i for i in ids if i not in known]:
            raise ValueError(f"{what}, query {query}: {unknown[0]!r} is not in the gallery")
