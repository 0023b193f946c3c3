"""Whatever a file holds, a reader gives a value or an `InputError` of one line that names the file, in good time."""

import csv
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from launch.reading import (
    InputError,
    folders,
    forms,
    images,
    jsons,
    lists,
    paths,
    printable,
    records,
    shown,
    tables,
    text,
)

# Two seconds per case. ALIGNAX_FUZZ=10000 looks longer.
FUZZ = settings(
    deadline=2000, max_examples=int(os.environ.get("ALIGNAX_FUZZ", 100)), suppress_health_check=[HealthCheck.too_slow]
)

NEAR_TEXT = st.lists(
    st.sampled_from(
        [b"image", b"caption", b",", b"\t", b'"', b'""', b"\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xe9",
         b"\xff\xfe", b"[", b"]", b"{", b"}", b":", b"1", b"1.7", b"1e999", b"NaN", b"true", b"null", b'"caption":',
         b'"image":', b"\\ud83d", b"\\u0000", b" ", b"a dog", "é😀".encode(), b"\xed\xa0\xbd", b"#",
         b'"annotations":', b"-", b"\\"]
    ),
    max_size=40,
).map(b"".join)  # fmt: skip
CONTENT = st.one_of(st.binary(max_size=300), NEAR_TEXT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["caption", "image", "annotations", "id"]) | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


@contextmanager
def file(content: bytes, ending: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"input{ending}")
        path.write_bytes(content)
        yield path


def value_or_error(read: Callable[[], Any], name: str) -> Any:
    """What `read` gives; None for an InputError, which is one printable line with the file's name."""
    try:
        return read()
    except InputError as error:
        message = str(error)
        assert message.isprintable() and name in message, message
        message.encode()
        return None


def check_text(values: Any) -> None:
    """All texts can be written again."""
    written = json.dumps(values, ensure_ascii=False)
    assert "\\u0000" not in written.replace("\\\\", "")
    written.encode()


READERS: dict[str, Callable[[Path], Any]] = {
    ".txt": text.read,
    ".list": lambda path: lists.read(path, comment="#"),
    ".csv": lambda path: list(tables.rows(path, ("image", "caption"))),
    ".tsv": lambda path: list(tables.rows(path, ("caption",))),
    ".json": jsons.read,
    ".jsonl": lambda path: [r.values for r in jsons.lines(path)],
}


@pytest.mark.parametrize("ending", READERS)
@FUZZ
@given(content=CONTENT)
@example(content=b"[" * 100_000)
@example(content=b'{"a":' * 100_000)
@example(content=b'"' * 100_001)
@example(content=b"image,caption\n" + b'"x\n' * 100_000)
@example(content=b"9" * 100_000)
@example(content=b"\r" * 100_000)
@example(content=b"image\tcaption\n" + b"\t" * 100_000)
@example(content=b"," * 100_000)
def test_any_bytes(ending, content):
    with file(content, ending) as path:
        values = value_or_error(lambda: READERS[ending](path), path.name)
        if values is not None:
            check_text(values)


@pytest.mark.parametrize("ending", [".txt", ".csv", ".tsv", ".json", ".jsonl"])
@FUZZ
@given(content=CONTENT)
def test_texts_of_any_bytes(ending, content):
    with file(content, ending) as path:
        found = value_or_error(lambda: list(forms.texts(path, "caption")), path.name)
        for _, item in found or ():
            assert item == item.strip() and item
            item.encode()


@FUZZ
@given(value=JSON)
def test_json_is_what_it_was_or_refused(value):
    written = json.dumps(value)
    with file(written.encode(), ".json") as path:
        found = value_or_error(lambda: jsons.read(path, top=object), path.name)
        odd = any(word in written for word in ("NaN", "Infinity", "\\u0000", "\\ud"))
        assert odd or (found == value and repr(found) == repr(value))
        found = value_or_error(lambda: list(forms.texts(path, "caption")), path.name)
        assert found is None or all(isinstance(item, str) for _, item in found)


@FUZZ
@given(value=JSON, kind=st.sampled_from([str, int, float, bool, list, dict, object]))
def test_fields_of_any_json(value, kind):
    record = records.Record("a.json", "entry 3", {"id": value})
    calls: list[Callable[[], Any]] = [
        lambda: records.field(record, "id", kind),
        lambda: records.items(record, "id", kind, at_least=1, distinct=kind not in (list, dict, object)),
        lambda: records.text(record, "id"),
        lambda: records.texts(record, "id"),
        lambda: records.number(record, "id", float, least=0, most=1),
        lambda: records.one_of(record, "id", {"0": 0}),
        lambda: record.child("id"),
        lambda: record.children("id"),
        lambda: records.field(record, "absent", kind),
    ]
    for call in calls:
        value_or_error(call, "a.json, entry 3")
    found = value_or_error(calls[0], "id")
    assert found is None or kind is float or found is value


