"""Triplets and captions from files: what is read, what is refused and how it is named."""

import json

import numpy as np
import pytest

from rtd_jax.text import captions, triplets

GOOD = {"reference_caption": "a dog", "conditioning_caption": "is a cat", "target_caption": "a cat"}


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_jsonl_and_json_are_read_alike(tmp_path):
    rows = [GOOD, {**GOOD, "reference_caption": " a black dog ", "extra": 1}]
    found = triplets.read(lines(tmp_path / "a.jsonl", rows[0], "", rows[1]))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert found.references == ["a dog", "a black dog"]
    assert found.modifications == ["is a cat"] * 2 and found.targets == ["a cat"] * 2
    assert found == triplets.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", r"line 2, column 2: invalid JSON"),
        ("[1]", r"line 2: an object is needed, got \[1\]"),
        ('"text"', "line 2: an object is needed, got 'text'"),
        ({"reference_caption": "a", "target_caption": "b"}, "line 2: no 'conditioning_caption' among"),
        ({**GOOD, "target_caption": "a  dog "}, "line 2: the reference and the target are the same"),
        ({**GOOD, "conditioning_caption": " $ "}, "line 2: conditioning_caption is empty"),
        ({**GOOD, "target_caption": "a $dog"}, "line 2: the reference and the target are the same"),
        ({**GOOD, "reference_caption": ""}, "line 2: reference_caption is empty"),
        ('{"reference_caption": "a", "reference_caption": "b"}', "line 2: the key 'reference_caption' occurs twice"),
        ('{"reference_caption": "\\ud83d"}', "line 2: a text contains half of a surrogate pair"),
        ("[" * 100_000, "line 2: lists and objects are nested"),
        ({**GOOD, "target_caption": None}, "line 2: target_caption is None, not a text"),
    ],
)
def test_faulty_lines_are_named_and_left_out_only_on_demand(tmp_path, row, message):
    path = lines(tmp_path / "a.jsonl", GOOD, row, {**GOOD, "reference_caption": "a bird"})
    with pytest.raises(ValueError, match=message) as error:
        triplets.read(path)
    assert str(path) in str(error.value) and "skip_faulty=True" in str(error.value)
    assert triplets.read(path, skip_faulty=True).references == ["a dog", "a bird"]


def test_captions_are_cleaned_as_published_and_counted(tmp_path, caplog):
    row = {"reference_caption": "<PERSON> at home", "conditioning_caption": "costs $5", "target_caption": "a $5 dog"}
    with caplog.at_level("WARNING"):
        found = triplets.read(lines(tmp_path / "a.jsonl", GOOD, row, row))
        (tmp_path / "a.txt").write_text("<PERSON> at home\na dog\n$\na $dog\n")
        assert captions.read(tmp_path / "a.txt") == ["person at home", "a dog"]
    assert found.select([1]) == triplets.Triplets(["person at home"], ["costs 5"], ["a 5 dog"])
    assert 'a.jsonl: 2 triplets held "$"' in caplog.text and 'a.txt: 3 captions held "$"' in caplog.text
    with pytest.raises(ValueError, match=r"triplet 0: .* holds '[$]'"):
        triplets.check(triplets.Triplets(["a $ dog"], ["is b"], ["a cat"]))


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no triplet that can be used"):
        triplets.read(lines(tmp_path / "a.jsonl", "{"), skip_faulty=True)
    with pytest.raises(FileNotFoundError, match=r"no such file; rtd_jax\.text\.generation makes one"):
        triplets.read(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"must be a file that ends in \.jsonl or \.json"):
        triplets.read(tmp_path / "b.csv")


def test_written_and_read_back(tmp_path):
    made = triplets.Triplets(["ein Hund"], ["is größer"], ["ein großer Hund"])
    triplets.write(tmp_path / "a.jsonl", made)
    assert triplets.read(tmp_path / "a.jsonl") == made
    with pytest.raises(ValueError, match="triplet 0: the reference and the target"):
        triplets.write(tmp_path / "a.jsonl", triplets.Triplets(["a"], ["is b"], ["a"]))
    assert triplets.read(tmp_path / "a.jsonl") == made  # what was there is still whole


