"""Tables with a header: CSV, whose cells may be quoted, and TSV, which has no quoting.

A cell is one line of text. A CSV cell that holds a comma, or begins with a quote, stands in double quotes, and quotes
in it are doubled. In a TSV file a quote is a character like any other. Empty lines are passed over.
"""

import csv
import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from launch.reading import text
from launch.reading.errors import InputError, shown
from launch.reading.records import Record

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def records(file: str | Path, columns: Sequence[str], *, skip_spaces: bool = False) -> Iterator[Record]:
    """The rows of a table as records of the columns asked for; see `rows`."""
    for line, cells in rows(file, columns, skip_spaces=skip_spaces):
        yield Record(file, line, dict(zip(columns, cells, strict=True)))


def rows(
    file: str | Path, columns: Sequence[str], *, skip_spaces: bool = False
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, the cells of `columns`, in that order) of every row, read as they are asked for.

    Args:
      file: ends in .csv or .tsv.
      columns: names of the header; other columns are passed over.
      skip_spaces: white space after a comma is no part of a cell.

    Raises:
      MissingInput: no such file.
      InputError: not UTF-8, no header, a column twice or missing, a row with more or fewer cells than the header, a
        quote that is not closed on its line; with the line.
    """
    delimiter = _delimiter(file)
    chosen: Callable[[Sequence[str]], tuple[str, ...]] | None = None
    width = 0
    for line, cells in (_split if delimiter == "\t" else _parse)(file, skip_spaces):
        if len(cells) == width:
            assert chosen is not None
            yield line, chosen(cells)
        elif chosen is None:
            chosen, width = _chooser(file, line, cells, columns, delimiter), len(cells)
        else:
            raise _wrong_width(file, line, cells, width, delimiter)
    if chosen is None:
        raise InputError(
            f"is empty, a header with {', '.join(map(repr, columns))} is needed on its first line", file=file
        )


def header(file: str | Path) -> tuple[str, ...]:
    """Names of a table's columns; errors as `rows`."""
    split = _split if _delimiter(file) == "\t" else _parse
    for line, cells in split(file, False):
        _check_header(file, line, cells)
        return tuple(cells)
    raise InputError("is empty, a header is needed on its first line", file=file)


def _delimiter(file: str | Path) -> str:
    ending = Path(file).suffix.lower()
    if ending not in DELIMITERS:
        raise InputError(f"is no table, a file that ends in {' or '.join(DELIMITERS)} is needed", file=file)
    return DELIMITERS[ending]


def _split(file: str | Path, skip_spaces: bool) -> Iterator[tuple[int, list[str]]]:
    for line, row in enumerate(itertools.chain.from_iterable(text.blocks(file)), 1):
        if row:
            cells = row.split("\t")
            yield line, [cell.lstrip() for cell in cells] if skip_spaces else cells


def _parse(file: str | Path, skip_spaces: bool) -> Iterator[tuple[int, list[str]]]:
    lines = itertools.chain.from_iterable(text.blocks(file))
    reader = csv.reader(lines, strict=True, skipinitialspace=skip_spaces)
    line = 0
    try:
        for line, row in enumerate(reader, 1):
            if reader.line_num != line:
                raise _unclosed(file, line)
            if row:
                yield line, row
    except csv.Error as error:
        raise _malformed(file, line + 1, str(error), reader.line_num) from error


def _malformed(file: str | Path, line: int, why: str, read: int) -> InputError:
    """What Python's csv module refused."""
    if "field larger" in why:
        limit = f"a cell of more than {csv.field_size_limit():,} characters"
        return InputError(f"{limit} begins here", file=file, place=line, remedy="close its quote, or shorten it")
    if read > line or "end of data" in why:
        return _unclosed(file, line)
    return InputError(
        "text comes after the quote that closes a cell",
        file=file,
        place=line,
        remedy='double quotes within a quoted cell: "a ""stop"" sign"',
    )


def _unclosed(file: str | Path, line: int) -> InputError:
    return InputError(
        "a cell begins with a quote that is not closed on its line",
        file=file,
        place=line,
        remedy='quote the whole cell and double the quotes in it: "a ""stop"" sign"; a cell is one line',
    )


def _chooser(
    file: str | Path, line: int, names: Sequence[str], columns: Sequence[str], delimiter: str
) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """What takes the columns out of a row, as a tuple."""
    _check_header(file, line, names)
    if missing := [column for column in columns if column not in names]:
        raise InputError(
            f"no column {missing[0]!r} among {_listed(names)}",
            file=file,
            place=line,
            remedy=_hint(missing[0], names, delimiter),
        )
    if len(columns) == 1:
        only = names.index(columns[0])
        return lambda cells: (cells[only],)
    return itemgetter(*(names.index(column) for column in columns))


def _check_header(file: str | Path, line: int, names: Sequence[str]) -> None:
    seen = set()
    for name in filter(None, names):
        if name in seen:
            raise InputError(f"the header has the column {shown(name)} twice", file=file, place=line)
        seen.add(name)


def _hint(missing: str, names: Sequence[str], delimiter: str) -> str:
    if len(names) == 1:
        for other, kind in (("\t", "tabs: name the file .tsv"), (";", "semicolons: separate cells by commas")):
            if other != delimiter and other in names[0]:
                return f"the header holds {kind}"
        if delimiter == "\t" and "," in names[0]:
            return "the header holds commas: name the file .csv"
    close = difflib.get_close_matches(missing.strip().lower(), [name.strip().lower() for name in names], 1)
    if close:
        alike = next(name for name in names if name.strip().lower() == close[0])
        return f"name the column of {missing!r}, or rename {shown(alike)} in the header"
    return "name the column, or give the file a header on its first line"


def _wrong_width(file: str | Path, line: int, cells: Sequence[str], width: int, delimiter: str) -> InputError:
    many = len(cells) > width
    if delimiter == ",":
        remedy = "put a cell that holds a comma in double quotes" if many else "separate cells by commas"
    else:
        remedy = "no cell may hold a tab" if many else "separate cells by tabs"
    return InputError(
        f"{len(cells)} cell{'s' if len(cells) > 1 else ''}, the header has {width}: {shown(delimiter.join(cells))}",
        file=file,
        place=line,
        remedy=remedy,
    )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return ", ".join(map(shown, every[:20])) + more
