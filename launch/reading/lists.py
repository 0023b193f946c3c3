"""Lists with one item per line: class folders, words, captions."""

from collections.abc import Iterator
from pathlib import Path

from launch.reading import text
from launch.reading.errors import InputError, shown


def read(file: str | Path, *, comment: str = "", at_least: int = 1) -> tuple[str, ...]:
    """The items of a file, one per line, each of which may occur once.

    White space around items is dropped, and so are blank lines.

    Args:
      file: its path.
      comment: lines that begin with it are skipped; "" for none.
      at_least: items.

    Raises:
      MissingInput: no such file.
      InputError: not UTF-8, too few items, an item twice (with both lines).
    """
    lines: dict[str, int] = {}
    for line, item in items(file, comment=comment):
        if item in lines:
            raise InputError(
                f"{shown(item)} is on line {lines[item]} already",
                file=file,
                place=line,
                remedy="remove one of the lines",
            )
        lines[item] = line
    if len(lines) < at_least:
        raise InputError(f"has {len(lines) or 'no'} items, at least {at_least} needed, one per line", file=file)
    return tuple(lines)


def items(file: str | Path, *, comment: str = "") -> Iterator[tuple[int, str]]:
    """(line, item) of every line that is not blank, stripped; an item may occur several times."""
    for line, content in text.lines(file):
        item = content.strip()
        if item and not (comment and item.startswith(comment)):
            yield line, item
