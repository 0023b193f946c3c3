"""Text triplets: a reference caption, a modification, and the target caption.

Files hold the keys of the published sets, `reference_caption`, `conditioning_caption`, `target_caption`: JSON Lines, or
JSON with a list of objects. `rtd_jax.text.generation` makes such files from captions. Captions are cleaned as
published, see `captions.clean`; modifications too, where the published code takes a "$" for a second pseudo token.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from launch.files import write_atomically
from launch.reading import InputError, MissingInput, jsons, paths, shown, text
from launch.reading.records import Record, field
from rtd_jax.text.captions import clean

ENDINGS = (".jsonl", ".json")
KEYS = ("reference_caption", "conditioning_caption", "target_caption")
MARKER = "$"  # stands for the pseudo token in prompts, so no caption may contain it


@dataclass(frozen=True)
class Triplets:
    """n triplets by column.

    Attributes:
      references: n captions of the images that queries start from.
      modifications: n texts that continue "a photo of … that".
      targets: n captions of the images that queries ask for.
    """

    references: Sequence[str]
    modifications: Sequence[str]
    targets: Sequence[str]

    def __post_init__(self):
        if not len(self.references) == len(self.modifications) == len(self.targets):
            sizes = len(self.references), len(self.modifications), len(self.targets)
            raise ValueError(f"references, modifications and targets have the lengths {sizes}")

    def __len__(self) -> int:
        return len(self.references)

    def select(self, rows: Sequence[int] | np.ndarray) -> "Triplets":
        """Those rows, in that order."""
        columns = (self.references, self.modifications, self.targets)
        return Triplets(*([column[row] for row in rows] for column in columns))


def fault(reference: object, modification: object, target: object) -> str:
    """What is wrong with a triplet; "" if nothing is."""
    for key, caption in zip(KEYS, (reference, modification, target), strict=True):
        if not isinstance(caption, str):
            return f"{key} is {shown(caption)}, not a text"
        if not caption.strip():
            return f"{key} is empty"
        if MARKER in caption:
            return f"{key} {shown(caption)} holds {MARKER!r}, the marker of the pseudo token"
    if " ".join(str(reference).split()) == " ".join(str(target).split()):
        return f"the reference and the target are the same caption, {shown(reference)}"
    return ""


def check(triplets: Triplets) -> None:
    """Raise ValueError for the first triplet with a fault, by its number, or for no triplets at all."""
    if not len(triplets):
        raise ValueError("there are no triplets")
    columns = zip(triplets.references, triplets.modifications, triplets.targets, strict=True)
    for row, columns_of_row in enumerate(columns):
        if problem := fault(*columns_of_row):
            raise ValueError(f"triplet {row}: {problem}")


def read(path: str | Path, *, skip_faulty: bool = False) -> Triplets:
    """Triplets from a .jsonl or .json file, checked.

    Args:
      path: the file.
      skip_faulty: skip lines that cannot be used; the log gives their number and the first.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another ending; without `skip_faulty` the first line that is not JSON, lacks a key or has a fault, by
        its number; no triplet that can be used.
    """
    path = paths.path(path, "triplets")
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"must be a file that ends in {' or '.join(ENDINGS)}", file=path, field="triplets")
    if not path.is_file():
        raise MissingInput("no such file; rtd_jax.text.generation makes one from captions", file=path, field="triplets")
    rows, faults, changed = [], [], 0
    for place, content in _entries(path):
        try:
            row, cleaned = _row(path, place, content)
            rows.append(row)
            changed += cleaned
        except InputError as error:
            if not skip_faulty:
                raise InputError(f"{error}; to use the others, set skip_faulty=True") from error
            faults.append(error)
    if changed:
        logging.warning('%s: %d triplets held "$" or "<PERSON>", which are taken out', path, changed)
    if faults:
        logging.warning("%d of %d triplets left out; the first: %s", len(faults), len(faults) + len(rows), faults[0])
    if not rows:
        raise InputError("no triplet that can be used" + (f"; {faults[0]}" if faults else ""), file=path)
    return Triplets(*map(list, zip(*rows, strict=True)))


def write(path: str | Path, triplets: Triplets) -> None:
    """Write JSON Lines that `read` reads, whole or not at all.

    Raises:
      ValueError: a triplet with a fault.
    """
    check(triplets)
    columns = zip(triplets.references, triplets.modifications, triplets.targets, strict=True)
    lines = [json.dumps(dict(zip(KEYS, row, strict=True)), ensure_ascii=False) for row in columns]
    write_atomically(path, "\n".join(lines) + "\n")


def split(triplets: Triplets, held_back: int, *, seed: int) -> tuple[Triplets, Triplets]:
    """Triplets to train on, and `held_back` others, drawn by the seed, that share no caption with them.

    Triplets that share a caption with held-back ones are left out of both.

    Raises:
      ValueError: too few triplets.
    """
    if not 0 < held_back < len(triplets):
        raise ValueError(f"{held_back} triplets cannot be held back of {len(triplets)}")
    order = np.random.default_rng(np.random.SeedSequence((seed, 0x5917))).permutation(len(triplets))
    val = order[:held_back]
    used = {caption for row in val for caption in (triplets.references[row], triplets.targets[row])}
    train = [row for row in order[held_back:] if not {triplets.references[row], triplets.targets[row]} & used]
    if not train:
        raise ValueError(f"every triplet shares a caption with the {held_back} that are held back: hold back fewer")
    return triplets.select(sorted(train)), triplets.select(sorted(val))


def _entries(path: Path) -> Iterator[tuple[int | str, Any]]:
    """(place, content): the lines of a JSON Lines file as text, the entries of a JSON file as values."""
    if path.suffix.lower() == ".jsonl":
        yield from (numbered for numbered in text.lines(path) if numbered[1].strip())
    else:
        yield from ((jsons.entry(i), value) for i, value in enumerate(jsons.read(path, top=list)))


def _row(path: Path, place: int | str, content: Any) -> tuple[list[str], bool]:
    """The three texts of an entry, cleaned, and whether that took something out of them; or an InputError."""
    if path.suffix.lower() == ".jsonl":
        content = jsons.parse(content, file=path, place=place, top=dict)
    if not isinstance(content, dict):
        raise InputError("must be an object", file=path, place=place, value=content)
    record = Record(path, place, content)
    written = [field(record, key, object) for key in KEYS]
    cleaned = [clean(text) if isinstance(text, str) else text for text in written]
    if problem := fault(*cleaned):
        raise InputError(problem, file=path, place=place)
    return [str(text).strip() for text in cleaned], cleaned != written