def test_split_shares_no_caption():
    names = [f"caption {i}" for i in range(30)]
    rng = np.random.default_rng(0)
    pairs = [rng.choice(30, 2, replace=False) for _ in range(60)]
    made = triplets.Triplets([names[a] for a, _ in pairs], ["is x"] * 60, [names[b] for _, b in pairs])
    train, val = triplets.split(made, 3, seed=1)
    assert len(val) == 3 and len(train) > 0
    texts = lambda part: {*part.references, *part.targets}
    assert not texts(train) & texts(val)
    again = triplets.split(made, 3, seed=1)
    assert again == (train, val) and triplets.split(made, 3, seed=2)[1] != val
    with pytest.raises(ValueError, match="cannot be held back"):
        triplets.split(made, 60, seed=0)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "one dog\n\n  two   dogs \none dog\n"),
        ("a.jsonl", '{"caption": "one dog"}\n{"caption": ["two dogs", "one dog"]}\n'),
        ("a.csv", 'caption,x\none dog,1\n"two dogs",2\n'),
        ("a.tsv", "x\tcaption\n1\tone dog\n2\ttwo dogs\n"),
        ("a.json", json.dumps({"annotations": [{"caption": "one dog"}, {"caption": "two dogs"}]})),
        ("b.json", json.dumps(["one dog", "two dogs"])),
    ],
)
def test_captions_of_every_kind_of_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert captions.read(tmp_path / name) == ["one dog", "two dogs"]


def test_captions_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"caption": "x"}\n{"text": "y"}\n')
    with pytest.raises(ValueError, match="line 2: no 'caption' among 'text'"):
        captions.read(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match="line 1, column 1: invalid JSON"):
        captions.read(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="contains no caption"):
        captions.read(tmp_path / "c.txt")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    for name, content in (("a.jsonl", json.dumps(GOOD)), ("a.json", json.dumps([GOOD]))):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert triplets.read(tmp_path / name).references == ["a dog"]
    (tmp_path / "b.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xe9\n")
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2: byte 1 of the line, 0xe9, is not UTF-8"):
        triplets.read(tmp_path / "b.jsonl", skip_faulty=True)


def test_an_unquoted_comma_cuts_no_caption(tmp_path):
    (tmp_path / "a.csv").write_text("caption\na dog, a cat\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: 2 cells, the header has 1.*double quotes"):
        captions.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('caption\n"a dog, a cat\na bird\n')
    with pytest.raises(ValueError, match="line 2: a cell begins with a quote that is not closed"):
        captions.read(tmp_path / "b.csv")


def test_a_quote_in_tsv_is_text(tmp_path):
    (tmp_path / "a.tsv").write_text('x\tcaption\n1\t"stop" sign\n2\t"a dog\n3\ta cat\n')
    assert captions.read(tmp_path / "a.tsv") == ['"stop" sign', '"a dog', "a cat"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"caption,caption\na,b\n", "the column 'caption' twice"),
        ("a.txt", b"a dog\na\0cat\n", "line 2: byte 2 of the line is NUL"),
        ("a.txt", b"a dog\nein gro\xdfer Hund\n", "line 2: byte 8 of the line, 0xdf, is not UTF-8"),
        ("a.csv", b'caption\n"' + b"x" * 200_000, "line 2: a cell of more than"),
        ("a.jsonl", b'{"caption": "a", "caption": "b"}', "line 1: the key 'caption' occurs twice"),
        ("a.jsonl", b'{"caption": 3}', "line 1: must be a text, got 3"),
        ("a.json", b"[" * 100_000, "nested deeper"),
    ],
)
def test_caption_files_are_read_strictly(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        captions.read(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)
