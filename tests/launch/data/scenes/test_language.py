"""Scenes in words: captions say what is there, in words of the vocabulary, and modifications ask for the new values."""

import itertools

import numpy as np
import pytest

from launch.data import scenes
from launch.data.scenes import edits, language, world, zeroshot

# word -> (attribute, values it may stand for), written by hand
MEANING = {
    "circle disc": ("shape", "circle"),
    "ring hoop": ("shape", "ring"),
    "crescent moon": ("shape", "crescent"),
    "heart valentine": ("shape", "heart"),
    "oval ellipse": ("shape", "oval"),
    "flower blossom": ("shape", "flower"),
    "square box": ("shape", "square"),
    "triangle pyramid": ("shape", "triangle"),
    "star pentagram": ("shape", "star"),
    "diamond rhombus": ("shape", "diamond"),
    "cross plus": ("shape", "cross"),
    "arrow pointer": ("shape", "arrow"),
    "red crimson scarlet": ("colour", "red"),
    "green emerald": ("colour", "green"),
    "blue azure": ("colour", "blue"),
    "yellow golden": ("colour", "yellow"),
    "purple violet": ("colour", "purple"),
    "orange tangerine": ("colour", "orange"),
    "white ivory": ("colour", "white"),
    "black ebony": ("colour", "black"),
    "small little tiny": ("size", "small"),
    "medium midsize": ("size", "medium"),
    "large big huge": ("size", "large"),
    "plain solid": ("pattern", "plain"),
    "striped banded": ("pattern", "striped"),
    "dotted spotted": ("pattern", "dotted"),
    "grass lawn meadow": ("background", "grass"),
    "forest woods": ("background", "forest"),
    "sand desert": ("background", "sand"),
    "brick wall": ("background", "brick"),
    "snow snowfield": ("background", "snow"),
    "sea ocean": ("background", "sea"),
    "lake pond": ("background", "lake"),
    "river stream": ("background", "river"),
    "rain drizzle": ("background", "rain"),
    "ice glacier": ("background", "ice"),
    "curved": ("shape", "circle ring crescent heart oval flower"),
    "angular": ("shape", "square triangle star diamond cross arrow"),
    "land": ("background", "grass forest sand brick snow"),
    "water": ("background", "sea lake river rain ice"),
}
MEANING = {word: (name, set(v.split())) for words, (name, v) in MEANING.items() for word in words.split()}
SILENT = """
a an the photo picture image of this here there is that which looks and on against in front with behind it background
shape thing object figure
"""
SILENT = set(SILENT.split())


def values(row):
    return {name: world.ATTRIBUTES[name][v] for name, v in zip(world.ATTRIBUTES, row, strict=True)}


def said(text, silent=SILENT):
    """The attributes that a text names, with the values each word allows; an unknown word is an error."""
    found = [word for word in text.split() if word in MEANING]
    assert set(text.split()) - set(found) <= silent, text
    names = [MEANING[word][0] for word in found]
    assert len(names) == len(set(names)), f"named twice: {text}"
    return {MEANING[word][0]: MEANING[word][1] for word in found}


@pytest.fixture(scope="module")
def attributes():
    return world.sample(world.stream(0, "test"), 4000, held=None)


@pytest.fixture(scope="module")
def texts(attributes):
    return scenes.captions(attributes, seed=0)


def test_captions_are_true(attributes, texts):
    for row, text in zip(attributes, texts, strict=True):
        scene = values(row)
        assert said(text) and all(scene[name] in allowed for name, allowed in said(text).items())


def test_how_often_attributes_are_named(attributes, texts):
    named = [said(text) for text in texts]
    single = np.mean([len(found) == 1 for found in named])
    assert 0.11 < single < 0.15
    for name, kept in language.KEPT.items():
        index = list(world.ATTRIBUTES).index(name)
        expected = 0.88 * kept + 0.12 * language.SINGLE_WEIGHTS[index]
        assert abs(np.mean([name in found for found in named]) - expected) < 0.03
    hypernyms = np.mean([len(found["shape"]) > 1 for found in named if "shape" in found])
    grounds = np.mean([len(found["background"]) > 1 for found in named if "background" in found])
    assert 0.08 < hypernyms < 0.12 and 0.06 < grounds < 0.1
    words = {word for text in texts for word in text.split()}
    assert words == set(MEANING) | SILENT, "every word is used, and no other"
    for place in language.PLACES:
        start = place.split("{background}")[0].split("{object}")[-1]
        assert any(start in text for text in texts)


def test_full_captions_name_all_five(attributes):
    for row, text in zip(attributes, scenes.captions(attributes, seed=1, full=True), strict=True):
        assert said(text) == {name: {value} for name, value in values(row).items()}


def test_captions_name_what_they_are_told_to(attributes):
    keep = np.random.default_rng(0).random(attributes.shape) < 0.5
    keep[~keep.any(1), 0] = True
    names = np.array(list(world.ATTRIBUTES))
    for row, kept, text in zip(attributes, keep, scenes.captions(attributes, seed=1, keep=keep), strict=True):
        assert said(text) == {name: {values(row)[name]} for name in names[kept]}
    with pytest.raises(ValueError, match="leave out keep"):
        scenes.captions(attributes, seed=0, full=True, keep=keep)
    with pytest.raises(ValueError, match=r"shape of attributes, \(4000, 5\), got \(5,\)"):
        scenes.captions(attributes, seed=0, keep=keep[0])


def test_captions_are_a_function_of_seed_and_place(attributes, texts):
    assert texts == scenes.captions(attributes, seed=0)
    assert texts[:50] == scenes.captions(attributes[:50], seed=0)
    assert np.mean([a != b for a, b in zip(texts, scenes.captions(attributes, seed=1), strict=True)]) > 0.9
    changed = attributes.copy()
    changed[0] = (attributes[0] + 1) % world.COUNTS
    assert texts[1:] == scenes.captions(changed, seed=0)[1:]


