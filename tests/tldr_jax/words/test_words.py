"""Word lists: those of the package, how they are read, and what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest

from launch.data.scenes import vocabulary, world
from launch.reading import InputError
from tldr_jax import words
from tldr_jax.words import WordList

SMALL = {
    "note": "by hand",
    "target": {"cat": {"words": ["tabby", "Persian"]}, "dog": {"anchor": "hound", "words": ["pug"]}},
    "spurious": {
        "in": {"words": ["kitchen", "sofa"]},
        "out": {"words": ["lawn", "street"], "description": "places outdoors"},
        "sea": {"words": ["lawn"]},
    },
    "pairs": [["cat", "in"], ["cat", "out"], ["dog", "sea"]],
    "unrelated": ["violin"],
}


def small(**changes):
    return {**json.loads(json.dumps(SMALL)), **changes}


def write(tmp_path, values):
    path = tmp_path / "pets.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_a_file_of_ones_own(tmp_path):
    found = words.load(write(tmp_path, SMALL))
    assert found.name == "pets" and found.note == "by hand" and found.unrelated == ("violin",)
    assert found.classes == ("cat", "dog") and found.values == ("in", "out", "sea")
    assert found.target == (WordList("cat", ("tabby", "Persian"), "cat", ""), WordList("dog", ("pug",), "hound", ""))
    assert found.listed("target") == {"cat": ("tabby", "Persian"), "dog": ("pug",)}
    assert found.listed("spurious") == {"in": ("kitchen", "sofa"), "out": ("lawn", "street"), "sea": ("lawn",)}
    assert {own.name: own.anchor for own in found.target} == {"cat": "cat", "dog": "hound"}
    assert {own.name: own.description for own in found.spurious} == {"in": "", "out": "places outdoors", "sea": ""}
    assert found.allowed.tolist() == [[True, True, False], [False, False, True]]
    assert words.rival_values(found).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_without_pairs_everything_is_combined(tmp_path):
    values = small(spurious={"in": {"words": ["kitchen"]}, "out": {"words": ["lawn"]}})
    del values["pairs"]
    assert words.load(write(tmp_path, values)).allowed.tolist() == [[True, True], [True, True]]


def test_what_is_saved_is_what_was_loaded(tmp_path):
    for name in ("spuco_animals", write(tmp_path, SMALL)):
        before = words.load(name)
        words.save(before, tmp_path / "copy.json")
        after = words.load(tmp_path / "copy.json")
        assert words.to_json(after) == words.to_json(before)
        assert (after.target, after.spurious) == (before.target, before.spurious)
        np.testing.assert_array_equal(after.allowed, before.allowed)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"extra": 1}, "unknown field 'extra'; valid fields: .*pairs"),
        ({"target": {"cat": {"words": ["tabby"]}}}, "'target': must be an object of at least 2"),
        ({"spurious": {}}, "'spurious': must be an object of at least 1"),
        (
            {"target": {"cat": ["tabby"], "dog": {"words": ["pug"]}}},
            r"'target', 'cat': must be an object, got \['tabby'\]",
        ),
        ({"target": {"cat": {"word": []}, "dog": {"words": ["pug"]}}}, "'target', 'cat': unknown field 'word'"),
        ({"target": {"cat": {"words": []}, "dog": {"words": ["pug"]}}}, "target 'cat' has no words"),
        ({"target": {"cat": {}, "dog": {"words": ["pug"]}}}, "target 'cat' has no words"),
        (
            {"target": {"cat": {"words": "tabby"}, "dog": {"words": ["pug"]}}},
            "'cat', 'words': must be a list, got 'tabby'",
        ),
        ({"target": {"cat": {"words": ["a", " "]}, "dog": {"words": ["pug"]}}}, "'cat', 'words': word 1 is blank"),
        (
            {"target": {"cat": {"words": [3]}, "dog": {"words": ["pug"]}}},
            "'cat', 'words': item 0 must be a text, got 3",
        ),
        (
            {"target": {"cat": {"words": ["Great Dane", "great-dane"]}, "dog": {"words": ["pug"]}}},
            "target 'cat' has 'great-dane' twice .the other is 'Great Dane'",
        ),
        (
            {"spurious": {"in": {"words": ["sofa"]}, "out": {"words": ["pug"]}, "sea": {"words": ["sea"]}}},
            "'pug' is a word of target 'dog' and of spurious 'out'",
        ),
        ({"unrelated": ["teapot", "The Pug"]}, "'pug' is a word of target 'dog' and unrelated"),
        ({"unrelated": ["teapot", "tea-pot", "Teapot"]}, "unrelated has 'Teapot' twice .the other is 'teapot'"),
        ({"target": {"cat": {"anchor": " ", "words": ["a"]}, "dog": {"words": ["b"]}}}, "'cat', 'anchor': .*not blank"),
        (
            {"pairs": [["cat", "moon"]]},
            "entry 0 of 'pairs': .* classes are cat, dog; values in, out, sea, got .*'moon'",
        ),
        ({"pairs": "all"}, "'pairs': must be a list"),
        ({"pairs": [["cat", "in"], ["cat", "out"], ["cat", "sea"]]}, "'dog' is in none of the pairs"),
        ({"pairs": [["cat", "in"], ["dog", "in"], ["dog", "out"]]}, "'sea' is in none of the pairs"),
        (
            {"target": {"cat": {"words": ["a"], "words_of": "waterbirds/land"}, "dog": {"words": ["b"]}}},
            "'target', 'cat': has both",
        ),
        (
            {"target": {"cat": {"words_of": "moonbirds/land"}, "dog": {"words": ["b"]}}},
            "'words_of': .*sets are: .*waterbirds, got 'moonbirds/land'",
        ),
        (
            {"target": {"cat": {"words_of": "waterbirds/moon"}, "dog": {"words": ["b"]}}},
            "lists of waterbirds are: landbird, waterbird, land, water",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, says):
    path = write(tmp_path, small(**changes))
    with pytest.raises(ValueError, match=says) as error:
        words.load(path)
    assert str(path) in str(error.value)


def test_lists_of_one_part_may_share_words_as_the_published_ones_do(tmp_path):
    """Each list keeps its own spelling; junk never repeats a word that a list has."""
    target = {"cat": {"words": ["tabby", "pug"]}, "dog": {"words": ["the Pug", "husky", "beagle"]}}
    spurious = {"in": {"words": ["porch", "sofa"]}, "out": {"words": ["porch", "lawn"]}, "sea": {"words": ["sea"]}}
    found = words.load(write(tmp_path, small(target=target, spurious=spurious)))
    assert found.listed("target") == {"cat": ("tabby", "pug"), "dog": ("the Pug", "husky", "beagle")}
    assert found.listed("spurious")["in"] == ("porch", "sofa") and found.listed("spurious")["out"] == ("porch", "lawn")
    words.save(found, tmp_path / "copy.json")
    assert words.load(tmp_path / "copy.json").target == found.target
    for seed in range(8):
        spoilt = words.with_junk(dataclasses.replace(found, unrelated=()), 0.25, seed=seed)
        for part in words.PARTS:
            for listed in spoilt.listed(part).values():
                assert len({words.key(word) for word in listed}) == len(listed)


def test_a_file_that_is_no_json_object(tmp_path):
    with pytest.raises(ValueError, match=r"pets\.json, line 1, column 2: invalid JSON: Expecting"):
        words.load(write(tmp_path, "{"))
    with pytest.raises(ValueError, match=r"pets\.json: an object is needed, got \[\]"):
        words.load(write(tmp_path, []))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = write(tmp_path, small())
    plain = words.load(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert words.load(path) == plain


@pytest.mark.parametrize(
    "content, says",
    [
        (b'{"target": {}, "target": {}}', "the key 'target' occurs twice"),
        (b'{"note": "caf\xe9"}', "line 1: .*0xe9, is not UTF-8"),
        (b'{"note": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"note": "\\u0000"}', "NUL"),
        (b'{"note": ' + b"[" * 100_000, "nested deeper"),
        (b"", "is empty; JSON is needed"),
    ],
)
def test_text_that_json_allows_and_a_word_file_must_not_have(tmp_path, content, says):
    path = tmp_path / "pets.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        words.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"note": 3}, "'note': must be a text, got 3"),
        ({"unrelated": "teapot"}, "'unrelated': must be a list"),
        ({"pairs": [["cat", ["in"]]]}, "entry 0 of 'pairs': must be"),
        ({"pairs": None}, "'pairs': must be a list, got None"),
        ({"target": {"cat": {"words": ["a"], "description": 3}, "dog": {"words": ["b"]}}}, "'description': must be a"),
        ({"target": {"cat": {"words_of": 3}, "dog": {"words": ["b"]}}}, "'words_of': must be a text, got 3"),
    ],
)
def test_types_are_checked(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        words.load(write(tmp_path, small(**changes)))


def test_an_outline_may_lack_words(tmp_path):
    path = write(tmp_path, small(target={"cat": {"description": "breeds of cats"}, "dog": {}}))
    assert words.load(path, outline=True).listed("target") == {"cat": (), "dog": ()}


def test_unknown_names_list_the_sets(tmp_path):
    with pytest.raises(ValueError, match="'waterbird'; valid: celeba, scenes, spuco_animals, waterbirds, or"):
        words.load("waterbird")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        words.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "word, key",
    [
        ("The Great-horned  Owl", "great horned owl"),
        ("great_horned owl.", "great horned owl"),
        ("an ﬁsh pond", "fish pond"),
        ("chuck-will’s-widow", "chuck will's widow"),
        ("Andalusia", "andalusia"),
        ("the", "the"),
    ],
)
def test_key(word, key):
    assert words.key(word) == key


# -- The package's own sets --------------------------------------------------------------------

SETS = {
    "waterbirds": (("landbird", "waterbird"), ("land", "water")),
    "celeba": (("not blond", "blond"), ("female", "male")),
    "spuco_animals": (("landbird", "waterbird", "small dog", "big dog"), ("land", "water", "indoor", "outdoor")),
    "scenes": (("curved", "angular"), ("land", "water")),
}


def test_every_set_of_the_package_is_tested():
    assert set(words.available()) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_sets_of_the_package(name):
    found = words.load(name)
    assert (found.classes, found.values) == SETS[name]  # in the order of the data set's labels
    lists = [own for part in words.PARTS for own in found.lists(part)]
    assert found.note and all(own.description for own in lists)
    if name != "scenes":
        sizes = [len(own.words) for own in lists]
        assert min(sizes) >= 150 and max(sizes) <= 200
    listed = {words.key(word) for own in lists for word in own.words}
    assert not listed & {words.key(word) for word in found.unrelated}


def test_words_of_one_pair_of_spuco_animals_are_combined_inside_it():
    found = words.load("spuco_animals")
    assert found.allowed.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    birds = words.load("waterbirds")
    assert found.listed("target")["landbird"] == birds.listed("target")["landbird"]
    assert found.listed("spurious")["water"] == birds.listed("spurious")["water"]


def test_scenes_has_the_words_of_its_captions():
    found = words.load("scenes")
    values = {"curved": world.CURVED, "angular": world.ANGULAR, "land": world.LAND, "water": world.WATER}
    lists = {**found.listed("target"), **found.listed("spurious")}
    assert lists == {name: tuple(w for v in own for w in world.SYNONYMS[v]) for name, own in values.items()}
    assert set(found.unrelated) < set(vocabulary())


def test_celeba_keeps_hair_and_gender_apart():
    found = words.load("celeba")
    says_gender = {"woman", "man", "girl", "boy", "female", "male", "lady", "gentleman", "actress", "mother", "father"}
    for listed in found.listed("target").values():
        assert not [word for word in listed if set(word.lower().split()) & says_gender]
    for listed in found.listed("spurious").values():
        assert not [word for word in listed if re.search(r"\bhair|blond|brunette|redhead", word)]
    assert not [word for word in found.listed("target")["not blond"] if "blond" in word]


# -- Selection and junk ------------------------------------------------------------------------


def test_select(tmp_path):
    found = words.load(write(tmp_path, SMALL))
    masks = {"cat": np.array([False, True]), "dog": np.array([True])}
    spurious = {"in": np.array([True, True]), "out": np.array([True, False]), "sea": np.array([False])}
    kept = words.select(found, masks, spurious)
    assert kept.listed("target") == {"cat": ("Persian",), "dog": ("pug",)}
    assert kept.listed("spurious") == {"in": ("kitchen", "sofa"), "out": ("lawn",), "sea": ()}
    assert [own.anchor for own in kept.target] == [own.anchor for own in found.target]


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_junk(share):
    found = words.load("spuco_animals")
    spoilt = words.with_junk(found, share, seed=3)
    rivals = {
        **{name: [other for other in found.classes if other != name] for name in found.classes},
        **{"land": ["water"], "water": ["land"], "indoor": ["outdoor"], "outdoor": ["indoor"]},
    }
    for part in words.PARTS:
        lists = found.listed(part)
        for name, own in lists.items():
            after = spoilt.listed(part)[name]
            junk = after[len(own) :]
            assert after[: len(own)] == own
            assert abs(len(junk) / len(after) - share) < 0.5 / len(own)
            wrong = {word for other in rivals[name] for word in lists[other]}
            counts = len([word for word in junk if word in wrong]), len([w for w in junk if w in found.unrelated])
            assert sum(counts) == len(junk) and 0 <= counts[0] - counts[1] <= 1
            assert len(set(junk)) == len(junk)


@pytest.mark.parametrize("name", ["scenes", "waterbirds"])
def test_contested_words_are_in_two_rival_lists(name):
    """A quarter of every list, counted by hand, and nothing but words of rivals, which keep them."""
    found = words.load(name)
    spoilt = words.with_contested(found, 0.25, seed=3)
    rivals = {"target": ~np.eye(len(found.target), dtype=bool), "spurious": words.rival_values(found)}
    for part in words.PARTS:
        lists = list(found.listed(part).items())
        for i, (own_name, own) in enumerate(lists):
            after = spoilt.listed(part)[own_name]
            added = after[len(own) :]
            assert after[: len(own)] == own and abs(len(added) / len(after) - 0.25) < 0.5 / len(own)
            others = {word for j, (_, other) in enumerate(lists) if rivals[part][i, j] for word in other}
            assert set(added) <= others and len(set(added)) == len(added)
    assert spoilt.unrelated == found.unrelated
    words.check(spoilt)


def test_junk_is_a_function_of_the_seed():
    found = words.load("scenes")
    draws = [words.with_junk(found, 0.3, seed=seed).listed("target")["curved"] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert words.with_junk(found, 0.0, seed=0).target == found.target


def test_junk_without_unrelated_words_comes_from_the_other_lists(tmp_path):
    values = {"target": {"a": {"words": ["x", "y"]}, "b": {"words": ["z", "w"]}}, "spurious": {"s": {"words": ["q"]}}}
    found = words.load(write(tmp_path, values))
    with pytest.raises(ValueError, match=r"50% junk in spurious 's' takes 1 other words, but there are 0"):
        words.with_junk(found, 0.5, seed=0)
    found = dataclasses.replace(found, spurious=(*found.spurious, WordList("t", ("r",))), pairs=())
    assert set(words.with_junk(found, 0.5, seed=0).listed("target")["a"]) == {"x", "y", "z", "w"}
    with pytest.raises(ValueError, match="outside"):
        words.with_junk(found, 1.0, seed=0)
