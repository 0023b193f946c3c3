"""Captions from files, for LinCIR's training and for the generation of triplets."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

ENDINGS = (".txt", ".jsonl", ".csv", ".tsv", ".json")


def read(path: str | Path, *, column: str = "caption") -> list[str]:
    """The captions of a file, stripped, without blank ones and repetitions, in the order of their first occurrence.

    Formats: .txt (one caption per line), .jsonl (one object per line), .csv and .tsv (with a header) and COCO's .json
    (objects under "annotations", or a list of objects or strings). A value may be a list of captions.

    Args:
      path: the file.
      column: the key or column that holds the caption.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another ending, a line that cannot be read or lacks the column (by its number), or no caption at all.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"captions {str(path)!r}: a file that ends in {', '.join(ENDINGS)} is needed")
    if not path.is_file():
        raise FileNotFoundError(f"no captions file {path}")
    texts: dict[str, None] = {}
    for where, value in _values(path, column):
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise ValueError(f"{path}, {where}: the caption {text!r} is no text")
            if text := " ".join(text.split()):
                texts[text] = None
    if not texts:
        raise ValueError(f"{path} holds no caption")
    return list(texts)


def _values(path: Path, column: str) -> Iterator[tuple[str, object]]:
    kind = path.suffix.lower()
    with open(path, encoding="utf-8-sig", newline="") as file:
        if kind == ".txt":
            yield from ((f"line {i}", line) for i, line in enumerate(file, 1))
        elif kind in (".csv", ".tsv"):
            reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
            yield from ((f"line {reader.line_num}", _field(row, column, path, reader.line_num)) for row in reader)
        elif kind == ".jsonl":
            for i, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {i}", _field(_parsed(line, path, i), column, path, i)
        else:
            yield from _of_json(_parsed(file.read(), path, None), column, path)


def _of_json(content: object, column: str, path: Path) -> Iterator[tuple[str, object]]:
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list, or an object with a list under 'annotations', is needed")
    for i, row in enumerate(rows):
        yield f"entry {i}", row if isinstance(row, str) else _field(row, column, path, i)


def _parsed(text: str, path: Path, line: int | None) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}{'' if line is None else f', line {line}'} is no JSON: {error}") from error


def _field(row: object, column: str, path: Path, place: int) -> object:
    if not isinstance(row, dict) or row.get(column) is None:
        names = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{path}, line {place}: no {column!r} among {names}; name the column that holds captions")
    return row[column]
