"""JSON and JSON Lines, and files of several forms."""

import json
import time

import pytest

from launch.reading import InputError, MissingInput, forms, jsons

BOM = "\ufeff"


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes | str):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_values(write):
    assert jsons.read(write("a.json", BOM + '{"a": [1, 2.5, null, true, "é \\u00e9 \\ud83d\\ude00"]}')) == {
        "a": [1, 2.5, None, True, "é é 😀"]
    }
    assert jsons.parse("3", top=int) == 3 and jsons.parse('"x"', top=str) == "x"
    assert jsons.parse(r'{"a": "a literal \\ud83d and \\u0000"}') == {"a": r"a literal \ud83d and \u0000"}


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "a.json: is empty; JSON is needed"),
        (" \n", "is empty"),
        ('{"a": 1', r"a\.json, line 1, column 8: invalid JSON: Expecting ',' delimiter; near "),
        ('[\n1,\n 2 3]', "line 3, column 4: invalid JSON"),
        ("[1, 2,]", "invalid JSON"),
        ("{'a': 1}", "invalid JSON"),
        ('{"a": 1}\n{"a": 2}\n', "line 2, column 1: invalid JSON: Extra data; .* name the file .jsonl"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "a.json: the key 'b' occurs twice in the object {'b': 3, 'c': 2}"),
        ("[NaN]", "NaN is not valid JSON; numbers must be finite"),
        ("[-Infinity]", "-Infinity is not valid JSON"),
        ("[1e999]", "the number '1e999' is too large"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 100 levels"),
        ("[" * 101 + "]" * 101, "nested deeper than 100 levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested deeper than 100 levels"),
        ("3", "an object or a list is needed, got 3"),
        ("null", "an object or a list is needed, got None"),
        (r'["a blue thing \ud83d"]', r"a text contains half of a surrogate pair.*, got 'a blue thing \\ud83d'"),
        (r'["\ude00\ud83d"]', "half of a surrogate pair"),
        (r'{"a": [{"\uD83d": 1}]}', "half of a surrogate pair"),
        (r'["a\u0000b"]', "a text contains NUL"),
        ("[" + "9" * 5000 + "]", "invalid JSON: Exceeds the limit"),
        ('["a\nb"]', "invalid JSON: Invalid control character"),
        (b'["caf\xe9"]', "line 1: byte 6 of the line, 0xe9, is not UTF-8"),
        (b'["a\0"]', "line 1: byte 4 of the line is NUL"),
    ],
)  # fmt: skip
def test_what_is_refused(write, content, says):
    with pytest.raises(InputError, match=says) as caught:
        jsons.read(write("a.json", content))
    assert caught.value.file.endswith("a.json")


def test_nesting_up_to_the_limit(write):
    content = "[" * 100 + "]" * 100
    assert json.dumps(jsons.read(write("a.json", content))) == content
    assert len(jsons.read(write("b.json", "[" + "[]," * 1000 + "{}]"))) == 1001


def test_the_top_level(write):
    with pytest.raises(InputError, match=r"a\.json: an object is needed, got \[\]"):
        jsons.read(write("a.json", "[]"), top=dict)
    with pytest.raises(InputError, match="an integer is needed, got True"):
        jsons.parse("true", top=int)
    with pytest.raises(InputError, match="a list is needed"):
        jsons.records(write("b.json", "{}"))


def test_files_of_our_own_may_hold_infinities(write):
    values = jsons.read(write("a.json", '{"a": NaN, "b": Infinity, "c": 1e999}'), nonfinite=True)
    assert values["a"] != values["a"] and values["b"] == values["c"] == float("inf")


def test_lines(write):
    path = write("a.jsonl", BOM + '{"a": 1}\r\n\n  {"a": "\\ud83d\\ude00"} \n')
    assert [(r.place, r.values) for r in jsons.lines(path)] == [(1, {"a": 1}), (3, {"a": "😀"})]
    assert list(jsons.lines(write("b.jsonl", ""))) == []


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"a": 1', r"a\.jsonl, line 3, column 8: invalid JSON: Expecting"),
        ("[1]", r"line 3: an object is needed, got \[1\]"),
        ('{"a": 1, "a": 2}', "line 3: the key 'a' occurs twice"),
        ('{"a": NaN}', "line 3: NaN is not valid JSON"),
        ('{"a": "\\ud83d"}', "line 3: a text contains half of a surrogate pair"),
        ("[" * 100_000, "line 3: lists and objects are nested deeper"),
        ('{"a": 1} {"a": 2}', "line 3, column 10: invalid JSON: Extra data"),
    ],
)
def test_what_lines_refuse(write, line, says):
    with pytest.raises(InputError, match=says):
        list(jsons.lines(write("a.jsonl", '{"a": 0}\n\n' + line + "\n")))