@FUZZ
@given(rows=st.lists(st.tuples(*[st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"))] * 2), max_size=8))
def test_tables_come_back(rows):
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("image", "caption"), *rows])
    with file(stream.getvalue().encode(), ".csv") as path:
        assert [row for _, row in tables.rows(path, ("image", "caption"))] == rows
    rows = [tuple(cell.replace("\t", " ") for cell in row) for row in rows]
    with file("".join("\t".join(row) + "\n" for row in [("image", "caption"), *rows]).encode(), ".tsv") as path:
        assert [row for _, row in tables.rows(path, ("image", "caption"))] == rows


@FUZZ
@given(
    content=st.binary(max_size=60) | NEAR_TEXT,
    block=st.integers(1, 20),
)
def test_blocks_make_no_difference(content, block):
    with file(content, ".txt") as path, pytest.MonkeyPatch.context() as patch:
        whole = value_or_error(lambda: list(text.lines(path)), path.name)
        patch.setattr(text, "_BLOCK", block)
        assert value_or_error(lambda: list(text.lines(path)), path.name) == whole


@FUZZ
@given(value=st.text(st.characters(codec=None)) | st.binary() | st.integers() | st.none())
def test_paths_of_anything(value):
    value_or_error(lambda: paths.path(value, "--workdir"), "--workdir")
    value_or_error(lambda: paths.file(value, "--workdir"), "--workdir")
    value_or_error(lambda: paths.folder(value, "--workdir"), "--workdir")
    found = value_or_error(lambda: paths.inside("/root", value, listed="a.csv"), "a.csv")
    assert found is None or (str(found).startswith("/root/") and ".." not in found.parts)
    if isinstance(value, str):
        value_or_error(lambda: images.decode(value or "-", alpha="drop"), printable(value or "-"))
        value_or_error(lambda: folders.images(value or "-"), printable(value or "-"))
    shown(value).encode()


def encoded() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    found = []
    for kind, options in [("JPEG", {"exif": exif}), ("PNG", {"exif": exif}), ("GIF", {}), ("BMP", {}), ("PPM", {}),
                          ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {})]:  # fmt: skip
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind, **options)
        found.append(stream.getvalue())
    for array in (pixels[..., 0].astype(np.float32) / 255, pixels[..., 0].astype(np.uint16) * 257):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "TIFF")
        found.append(stream.getvalue())
    return found


ENCODED = encoded()


@FUZZ
@given(
    data=st.sampled_from(ENCODED),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 2000),
    alpha=st.sampled_from(["white", "drop"]),
)
def test_damaged_images(data, changes, cut, alpha):
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % min(len(damaged), 200 if at % 2 else len(damaged))] = value
    with file(bytes(damaged[:cut]), ".img") as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = value_or_error(lambda: images.pixels(path, alpha=alpha), path.name)
        assert found is None or (found.dtype == np.uint8 and found.shape[2:] == (3,))


@FUZZ
@given(block=st.binary(max_size=80), order=st.sampled_from([b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0", b""]))
def test_a_photo_with_any_exif_block(block, order):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG", exif=b"Exif\0\0" + order + block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert images.pixels(stream.getvalue(), alpha="drop").shape == (8, 8, 3)


@FUZZ
@given(
    entries=st.lists(
        st.tuples(
            st.sampled_from(["file", "link"]), st.sampled_from(["a", "b", "a/b", "a/b/c", "."]), st.integers(0, 3)
        ),
        max_size=10,
    )
)
def test_folders_with_any_links(entries):
    """Every real file once, in the same order, and no loop."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder, "top")
        (top / "a/b/c").mkdir(parents=True)
        (top / "b").mkdir()
        for i, (kind, place, target) in enumerate(entries):
            path = top / place / (f"{i}.jpg" if kind == "file" or target % 2 else str(i))
            if kind == "file":
                path.touch()
            else:
                path.symlink_to(top / ("a/b", "a/b/0.jpg", ".", "b/1.jpg")[target])
        found = value_or_error(lambda: folders.images(top), str(top))
        if found is not None:
            real = [path.resolve() for path in found.paths]
            assert len(set(real)) == len(real)
            assert set(real) == {path for path in top.rglob("*.jpg") if path.is_file() and not path.is_symlink()}
            assert list(found.names) == sorted(found.names)
