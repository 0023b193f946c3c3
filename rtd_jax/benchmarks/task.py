"""What a benchmark is made of: a gallery of images, queries, and how rankings of the gallery are scored."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clip_jax.tokenizer import MARKER
from launch.data import images as image_files


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
            if empty := [i for i, query in enumerate(texts) if not "".join(query).strip()]:
                raise ValueError(f"{self.name}: {len(empty)} queries have no text, the first is query {empty[0]}")
        # The marker stands for the image; where it means money, the word replaces it.
        clean = {key: [tuple(text.replace(MARKER, " dollar ") for text in query) for query in texts]
                 for key, texts in self.texts.items()}  # fmt: skip
        object.__setattr__(self, "texts", clean)

    def __len__(self) -> int:
        return len(self.reference)


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      FileNotFoundError, ValueError: it is missing, not JSON, or an object in it has a key twice; the file is named.
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
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def fields(entry: Mapping, names: Sequence[str], where: str) -> list[Any]:
    """The values of some keys of an entry.

    Raises:
      ValueError: a key is missing; it and the entry are named.
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
    """Raise FileNotFoundError if images are missing: how many, the first, and the file that lists them."""
    with ThreadPoolExecutor(2 * image_files.decoding_threads()) as pool:  # cluster file systems answer slowly
        exists = list(pool.map(Path.is_file, paths))
    missing = [path for path, is_there in zip(paths, exists, strict=True) if not is_there]
    if missing:
        count = f"{len(missing)} of {len(paths)} images"
        raise FileNotFoundError(f"{count} that {listed} names are missing, the first is {missing[0]}")


def check_submission(answers: Mapping[str, Sequence[Any]], known: Sequence[Any], length: int, what: str) -> None:
    """Refuse answers that a test server would refuse.

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
