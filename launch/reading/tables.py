"""Tables with a header: CSV, whose cells may be quoted, and TSV, which has no quoting.

A cell is one line of text. A CSV cell that contains a comma or begins with a quote must be in double quotes, with the
quotes inside it doubled. In a TSV file a quote is an ordinary character. Empty lines are skipped.
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
      columns: their names in the header; other columns are ignored.
      skip_spaces: drop spaces at the beginning of cells.

    Raises:
      MissingInput: no such file.
      InputError: not UTF-8, no header, a column twice or missing, the header again, a row with more or fewer cells than
        the header, a quote that is not closed on its line; with the line.
    """
    delimiter = _delimiter(file)
    split = _splitter(delimiter, skip_spaces, file)
    chosen: Callable[[Sequence[str]], tuple[str, ...]] | None = None
    names: Sequence[str] = ()
    width = 0
    for line, content in enumerate(itertools.chain.from_iterable(text.blocks(file)), 1):
        if not content:
            continue
        # Most lines of a file of millions have no quote: a call less.
        cells = split(content, line) if skip_spaces or '"' in content else content.split(delimiter)
        if len(cells) == width:
            assert chosen is not None
            if cells == names and any(names):
                raise InputError("is the header again", file=file, place=line, remedy="remove it; were files joined?")
            yield line, chosen(cells)
        elif chosen is None:
            chosen, names, width = _chooser(file, line, cells, columns, delimiter), cells, len(cells)
        else:
            raise _wrong_width(file, line, cells, width, delimiter)
    if chosen is None:
        raise InputError(
            f"is empty; a header with {', '.join(map(repr, columns))} is needed on its first line", file=file
        )


def header(file: str | Path) -> tuple[str, ...]:
    """Names of a table's columns; errors as `rows`."""
    split = _splitter(_delimiter(file), False, file)
    for line, content in text.lines(file):
        if content:
            names = split(content, line)
            _check_header(file, line, names)
            return tuple(names)
    raise InputError("is empty; a header is needed on its first line", file=file)


def _delimiter(file: str | Path) -> str:
    ending = Path(file).suffix.lower()
    if ending not in DELIMITERS:
        raise InputError(f"is not a table; its name must end in {' or '.join(DELIMITERS)}", file=file)
    return DELIMITERS[ending]


def _splitter(delimiter: str, skip_spaces: bool, file: str | Path) -> Callable[[str, int], list[str]]:
    """(line, its number) -> its cells."""
    waiting: list[str] = []
    # One reader for all lines: it takes the line that waits, and `pop` fails if it asks for the next as well.
    reader = csv.reader(iter(waiting.pop, None), strict=True, skipinitialspace=skip_spaces)

    def split(line: str, number: int) -> list[str]:
        if delimiter == "," and '"' in line:
            waiting.append(line)
            try:
                return next(reader)
            except (csv.Error, IndexError) as error:
                raise _malformed(str(error), file, number) from error
        cells = line.split(delimiter)
        return [cell.lstrip(" ") for cell in cells] if skip_spaces else cells

    return split


def _malformed(why: str, file: str | Path, number: int) -> InputError:
    """What Python's csv module says of a line."""
    if "field larger" in why:
        reason = f"a cell of more than {csv.field_size_limit():,} characters in a line with quotes"
        remedy = "close its quote, or shorten it"
    elif "pop from empty" in why:
        reason = "a cell begins with a quote that is not closed on its line"
        remedy = 'quote the whole cell and double the quotes in it: "a ""stop"" sign"; a cell is one line'
    else:
        reason = "text comes after the quote that closes a cell"
        remedy = 'double quotes within a quoted cell: "a ""stop"" sign"'
    return InputError(reason, file=file, place=number, remedy=remedy)


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
                return f"the header contains {kind}"
        if delimiter == "\t" and "," in names[0]:
            return "the header contains commas: name the file .csv"
    close = difflib.get_close_matches(missing.strip().lower(), [name.strip().lower() for name in names], 1)
    if close:
        alike = next(name for name in names if name.strip().lower() == close[0])
        return f"name the column of {missing!r}, or rename {shown(alike)} in the header"
    return "name the column, or give the file a header on its first line"


def _wrong_width(file: str | Path, line: int, cells: Sequence[str], width: int, delimiter: str) -> InputError:
    many = len(cells) > width
    if delimiter == ",":
        remedy = "put a cell that contains a comma in double quotes" if many else "separate cells by commas"
    else:
        remedy = "a cell cannot contain a tab" if many else "separate cells by tabs"
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
