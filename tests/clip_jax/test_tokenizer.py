import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers.models import BPE

from clip_jax import tokenizer

WORDS = ["a", "red", "circle", "crescent", "circles", "on", "grass", "that", "is", "striped", "größer", "日本", "$"]
LENGTH = 12


@pytest.fixture(scope="module")
def built():
    return tokenizer.build([*WORDS, "It's a T-shirt, no. 12"], context_length=LENGTH)


@pytest.fixture
def folder(built, tmp_path):
    built.save(tmp_path)
    return tmp_path


def config(tok, **text):
    fields = {"context_length": LENGTH, "vocab_size": tok.vocab_size, "end_rule": "largest_id", "eos_token_id": None}
    return SimpleNamespace(text=SimpleNamespace(**fields | text))


def tokens(tok, text):
    """Between start and end, without padding; assumes that padding is the end token again."""
    (ids,) = tok.encode([text])
    return ids[1 : list(ids).index(tok.end_id)].tolist()


def words(tok, text):
    return [tok.backend.id_to_token(i) for i in tokens(tok, text)]


def test_every_word_is_one_token_and_the_order_is_clips(built):
    vocab = built.backend.get_vocab()
    for word in [*WORDS, "it", "'s", "t", "-", "shirt", ",", "no", ".", "1", "2"]:
        assert len(tokens(built, word)) == 1, word
    placed = {0: "!", 3: "$", 255: "Ń", 256: "!</w>", 259: "$</w>", 511: "Ń</w>"}
    assert {i: built.backend.id_to_token(i) for i in placed} == placed
    assert (built.start_id, built.end_id, built.pad_id) == (len(vocab) - 2, len(vocab) - 1, len(vocab) - 1)
    assert built.marker_id == 259 == tokens(built, "a $ circle")[1]
    assert sorted(vocab.values()) == list(range(built.vocab_size))


def test_the_byte_symbols_are_those_of_the_library(built):
    from tokenizers.pre_tokenizers import ByteLevel

    first = [built.backend.id_to_token(i) for i in range(256)]
    assert set(first) == set(ByteLevel.alphabet())
    assert first[:94] == [chr(i) for i in range(33, 127)]  # the printable come first, each for itself


def test_building_does_not_depend_on_order_or_repetition(built):
    again = tokenizer.build(["no. 12, it's a t-shirt", *reversed(WORDS), *WORDS], context_length=LENGTH)
    assert again.backend.get_vocab() == built.backend.get_vocab()
    assert again.backend.to_str() == built.backend.to_str()
    one = tokenizer.build("it's a t-shirt, no. 12 " + " ".join(WORDS), context_length=LENGTH)
    assert one.backend.to_str() == built.backend.to_str()


def test_words_that_build_on_each_other_stay_single_tokens():
    """Merges learned for one word take part in others; every order of ranks has to end in one token all the same."""
    rng = np.random.default_rng(0)
    some = ["".join(rng.choice(list("ab"), rng.integers(1, 9))) for _ in range(150)]
    tok = tokenizer.build(some, context_length=4)
    assert {len(tokens(tok, word)) for word in some} == {1}


def test_padding_and_truncation_keep_the_end(built):
    ids = built.encode(["", "red", "red " * 50])
    assert ids.shape == (3, LENGTH) and ids.dtype == np.int32
    red = tokens(built, "red")[0]
    start, end = built.start_id, built.end_id
    assert ids[0].tolist() == [start] + [end] * (LENGTH - 1)
    assert ids[1].tolist() == [start, red] + [end] * (LENGTH - 2)
    assert ids[2].tolist() == [start] + [red] * (LENGTH - 2) + [end]
    np.testing.assert_array_equal(built.encode("red " * 50, length=5), [[start, red, red, red, end]])
    assert built.encode([]).shape == (0, LENGTH)


def test_texts_are_cleaned_before_they_are_split(built):
    assert words(built, "  A\t RED\n\n circle ") == ["a</w>", "red</w>", "circle</w>"]
    np.testing.assert_array_equal(built.encode("GRÖSSER gro\u0308ßer"), built.encode("grösser größer"))


@pytest.mark.parametrize("length", [1, 0, LENGTH + 1])
def test_lengths_out_of_bounds(built, length):
    with pytest.raises(ValueError, match=f"length={length} must lie between 2 and .* {LENGTH}"):
        built.encode(["red"], length=length)


def test_what_is_not_a_text_is_named(built):
    with pytest.raises(TypeError, match="text 1 is a NoneType, not a str"):
        built.encode(["red", None])
    with pytest.raises(ValueError, match="text 1 is not valid Unicode"):
        built.encode(["red", "\ud800"])
    with pytest.raises(ValueError, match="context_length=1"):
        tokenizer.build(WORDS, context_length=1)


