"""Text files: UTF-8, with or without a byte order mark, lines that end in LF, CRLF or CR."""

from collections.abc import Iterator
from pathlib import Path

from launch.reading import paths
from launch.reading.errors import InputError, of_os

_BLOCK = 1 << 22  # bytes that are read and decoded at once
_MARK = b"\xef\xbb\xbf"
# How files begin that are no UTF-8 text.
_MAGICS = {
    b"\xff\xfe": ("UTF-16 or UTF-32 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"\x1f\x8b": ("a gzip file", "unpack it with gunzip"),
    b"PK\x03\x04": ("a zip file or a spreadsheet", "unpack it, or export it as UTF-8 text"),
    b"PAR1": ("a Parquet file", "export it as .csv or .jsonl"),
    b"\x89PNG": ("a PNG image", "give the text file"),
    b"\xff\xd8\xff": ("a JPEG image", "give the text file"),
}


def read(file: str | Path) -> str:
    """The whole text, line ends as LF.

    Raises:
      MissingInput: no such file.
      InputError: not UTF-8 (with line and byte), a NUL, no regular file, not readable.
    """
    return "\n".join(line for block in blocks(file) for line in block)


def lines(file: str | Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end), read as they are asked for; errors as `read`.

    The empty line after the last line end does not count.
    """
    number, line = 0, ""
    for block in blocks(file):
        for following in block:
            if number:
                yield number, line
            number, line = number + 1, following
    if line:
        yield number, line


def blocks(file: str | Path) -> Iterator[list[str]]:
    """The lines without their ends, in lists; the last is "" if the file ends in a line end. Errors as `read`."""
    before = 0  # lines in earlier blocks
    first = True
    for data, ended in _whole_lines(file):
        if first:
            _refuse_magic(data, file)
            data, first = data.removeprefix(_MARK), False
        text = _decode(data, file, before)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        block = text.split("\n")
        if ended:
            block.pop()  # what comes after the line end is the next block
        before += len(block)
        yield block


def _whole_lines(file: str | Path) -> Iterator[tuple[bytes, bool]]:
    """Parts of the file that are cut after an LF, and whether another part follows."""
    parts: list[bytes] = []
    with paths.open_regular(file) as stream:
        while True:
            try:
                data = stream.read(_BLOCK)
            except OSError as error:
                raise of_os(error, file) from error
            if not data:
                break
            cut = data.rfind(b"\n") + 1
            if cut:
                yield b"".join([*parts, data[:cut]]), True
                parts = []
            parts.append(data[cut:])
    yield b"".join(parts), False


def _decode(data: bytes, file: str | Path, before: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = _position(data, error.start)
        raise InputError(
            f"byte {byte} of the line, 0x{data[error.start]:02x}, is not UTF-8",
            file=file,
            place=before + line,
            remedy="save the file as UTF-8, for example with iconv -f latin1 -t utf-8",
        ) from error
    if "\0" in text:
        line, byte = _position(data, data.index(b"\0"))
        raise InputError(
            f"byte {byte} of the line is NUL, which text cannot contain",
            file=file,
            place=before + line,
            remedy="the file is damaged, not text, or UTF-16: save it as UTF-8",
        )
    return text


def _position(data: bytes, at: int) -> tuple[int, int]:
    """(line, byte of the line) of a position, both from 1."""
    begun = data[:at].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return begun.count(b"\n") + 1, len(begun) - begun.rfind(b"\n")


def _refuse_magic(data: bytes, file: str | Path) -> None:
    for magic, (kind, remedy) in _MAGICS.items():
        if data.startswith(magic):
            raise InputError(f"is {kind}; UTF-8 text is needed", file=file, remedy=remedy)