def test_articles(texts):
    words = " ".join(texts).split()
    for article, word in itertools.pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")


def test_prompts():
    assert scenes.prompts("shape", "arrow") == ["a photo of an arrow", "a photo of a pointer"]
    assert scenes.prompts("colour", "red") == [f"a photo of a {word} object" for word in ("red", "crimson", "scarlet")]
    assert scenes.prompts("background", "sea") == ["a photo of the sea", "a photo of the ocean"]
    assert scenes.prompts("family", "angular") == ["a photo of an angular shape"]
    assert len(scenes.prompts("size", "large", openings=("a photo of", "this is", ""))) == 9
    assert scenes.prompts("pattern", "plain", openings=("",))[0] == "a plain object"
    for name, choices in zeroshot.VALUES.items():
        texts = {text for value in choices for text in scenes.prompts(name, value)}
        assert len(texts) == sum(len(world.SYNONYMS[value]) for value in choices)
    with pytest.raises(ValueError, match="unknown attribute 'color'; valid names: shape, colour"):
        scenes.prompts("color", "red")
    with pytest.raises(ValueError, match="unknown size 'red'; valid names: small, medium, large"):
        scenes.prompts("size", "red")


@pytest.mark.parametrize("phrasing", edits.PHRASINGS)
def test_modifications_name_the_new_values_and_no_wrong_ones(phrasing, attributes):
    target = attributes[::-1]
    differ = (attributes != target).any(1)
    before, after = attributes[differ][:2000], target[differ][:2000]
    texts = scenes.modifications(before, after, seed=0, phrasing=phrasing)
    assert texts == scenes.modifications(before, after, seed=0, phrasing=phrasing)
    for old, new, text in zip(before, after, texts, strict=True):
        old, new = values(old), values(new)
        mentioned = [MEANING[word] for word in text.split() if word in MEANING]
        changed = {name for name in old if old[name] != new[name]}
        assert {name for name, _ in mentioned} == changed, text
        for name in changed:
            words = [next(iter(value)) for n, value in mentioned if n == name]
            assert words.count(new[name]) == 1 and set(words) <= {old[name], new[name]}


def test_phrasings_are_disjoint(attributes):
    """As templates and as texts, with every value's word replaced by one and the same."""
    target = attributes.copy()
    target[:, :] = (attributes + 1) % world.COUNTS
    one = np.eye(5, dtype=bool)[np.arange(len(attributes)) % 5]
    target = np.where(one, target, attributes)
    forms = {}
    for phrasing in edits.PHRASINGS:
        texts = scenes.modifications(attributes, target, seed=0, phrasing=phrasing)
        forms[phrasing] = {
            " ".join("X" if word in MEANING else word for word in text.replace(" an ", " a ").split()) for text in texts
        }
        count = {t for name in world.ATTRIBUTES for t in edits.templates(phrasing, name)}
        assert len(forms[phrasing]) == len(count) > 8, "every template is in use"
    assert not forms["seen"] & forms["unseen"]
    known = {w for form in forms["seen"] for w in form.split()} | SILENT | {"X"}
    assert {w for form in forms["unseen"] for w in form.split()} <= known, "unseen phrasings bring no unseen word"


def test_what_modifications_refuse(attributes):
    with pytest.raises(ValueError, match="row 0: reference and target do not differ"):
        scenes.modifications(attributes, attributes, seed=0, phrasing="seen")
    with pytest.raises(ValueError, match="3 references for 2 targets"):
        scenes.modifications(attributes[:3], attributes[:2], seed=0, phrasing="seen")
    with pytest.raises(ValueError, match="unknown phrasing 'new'; valid names: seen, unseen"):
        scenes.modifications(attributes[:1], attributes[:1] * 0, seed=0, phrasing="new")
    with pytest.raises(ValueError, match="unknown attribute 'bg'; valid names: shape"):
        edits.templates("seen", "bg")


def test_vocabulary_and_lengths(attributes, texts):
    words = scenes.vocabulary()
    assert list(words) == sorted(set(words)) and 100 <= len(words) <= 120
    target = (attributes + np.array([1, 1, 1, 1, 1])) % world.COUNTS
    everything = texts + scenes.captions(attributes, seed=2, full=True)
    for phrasing in edits.PHRASINGS:
        asked = scenes.modifications(attributes, target, seed=0, phrasing=phrasing)
        everything += [f"a photo of {text}" for text in asked]
    for name, choices in zeroshot.VALUES.items():
        everything += [text for value in choices for text in scenes.prompts(name, value, openings=language.OPENINGS)]
    used = {word for text in everything for word in text.split()}
    assert used == set(words)
    assert set(MEANING) == scenes.KEYWORDS


def longest(phrases):
    """The most words that a template gives when every slot takes one word."""
    return max(len(phrase.split()) for phrase in phrases)


def test_no_text_is_longer_than_the_limit():
    """By the grammar: a caption's longest derivation, and two edits by the longest template after the query's head."""
    adjectives = 3
    thing = longest(["a curved shape"]) + adjectives + longest(language.CLAUSES) + (adjectives - 1)
    caption = longest(language.OPENINGS) + longest(language.PLACES) - 1 + thing
    query = longest(["a photo of $ that"]) + 2 * longest(edits.phrases()) + 1
    assert max(caption, query) <= scenes.MAX_WORDS == 30
    everything = world.compositions()
    assert max(len(text.split()) for text in scenes.captions(everything, seed=0)) <= caption