def test_records_under_a_key(write):
    path = write("a.json", '{"annotations": [{"caption": "x"}]}')
    (record,) = jsons.records(path, under="annotations")
    assert (record.place, record.values) == ("entry 0 of 'annotations'", {"caption": "x"})
    with pytest.raises(InputError, match="an object with a list under 'images' is needed, got None"):
        jsons.records(path, under="images")


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "\ufeffone dog\n\n two dogs \n"),
        ("a.jsonl", '\ufeff{"caption": ["one dog", " "]}\n{"caption": "two dogs", "x": 1}\n'),
        ("a.csv", 'caption,x\none dog,1\n"two dogs",2\n"",3\n'),
        ("a.tsv", "x\tcaption\n1\tone dog\n2\ttwo dogs\n"),
        ("a.json", '\ufeff{"annotations": [{"caption": "one dog"}, {"caption": "two dogs"}]}'),
        ("a.json", '["one dog", {"caption": ["two dogs"]}]'),
    ],
)
def test_texts_of_every_form(write, name, content):
    assert [text for _, text in forms.texts(write(name, content), "caption")] == ["one dog", "two dogs"]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.xml", "x", "a.xml, 'data.captions': the file name must end in .txt, .jsonl, .csv, .tsv, .json"),
        ("a.csv", "text\nx\n", "line 1: no column 'caption' among 'text'"),
        ("a.csv", "caption\na dog, running\n", "line 2: 2 cells, the header has 1"),
        ("a.jsonl", '{"text": "x"}', "line 1: no 'caption' among 'text'"),
        ("a.jsonl", '{"caption": null}', "line 1: must be a text, got None"),
        ("a.jsonl", '{"caption": [3]}', "line 1: must be a text, got 3"),
        ("a.json", '["x", 3]', "entry 1: must be a text or an object with 'caption', got 3"),
        ("a.json", '[{"text": "x"}]', "entry 0: no 'caption' among 'text'"),
        ("a.json", '{"captions": []}', "an object with a list under 'annotations' is needed"),
    ],
)
def test_texts_that_are_refused(write, name, content, says):
    with pytest.raises(InputError, match=says):
        list(forms.texts(write(name, content), "caption", setting="data.captions"))


TRIPLET = {"reference_caption": "a red car", "conditioning_caption": "is blue", "target_caption": "a blue car"}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_records_of_every_form(write, name):
    content = BOM + json.dumps([TRIPLET] if name == "a.json" else TRIPLET)
    options = {"endings": (".json", ".jsonl")}
    assert [r.values for r in forms.records(write(name, content), list(TRIPLET), **options)] == [TRIPLET]
    with pytest.raises(InputError, match="no 'other' among 'reference_caption'"):
        list(forms.records(write(name, content), ["other"], **options))
    with pytest.raises(MissingInput):
        list(forms.records(write(name, content).with_name(f"b{name}"), ["other"], **options))
    with pytest.raises(InputError, match=r"the file name must end in \.json, \.jsonl"):
        list(forms.records(write("a.csv", "x"), ["x"], **options))


def test_records_of_tables(write):
    rows = forms.records(write("a.csv", "y,x\n1,2\n"), ["x"], endings=forms.TABLES)
    assert [(r.place, r.values) for r in rows] == [(2, {"x": "2"})]


def test_large_files_take_little_longer_than_the_parser(write):
    entries = [
        {"id": i, "image_id": i // 5, "caption": f"a photo of thing {i} with [brackets]"} for i in range(100_000)
    ]
    path = write("a.json", json.dumps({"annotations": entries}))
    started = time.perf_counter()
    json.loads(path.read_text())
    plain = time.perf_counter() - started
    started = time.perf_counter()
    assert len(jsons.records(path, under="annotations")) == 100_000
    assert time.perf_counter() - started < 10 * plain + 1
