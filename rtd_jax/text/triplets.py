"""Text triplets: a reference caption, a modification, and the target caption.

Files hold the keys of the published sets, `reference_caption`, `conditioning_caption`, `target_caption`: JSON Lines, or
JSON with a list of objects. `rtd_jax.text.generation` makes such files from captions.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from launch.files import write_atomically

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
    for key, text in zip(KEYS, (reference, modification, target), strict=True):
        if not isinstance(text, str):
            return f"{key} is {text!r}, no text"
        if not text.strip():
            return f"{key} is empty"
        if MARKER in text:
            return f"{key} {text!r} holds {MARKER!r}, the marker of the pseudo token"
    if " ".join(str(reference).split()) == " ".join(str(target).split()):
        return f"the reference and the target are the same caption, {reference!r}"
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
      skip_faulty: leave out lines that cannot be used; the log says how many, and which was the first.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another ending; without `skip_faulty` the first line that is not JSON, lacks a key or has a fault, by
        its number; no triplet that can be used.
    """
    path = Path(path).expanduser()
    readers = {".jsonl": _lines, ".json": _list}
    if path.suffix.lower() not in readers:
        raise ValueError(f"triplets {str(path)!r}: a file that ends in {' or '.join(readers)} is needed")
    if not path.is_file():
        raise FileNotFoundError(f"no triplets file {path}; rtd_jax.text.generation makes one from captions")
    rows, faults = [], []
    for where, row in readers[path.suffix.lower()](path):
        if problem := _row_fault(row):
            faults.append(f"{path}, {where}: {problem}")
            if not skip_faulty:
                raise ValueError(f"{faults[0]}. To use the others, set skip_faulty=True")
        else:
            rows.append([row[key].strip() for key in KEYS])
    if faults:
        logging.warning("%d of %d triplets left out; the first: %s", len(faults), len(faults) + len(rows), faults[0])
    if not rows:
        raise ValueError(f"{path} holds no triplet that can be used" + (f"; {faults[0]}" if faults else ""))
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
    used = {text for row in val for text in (triplets.references[row], triplets.targets[row])}
    train = [row for row in order[held_back:] if not {triplets.references[row], triplets.targets[row]} & used]
    if not train:
        raise ValueError(f"every triplet shares a caption with the {held_back} that are held back: hold back fewer")
    return triplets.select(sorted(train)), triplets.select(sorted(val))


def _row_fault(row: Any) -> str:
    if isinstance(row, str):
        return row  # a fault that the reader found
    if not isinstance(row, dict):
        return f"no JSON object but {type(row).__name__}"
    if missing := [key for key in KEYS if key not in row]:
        return f"no {missing[0]!r} among {', '.join(map(repr, row)) or 'nothing'}"
    return fault(*(row[key] for key in KEYS))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                yield f"line {number}", f"no JSON: {error}"
                continue
            yield f"line {number}", row if not isinstance(row, str) else f"no JSON object but the text {row!r}"


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} has to hold a list of objects, not {type(rows).__name__}")
    for i, row in enumerate(rows):
        yield f"entry {i}", row if not isinstance(row, str) else f"no object but {row!r}"
