"""Text files and lists: marks, encodings, line ends, what is no text."""

import contextlib
import os
import threading
from types import SimpleNamespace

import pytest

from launch.reading import InputError, MissingInput, lists, text


@pytest.fixture
def write(tmp_path):
    def write(content: bytes | str, name: str = "a.txt"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"", []),
        (b"cat\ndog\n", ["cat", "dog"]),
        (b"cat\ndog", ["cat", "dog"]),
        (b"\xef\xbb\xbfcat\ndog\n", ["cat", "dog"]),
        (b"\xef\xbb\xbf", []),
        (b"cat\r\ndog\r\n", ["cat", "dog"]),
        (b"cat\rdog\r", ["cat", "dog"]),
        (b"a\n\n\nb\n", ["a", "", "", "b"]),
        ("a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"]),  # no line ends
        ("smile 😀\n".encode(), ["smile 😀"]),
    ],
)
def test_lines(write, content, lines, monkeypatch):
    path = write(content)
    for block in (1, 2, 3, 5, 1 << 22):
        monkeypatch.setattr(text, "_BLOCK", block)
        assert list(text.lines(path)) == list(enumerate(lines, 1))
        assert text.read(path).rstrip("\n") == "\n".join(lines).rstrip("\n")


@pytest.mark.parametrize(
    "content, says",
    [
        (
            b"ok\na caf\xe9 at night\n",
            r"a\.txt, line 2: byte 6 of the line, 0xe9, is not UTF-8; save the file as UTF-8",
        ),
        (b"ok\r\rx\xff", r"line 3: byte 2 of the line, 0xff"),
        (b"ok\n\xed\xa0\xbd", r"line 2: byte 1 of the line, 0xed"),  # half a surrogate pair
        (b"ok\na\0b\n", r"line 2: byte 2 of the line is NUL"),
        ("caption\n".encode("utf-16"), r"is UTF-16 or UTF-32 text; UTF-8 text is needed; save it as UTF-8"),
        ("caption\n".encode("utf-16-be"), r"line 1: byte 1 of the line is NUL.* UTF-16: save it as UTF-8"),
        (b"\x1f\x8b\x08\x00", r"is a gzip file; .*gunzip"),
        (b"PK\x03\x04xx", r"is a zip file or a spreadsheet"),
    ],
)
def test_what_is_no_text(write, content, says, monkeypatch):
    path = write(content)
    for block in (3, 4, 1 << 22):
        monkeypatch.setattr(text, "_BLOCK", block)
        with pytest.raises(InputError, match=says):
            text.read(path)


def test_lines_are_read_as_they_are_asked_for(write, monkeypatch):
    monkeypatch.setattr(text, "_BLOCK", 4)
    lines = text.lines(write(b"a\nb\nc\nd\n\xff\n"))
    assert next(lines) == (1, "a")
    with pytest.raises(InputError, match="line 5: byte 1"):
        list(lines)


def test_what_is_no_file(tmp_path):
    with pytest.raises(MissingInput, match=r"nothing\.txt: no such file"):
        text.read(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match=r"is a folder; a regular file is needed"):
        text.read(tmp_path)
    with pytest.raises(InputError, match="not a valid path"):
        text.read("a\0b")
    with pytest.raises(InputError, match="not a valid path"):
        text.read("a\ud83d")
    with pytest.raises(InputError, match=r"cannot be read .*too long"):
        text.read(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: is a link that leads to itself"):
        text.read(tmp_path / "loop")
    with pytest.raises(InputError, match="/dev/zero: is a pipe, socket or device"):
        text.read("/dev/zero")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    caught = []

    def read():
        try:
            text.read(tmp_path / "pipe")
        except InputError as error:
            caught.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert caught and "is a pipe" in caught[0]


def test_a_file_without_permission(write, monkeypatch):
    path = write("x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    with pytest.raises(InputError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        text.read(path)


def test_a_disk_that_fails_while_it_is_read(write, monkeypatch):
    path = write("x")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(text.paths, "open_regular", lambda _: contextlib.nullcontext(SimpleNamespace(read=fail)))
    with pytest.raises(InputError, match=r"a\.txt: cannot be read \(Input/output error\)"):
        text.read(path)


def test_a_list(write):
    assert lists.read(write("\ufeffcat\n\n  dog \n#1 dad\n")) == ("cat", "dog", "#1 dad")
    assert lists.read(write("# kinds\ncat\n"), comment="#") == ("cat",)
    assert list(lists.items(write("cat\n\ncat\n"))) == [(1, "cat"), (3, "cat")]


@pytest.mark.parametrize(
    "content, says",
    [
        ("cat\ndog\n\n cat \n", r"a\.txt, line 4: 'cat' is on line 1 already; remove one"),
        ("", "has no items, at least 1 needed, one per line"),
        ("\n \n", "has no items"),
        (b"caf\xe9\n", "line 1: byte 4 of the line, 0xe9, is not UTF-8"),
    ],
)
def test_what_is_no_list(write, content, says):
    with pytest.raises(InputError, match=says):
        lists.read(write(content))
    with pytest.raises(InputError, match="has 1 items, at least 2"):
        lists.read(write("one"), at_least=2)
