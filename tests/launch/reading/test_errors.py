"""The error of the readers: one line, its parts as attributes, whatever is in it."""

import json
import pickle

import pytest

from launch.reading import InputError, MissingInput, jsons, printable, records, shown


def test_the_line_and_its_parts():
    error = InputError("must be an integer", file="a.json", place="entry 4", field="id", value=1.7, remedy="round it")
    assert str(error) == "a.json, entry 4, 'id': must be an integer, got 1.7; round it"
    assert (error.file, error.place, error.field, error.value) == ("a.json", "entry 4", "id", 1.7)
    assert (error.reason, error.remedy) == ("must be an integer", "round it")
    assert str(InputError("is empty", place=3)) == "line 3: is empty"
    assert str(InputError("is empty", file="a")) == "a: is empty"
    assert isinstance(error, ValueError)


def test_none_is_a_value_and_absence_is_not():
    assert str(InputError("must be a text", value=None)) == "must be a text, got None"
    assert str(InputError("must be a text")) == "must be a text"


@pytest.mark.parametrize("kind", [InputError, MissingInput])
def test_it_survives_the_way_out_of_a_worker_process(kind):
    for value in ({"value": None}, {}, {"value": [1]}):
        error = kind("r", file=b"caf\xe9", place=3, field="f", remedy="m", **value)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)


def test_missing_is_also_a_file_not_found_error():
    with pytest.raises(FileNotFoundError, match=r"a\.txt: no such file"):
        raise MissingInput("no such file", file="a.txt")


def test_names_and_values_are_printable():
    assert printable(b"caf\xe9.png") == r"caf\xe9.png"
    assert printable("caf\udce9.png") == r"caf\xe9.png"
    assert printable("a\nb\x1b[31m\ud83d") == r"a\nb\x1b[31m\ud83d"
    assert printable("grün €.png") == "grün €.png"
    assert "\n" not in str(InputError("one\ntwo", file="a\nb", value="c\nd", field="e\nf", place="g\nh"))
    str(InputError("x", value="\ud83d", file="a\ud83d")).encode()


def test_long_deep_and_huge_values_are_short():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, list(range(10**6)), deep, 10**5000, 1 << 100_000, {"k": "v" * 10**6}, b"x" * 10**6):
        assert len(shown(value)) < 600
    while deep:  # freed one by one, not recursively
        deep = deep[0]


def test_types_of_fields():
    values = json.loads('{"i": 3, "f": 1.7, "b": true, "s": " x ", "l": [1, 2], "o": {"m": ["a", "b"]}, "n": null}')
    record = records.Record("q.json", "entry 2", values)
    assert records.field(record, "i", int) == 3
    assert records.field(record, "i", float) == 3.0 and isinstance(records.field(record, "i", float), float)
    assert records.field(record, "b", bool) is True
    assert records.text(record, "s") == "x"
    assert records.items(record, "l", int, length=2, distinct=True) == [1, 2]
    assert records.items(record.child("o"), "m", str) == ["a", "b"]
    assert records.optional(record, "absent", int, 7) == 7 and records.optional(record, "i", int, 7) == 3
    assert records.texts(record, "s") == ["x"] and records.texts(record.child("o"), "m") == ["a", "b"]
    assert records.number(record, "i", int, least=3, most=3) == 3
    assert records.one_of(record, "s", {"x": 5}) == 5 and records.one_of(record, "s", ("x",)) == "x"


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda r: records.field(r, "f", int), "'f': must be an integer, got 1.7"),
        (lambda r: records.field(r, "b", int), "'b': must be an integer, got True"),
        (lambda r: records.field(r, "b", float), "'b': must be a number, got True"),
        (lambda r: records.field(r, "s", int), "'s': must be an integer, got '3'"),
        (lambda r: records.field(r, "n", str), "'n': must be a text, got None"),
        (lambda r: records.field(r, "big", float), "'big': must be a number, got 1000"),
        (lambda r: records.field(r, "inf", float), "'inf': must be a number, got inf"),
        (lambda r: records.field(r, "target", str), "no 'target' among 'f', 'b', "),
        (lambda r: records.text(r, "blank"), "'blank': must be a text that is not blank, got '  '"),
        (lambda r: records.texts(r, "l"), "'l': item 0 must be a text, got 1"),
        (lambda r: records.texts(r, "none"), "'none': must be a list of at least 1, has 0, got []"),
        (lambda r: records.items(r, "l", int, length=3), "'l': must be a list of 3, has 2, got"),
        (lambda r: records.items(r, "l", int, distinct=True), "'l': 1 occurs twice"),
        (lambda r: records.items(r, "s", int), "'s': must be a list, got '3'"),
        (lambda r: records.one_of(r, "s", ("0", "1")), "'s': must be one of '0', '1', got '3'"),
        (lambda r: records.number(r, "f", float, least=2), "'f': must be at least 2, got 1.7"),
        (lambda r: records.number(r, "f", float, least=2, most=3), "'f': must be from 2 to 3, got 1.7"),
        (lambda r: records.only(r, ("f", "b")), "unknown field 's'; valid fields: 'f', 'b'"),
        (lambda r: r.child("f"), "'f': must be an object, got 1.7"),
        (lambda r: records.field(r.child("o"), "x", int), "'o': no 'x' among nothing"),
        (lambda r: r.children("l"), "'l': item 0 must be an object, got 1"),
        (lambda r: records.field(r.children("os")[1], "x", int), "'os'[1], 'x': must be an integer, got None"),
    ],
)
def test_what_fields_refuse(call, says):
    values = {"f": 1.7, "b": True, "s": "3", "n": None, "big": 10**400, "inf": float("inf"), "blank": "  ", "l": [1, 1],
              "none": [], "o": {}, "os": [{"x": 1}, {"x": None}]}  # fmt: skip
    with pytest.raises(InputError) as caught:
        call(records.Record("q.json", "entry 2", values))
    assert says in str(caught.value) and str(caught.value).startswith("q.json, entry 2")


def test_a_record_of_a_table_names_its_line():
    with pytest.raises(InputError, match=r"^t\.csv, line 7, 'y': must be one of '0', '1', got '2'$"):
        records.one_of(records.Record("t.csv", 7, {"y": "2"}), "y", {"0": 0, "1": 1})


def test_entries_that_are_no_objects(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [{"id": 1}, 5]}')
    with pytest.raises(InputError, match=r"a\.json, entry 1 of 'images': must be an object, got 5"):
        jsons.records(tmp_path / "a.json", under="images")
