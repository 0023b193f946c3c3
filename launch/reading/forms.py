"""Records and texts of files of several forms, by their endings."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.reading import jsons, lists, tables
from launch.reading.errors import InputError
from launch.reading.records import Record, field

TABLES = tuple(tables.DELIMITERS)


def records(file: str | Path, columns: Sequence[str], *, endings: Sequence[str], setting: str = "") -> Iterator[Record]:
    """Records of a file that ends in .csv, .tsv, .jsonl (an object per line) or .json (a list of objects).

    Args:
      file: its path.
      columns: the fields that every record has to have; of a table only these are read.
      endings: the valid ones of these four.
      setting: the file's setting, for an error about its ending.

    Raises:
      MissingInput: no such file.
      InputError: another ending; as `tables.rows`, `jsons.lines` or `jsons.records`; a record without one of `columns`.
    """
    ending = _ending(file, endings, setting)
    if ending in TABLES:
        yield from tables.records(file, columns)
        return
    for record in jsons.lines(file) if ending == ".jsonl" else jsons.records(file):
        for name in columns:
            field(record, name, object)
        yield record


def texts(
    file: str | Path,
    column: str,
    *,
    endings: Sequence[str] = (".txt", ".jsonl", ".csv", ".tsv", ".json"),
    setting: str = "",
) -> Iterator[tuple[str, str]]:
    """(place, text) of every text of a file, stripped; blank ones are skipped.

    Args:
      file: .txt (one text per line), .csv or .tsv (with a header), .jsonl (an object per line), .json (a list of
        objects or texts, which may stand under "annotations", as in COCO's files). In JSON, the value may be a list of
        texts.
      column: the column or key of the text.
      endings: the valid ones.
      setting: the file's setting, for an error about its ending.

    Raises:
      MissingInput: no such file.
      InputError: another ending, a file that cannot be read, a record without the column, a value that is no text.
    """
    ending = _ending(file, endings, setting)
    if ending == ".txt":
        yield from ((f"line {line}", item) for line, item in lists.items(file))
    elif ending in TABLES:
        rows = tables.rows(file, (column,))
        yield from ((f"line {line}", item) for line, (cell,) in rows if (item := cell.strip()))
    elif ending == ".jsonl":
        for record in jsons.lines(file):
            yield from _texts(record, f"line {record.place}", field(record, column, object))
    else:
        yield from _of_json(file, column)


def _of_json(file: str | Path, column: str) -> Iterator[tuple[str, str]]:
    content = jsons.read(file)
    under = "annotations" if isinstance(content, dict) else ""
    for i, item in enumerate(jsons.entries(content, file, under=under)):
        record = Record(file, jsons.entry(i, under), item if isinstance(item, dict) else {})
        if isinstance(item, dict):
            yield from _texts(record, str(record.place), field(record, column, object))
        elif isinstance(item, str):
            yield from _texts(record, str(record.place), item)
        else:
            raise InputError(f"must be a text or an object with {column!r}", file=file, place=record.place, value=item)


def _texts(record: Record, place: str, value: Any) -> Iterator[tuple[str, str]]:
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            raise InputError("must be a text", file=record.file, place=place, value=item)
        if item := item.strip():
            yield place, item


def _ending(file: str | Path, endings: Sequence[str], setting: str) -> str:
    ending = Path(file).suffix.lower()
    if ending not in endings:
        raise InputError(f"the file name must end in {', '.join(endings)}", file=file, field=setting)
    return ending