@pytest.mark.parametrize(
    "without",
    [[], ["tokenizer.json"], ["vocab.json", "merges.txt"], ["tokenizer_config.json", "special_tokens_map.json"]],
)
def test_saved_and_loaded_from_any_of_the_layouts(built, folder, without, tmp_path_factory):
    for name in without:
        (folder / name).unlink()
    texts = ["a red $ circle", "größer 日本 😀", "unknown words, 3.14", ""]
    loaded = tokenizer.load(folder, config(built))
    np.testing.assert_array_equal(loaded.encode(texts), built.encode(texts))
    assert (loaded.vocab_size, loaded.marker_id, loaded.pad_id) == (built.vocab_size, 259, built.pad_id)
    again = tmp_path_factory.mktemp("again")
    loaded.save(again)
    for name in {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"} - set(without):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    for name in without:  # what was not there is made
        assert (again / name).is_file()
    np.testing.assert_array_equal(tokenizer.load(again, config(built)).encode(texts), built.encode(texts))


def test_merges_in_the_saved_file_are_in_the_order_of_their_ids(built, folder):
    vocab, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ids = [vocab[a + b] for a, b in merges]
    assert len(ids) > 20 and ids == sorted(ids)


def test_without_files_there_is_no_tokenizer(built, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer.load(tmp_path, config(built)) is None


@pytest.mark.parametrize("missing, there", [("merges.txt", "vocab.json"), ("vocab.json", "merges.txt")])
def test_half_a_pair(built, folder, missing, there):
    (folder / "tokenizer.json").unlink()
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {missing}"):
        tokenizer.load(folder, config(built))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_broken_files_are_named(built, folder, name):
    if name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer.json").unlink()
    broken = {"merges.txt": "#version: 0.2\nx yz\n"}.get(name, "{")
    for content in (broken, "[]"):
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            tokenizer.load(folder, config(built))


def cut(path, lines):
    content = path.read_text().splitlines()
    path.write_text("\n".join(content[:lines]) + "\n")


def reindexed(path, change):
    """vocab.json with another id for the token 300; "add" puts a token into a place after a hole."""
    vocab = json.loads(path.read_text())
    token = next(token for token, i in vocab.items() if i == 300)
    path.write_text(json.dumps(vocab | ({token: change} if isinstance(change, int | float) else change)))


@pytest.mark.parametrize(
    "name, damage, message",
    [
        (
            "merges.txt",
            lambda path: cut(path, 5),
            r"txt: \d+ tokens of the vocabulary are made by none of its 4",
        ),
        ("merges.txt", lambda path: path.write_text(""), r"made by none of its 0 merges, .*the file is cut"),
        (
            "merges.txt",
            lambda path: path.write_text(path.read_text() + "re dx</w>\n"),
            r"merges\.txt: merge \d+, 're' and 'dx</w>': the vocabulary has no token 're'",
        ),
        ("merges.txt", lambda path: path.write_text(path.read_text() * 2), r"the merge occurs twice, got '"),
        ("merges.txt", lambda path: path.write_text(path.read_text() + "re\n"), r"line \d+: must be two symbols"),
        ("merges.txt", lambda path: path.write_bytes(path.read_bytes() + b"\xe9 e\n"), r"0xe9, is not UTF-8"),
        ("vocab.json", lambda path: reindexed(path, 301), r"have the same id, got 301"),
        ("vocab.json", lambda path: reindexed(path, 1.7), r"must be an id, an integer of at least 0, got 1\.7"),
        ("vocab.json", lambda path: reindexed(path, -1), r"got -1"),
        ("vocab.json", lambda path: path.write_text('{"a": 0, "a": 1}'), r"the key 'a' occurs twice"),
        (
            "tokenizer_config.json",
            lambda path: path.write_text('{"pad_token": 3}'),
            r"'pad_token': must be a token, got",
        ),
        (
            "tokenizer_config.json",
            lambda path: path.write_text('{"added_tokens_decoder": {"x": {"content": "<cat>"}}}'),
            r"must map ids to tokens, got 'x'",
        ),
        (
            "tokenizer_config.json",
            lambda path: path.write_text('{"added_tokens_decoder": {"9": {"content": "<cat>", "lstrip": "no"}}}'),
            r"true or false for its flags",
        ),
        ("added_tokens.json", lambda path: path.write_text('{"<cat>": "9"}'), r"'<cat>': must be an id"),
    ],
)
def test_files_that_do_not_belong_together(built, folder, name, damage, message):
    """Each of them gave other ids than the checkpoint's without a word, or an error without a file."""
    (folder / "tokenizer.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    damage(folder / name)
    with pytest.raises(ValueError, match=message) as error:
        tokenizer.load(folder, config(built))
    assert str(folder / name) in str(error.value)


def test_a_hole_in_the_vocabulary(built, folder):
    (folder / "tokenizer.json").unlink()
    reindexed(folder / "vocab.json", built.vocab_size)
    fields = {"vocab_size": built.vocab_size + 1, "end_rule": "eos_token_id", "eos_token_id": built.end_id}
    with pytest.raises(
        ValueError, match=f"no token has the id 300; ids must be 0 to {built.vocab_size - 1}, each once"
    ):
        tokenizer.load(folder, config(built, **fields))


def test_merges_that_are_left_out_at_random(built, folder):
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"tokenizer\.json, 'model\.dropout': leaves out merges at random.* got 0\.5"):
        tokenizer.load(folder, config(built))


def test_merges_of_a_whole_file_that_were_cut(built, folder):
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = whole["model"]["merges"][:7]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"tokenizer\.json: \d+ tokens of the vocabulary are made by none of its 7"):
        tokenizer.load(folder, config(built))


@pytest.mark.parametrize("without", [[], ["tokenizer.json"]])
def test_a_byte_order_mark_is_no_part_of_the_files(built, folder, without):
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for name in without:
        (folder / name).unlink()
    texts = ["a red $ circle", "größer 日本 😀"]
    np.testing.assert_array_equal(tokenizer.load(folder, config(built)).encode(texts), built.encode(texts))


def test_truncation_and_padding_in_the_file_do_not_count(built, folder):
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    whole["padding"] = {
        "strategy": {"Fixed": 7}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 5, "pad_type_id": 0,
        "pad_token": "&",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    texts = ["a red circle on grass", "red"]
    np.testing.assert_array_equal(tokenizer.load(folder, config(built)).encode(texts), built.encode(texts))


def test_the_tokenizer_has_to_fit_the_text_tower(built, folder):
    last = built.end_id
    tokenizer.load(folder, config(built, end_rule="eos_token_id", eos_token_id=last))
    for size in (built.vocab_size - 1, built.vocab_size + 1):
        with pytest.raises(ValueError, match=f"has {built.vocab_size} tokens, the text tower's vocabulary {size}"):
            tokenizer.load(folder, config(built, vocab_size=size))
    with pytest.raises(ValueError, match=rf"ends texts with id {last}, the text tower pools at id 7 .*set text_config"):
        tokenizer.load(folder, config(built, end_rule="eos_token_id", eos_token_id=7))


def added_token(built, folder, where):
    """A token beyond the vocabulary, stated in one of the files that may do so."""
    (folder / "tokenizer.json").unlink()
    if where == "added_tokens.json":
        (folder / where).write_text(json.dumps({"<cat>": built.vocab_size}))
    else:
        values = json.loads((folder / where).read_text())
        token = {"content": "<cat>", "special": False, "lstrip": False, "rstrip": False, "normalized": False}
        values["added_tokens_decoder"] = {str(built.vocab_size): token}
        (folder / where).write_text(json.dumps(values))


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens(built, folder, where):
    added_token(built, folder, where)
    fields = {"vocab_size": built.vocab_size + 1, "end_rule": "eos_token_id", "eos_token_id": built.end_id}
    loaded = tokenizer.load(folder, config(built, **fields))
    assert tokens(loaded, "a <cat> on grass")[1] == built.vocab_size
    # Under OpenAI's rule the tower would pool at the added token.
    with pytest.raises(ValueError, match=f"pools at id {built.vocab_size}"):
        tokenizer.load(folder, config(built, vocab_size=built.vocab_size + 1))


def test_an_added_token_out_of_its_place(built, folder):
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"<cat>": 5}))
    with pytest.raises(ValueError, match="'<cat>' has id 5 in its file"):
        tokenizer.load(folder, config(built))


def test_a_pad_token_of_its_own(built, folder):
    settings = json.loads((folder / "special_tokens_map.json").read_text()) | {"pad_token": {"content": "!"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(settings))
    loaded = tokenizer.load(folder, config(built))
    assert loaded.pad_id == 0
    assert loaded.encode(["red"])[0].tolist()[2:] == [built.end_id] + [0] * (LENGTH - 3)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(settings | {"pad_token": "<|no such|>"}))
    with pytest.raises(ValueError, match=r"special token '<\|no such\|>' is not in the vocabulary"):
        tokenizer.load(folder, config(built))


def test_a_tokenizer_that_does_not_frame_texts_is_refused(built, folder):
    whole = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="this tokenizer adds 0 tokens"):
        tokenizer.load(folder, config(built))


def test_a_vocabulary_without_the_marker(built, folder):
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"] = {("€</w>" if t == "$</w>" else t): i for t, i in whole["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    loaded = tokenizer.load(folder, config(built))
    assert loaded.marker_id is None
    assert tokens(loaded, "a red circle") == tokens(built, "a red circle")
