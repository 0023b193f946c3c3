"""CSV with strict quoting, TSV without quoting."""

import csv
import time

import pytest

from launch.reading import InputError, MissingInput, tables


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes | str):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def cells(path, *columns, **options):
    return [row for _, row in tables.rows(path, columns, **options)]


PAIRS = [("0.png", "a red circle"), ("1.png", '"no entry sign on a wall'), ("2.png", "a blue square"),
         ("5.png", '"stop" sign'), ("6.png", "a cat")]  # fmt: skip


OPEN = "line 2: a cell begins with a quote that is not closed on its line; quote the whole cell"


def test_a_quote_in_a_tsv_is_text(write):
    path = write("a.tsv", "image\tcaption\n" + "".join(f"{image}\t{caption}\n" for image, caption in PAIRS))
    assert cells(path, "image", "caption") == PAIRS
    assert cells(path, "caption", "image") == [row[::-1] for row in PAIRS]
    assert cells(path, "caption") == [row[1:] for row in PAIRS]


def test_sixty_pairs_with_one_stray_quote(write):
    rows = [(f"{i}.png", ('"' if i == 20 else "") + f"there is a thing, number {i}") for i in range(60)]
    path = write("a.tsv", "image\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert cells(path, "image", "caption") == rows
    path = write("a.csv", "image,caption\n" + "".join(f"{a},{b.replace(',', '')}\n" for a, b in rows))
    with pytest.raises(InputError, match=r"line 22: a cell begins with a quote that is not closed on its line; quote"):
        cells(path, "image", "caption")


def test_a_second_header_is_no_row(write):
    """Two files that were joined: the captions would have "caption" among them."""
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        table = f"image{separator}caption\n0.png{separator}a dog\n"
        with pytest.raises(InputError, match=rf"{name}, line 3: is the header again; remove it; were files joined"):
            cells(write(name, table * 2), "caption")


def test_what_python_writes_is_read(write, tmp_path):
    rows = [("0.png", 'a "stop" sign, red'), ("1.png", ""), ("2, 3.png", '"'), ("é.png", " x ")]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    assert cells(tmp_path / "a.csv", "image", "caption") == rows


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name, separator", [("a.csv", ","), ("a.TSV", "\t")])
def test_marks_line_ends_and_empty_lines(write, mark, end, name, separator):
    lines = ["id,image,caption", "7,0.png,a dog", "", '8,1.png,a 5" pipe', ""]
    path = write(name, mark + end.join(line.replace(",", separator) for line in lines))
    assert list(tables.rows(path, ("image", "caption"))) == [(2, ("0.png", "a dog")), (4, ("1.png", 'a 5" pipe'))]
    assert tables.header(path) == ("id", "image", "caption")
    assert [r.values for r in tables.records(path, ("id",))] == [{"id": "7"}, {"id": "8"}]


def test_spaces_after_commas(write):
    path = write("a.csv", 'image_id, partition\n1.jpg, 0\n2.jpg, "1"\n')
    assert cells(path, "image_id", "partition", skip_spaces=True) == [("1.jpg", "0"), ("2.jpg", "1")]
    with pytest.raises(InputError, match="no column 'partition' among 'image_id', ' partition'"):
        cells(path, "partition")


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", "image,caption\n1.png,a dog, running\n", "line 2: 3 cells, the header has 2: .*; put a cell that"),
        ("a.csv", "caption\na dog, running on the beach\n", "line 2: 2 cells, the header has 1.* double quotes"),
        ("a.csv", "image,caption\n\n1.png\n", "line 3: 1 cell, the header has 2: '1.png'"),
        ("a.tsv", "image\tcaption\n1.png\ta\tb\n", "line 2: 3 cells, the header has 2: .*; a cell cannot contain"),
        ("a.tsv", "image\tcaption\n1.png a dog\n", "line 2: 1 cell, the header has 2: .*; separate cells by tabs"),
        ("a.csv", "", "a.csv: is empty; a header with 'image', 'caption' is needed on its first line"),
        ("a.tsv", "\n\n", "is empty"),
        ("a.csv", "image,caption,image\n", "line 1: the header has the column 'image' twice"),
        ("a.tsv", "a\ta\timage\tcaption\n", "the header has the column 'a' twice"),
        ("a.csv", "image,Caption\n", "line 1: no column 'caption' among 'image', 'Caption'; .* rename 'Caption'"),
        ("a.csv", "image\tcaption\n", r"no column 'image' among .*; the header contains tabs: name the file .tsv"),
        ("a.csv", "image;caption\n", r"no column 'image' among .*; the header contains semicolons"),
        ("a.tsv", "image,caption\n", r"no column 'image' among .*; the header contains commas: name the file .csv"),
        ("a.csv", 'image,caption\n1.png,"no entry sign\n2.png,a dog\n3.png,"stop" sign\n', OPEN),
        ("a.csv", 'image,caption\n1.png,"no entry sign\n2.png,a sign, "\n', OPEN),
        ("a.csv", 'image,caption\n1.png,"two\nlines"\n', "line 2: .* a cell is one line"),
        ("a.csv", 'image,caption\n1.png,"stop" sign\n', "line 2: text comes after the quote that closes a cell"),
        ("a.csv", 'image,caption\n1.png,"no entry sign', OPEN),
        ("a.csv", 'image,caption\n1.png,"' + "x" * 200_000 + '"', "line 2: a cell of more than 131,072 characters"),
        ("a.csv", "image,caption\n0.png,x\n1.png,a\0b\n", "line 3: byte 8 of the line is NUL"),
        ("a.tsv", b"image\tcaption\n1.png\tcaf\xe9\n", "line 2: byte 10 of the line, 0xe9, is not UTF-8"),
        ("a.txt", "image,caption\n", r"a.txt: is not a table; its name must end in .csv or .tsv"),
    ],
)  # fmt: skip
def test_what_is_refused(write, name, content, says):
    columns = ("caption",) if str(content).startswith("caption") else ("image", "caption")
    path = write(name, content)
    with pytest.raises(InputError, match=says) as caught:
        cells(path, *columns)
    assert caught.value.file == str(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingInput, match=r"a\.csv: no such file"):
        cells(tmp_path / "a.csv", "x")


def test_a_long_cell(write):
    assert cells(write("a.csv", "x\n" + "y" * 10**6), "x") == [("y" * 10**6,)]
    assert cells(write("a.tsv", "x\n" + "y" * 10**6), "x") == [("y" * 10**6,)]


def test_a_wide_header_and_an_unclosed_quote_take_no_time(write):
    started = time.monotonic()
    header = ",".join(f"c{i}" for i in range(100_000))
    assert cells(write("a.csv", f"{header}\n{header.upper()}\n"), "c99999") == [("C99999",)]
    with pytest.raises(InputError, match="line 2"):
        cells(write("b.csv", 'x\n"a\n' + "b\n" * 1_000_000), "x")
    assert time.monotonic() - started < 2
