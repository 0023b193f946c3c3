"""Settings and names that stand for files."""

import os
from pathlib import Path

import pytest

from launch.reading import InputError, MissingInput, paths


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.path("~/x", "--workdir") == tmp_path / "x"
    assert paths.path(Path("~"), "--workdir") == tmp_path
    assert paths.path("a/~", "--workdir") == Path("a/~")
    (tmp_path / "a.csv").touch()
    assert paths.file("~/a.csv", "data.path", endings=(".csv",)) == tmp_path / "a.csv"
    assert paths.folder("~", "data.images") == tmp_path


@pytest.mark.parametrize(
    "value, says",
    [
        ("", r"^'--workdir': is empty, got ''; give a path; is a shell variable unset\?$"),
        ("  ", "'--workdir': is empty, got '  '"),
        (None, "'--workdir': must be a path, got None"),
        (3, "'--workdir': must be a path, got 3"),
        (b"x", "must be a path, got b'x'"),
        ("a\0b", r"without NUL characters, got 'a\\x00b'"),
        ("~nobody-of-that-name/x", "names an unknown user after '~', got '~nobody-of-that-name/x'"),
    ],
)
def test_what_is_no_path(value, says):
    with pytest.raises(InputError, match=says):
        paths.path(value, "--workdir")


def test_files_and_folders(tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(MissingInput, match=r"b\.csv, 'data\.path': no such file or folder; make it$"):
        paths.file(tmp_path / "b.csv", "data.path", remedy="make it")
    with pytest.raises(MissingInput, match="no such file"):
        paths.file(tmp_path / "a.csv" / "b.csv", "data.path")
    with pytest.raises(InputError, match=r"'data\.path': must be a file that ends in \.tsv, \.jsonl, got '.*a\.csv'"):
        paths.file(tmp_path / "a.csv", "data.path", endings=(".tsv", ".jsonl"))
    with pytest.raises(InputError, match="is a folder; a file is needed"):
        paths.file(tmp_path, "data.path")
    with pytest.raises(InputError, match="is a file; a folder is needed"):
        paths.folder(tmp_path / "a.csv", "data.images")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe, socket or device; a file is needed"):
        paths.file(tmp_path / "pipe", "data.path")


@pytest.mark.parametrize(
    "name, below",
    [
        ("a.jpg", "a.jpg"),
        ("./x/a.jpg", "x/a.jpg"),
        ("x/../b.jpg", "b.jpg"),
        ("..a/b", "..a/b"),
        ("x//a", "x/a"),
        ("/r/a", "a"),
    ],
)
def test_names_below_a_folder(name, below):
    for root in ("/r", Path("/r"), "/r/", "/r/x/.."):
        assert os.path.normpath(paths.inside(root, name, listed="a.csv")) == f"/r/{below}"
    if name[0] != "/":
        assert paths.inside("images", name, listed="a.csv") == Path("images", below)


@pytest.mark.parametrize(
    "name, says",
    [
        ("../a.jpg", "is not below /r, got '../a.jpg'; names are relative to that folder"),
        ("x/../../r/a.jpg", "is not below /r"),
        ("/etc/passwd", "is not below /r"),
        ("/rest/a.jpg", "is not below /r"),
        ("..", "is not below /r"),
        (".", "is not below /r"),
        ("x/..", "is not below /r"),
        ("/r", "is not below /r"),
        ("", "must be the name of a file, got ''"),
        (" ", "must be the name of a file"),
        (7, "must be the name of a file, got 7"),
        (None, "must be the name of a file, got None"),
        ("a\0.jpg", "must be the name of a file, without NUL characters"),
    ],
)
def test_names_that_leave_a_folder(name, says):
    with pytest.raises(InputError, match=rf"^a\.csv, line 3, 'image': {says}"):
        paths.inside("/r", name, listed="a.csv", place=3, field="image")


def test_absent_files(tmp_path):
    for i in range(0, 100, 2):
        (tmp_path / f"{i}.jpg").touch()
    files = [tmp_path / f"{i}.jpg" for i in range(100)]
    assert paths.absent(files) == list(range(1, 100, 2))
    assert paths.absent([]) == [] and paths.absent(["a\0", "\ud83d"]) == [0, 1]
    paths.check_present(files[::2], listed="a.csv")
    with pytest.raises(
        MissingInput, match=r"a\.csv: 50 of 100 files that it names are missing, the first is .*/1\.jpg; set"
    ):
        paths.check_present(files, listed="a.csv", remedy="set data.images")
