"""Filters of word lists: against a loop over the words, and what they say about what they drop."""

import functools
import re

import numpy as np
import pytest

import clip_jax
from tldr_jax import words
from tldr_jax.words import WordList, WordSet, filters, templates
from tldr_jax.words.filters import EmptyWordListError
from tldr_jax.words.templates import fill

TEMPLATES = templates.get("scenes")


def apply(word_set, **switches):
    return filters.apply(word_set, filters.embed(clip(), word_set, TEMPLATES, progress=False), **switches)


@functools.cache
def clip():
    return clip_jax.load(clip_jax.embedded("scenes"))


@functools.cache
def embed_one(text):
    return np.asarray(clip_jax.embed_texts(clip(), [text], progress=False)[0], np.float64)


def cosine(a, b):
    return a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)


HEAD = np.random.default_rng(0).normal(size=(64, 2))


def head(embeddings):
    """A classifier with random weights: it drops about half of the words."""
    return np.maximum(embeddings, 0) @ HEAD


def loop(word_set, *, clip_target, clip_spurious, classifier):
    """One word at a time: the words that stay, in order, and (filter, word, taken for) of the others."""
    kept, dropped = {}, set()
    for lists, template, by_clip in (
        (word_set.target, TEMPLATES.target_anchor, clip_target),
        (word_set.spurious, TEMPLATES.spurious_anchor, clip_spurious),
    ):
        marks = {own.name: embed_one(fill(template, own.anchor, articles=True)) for own in lists}
        for i, (name, own) in enumerate((own.name, own) for own in lists):
            kept[name] = []
            for word in own.words:
                embedding, reasons = embed_one(fill(template, word, articles=True)), set()
                if by_clip:
                    nearest = max(marks, key=lambda other: cosine(embedding, marks[other]))
                    if nearest != name:
                        reasons.add(("clip", word, nearest))
                if classifier and lists is word_set.target:
                    logits = head(embedding)
                    if logits.argmax() != i:
                        reasons.add(("classifier", word, word_set.classes[logits.argmax()]))
                dropped |= reasons
                if not reasons:
                    kept[name].append(word)
    return {name: tuple(listed) for name, listed in kept.items()}, dropped


@pytest.fixture(scope="module")
def spoilt():
    return words.with_junk(words.load("scenes"), 0.4, seed=0)


@pytest.mark.parametrize("off", [None, "clip_target", "clip_spurious", "classifier"])
def test_against_a_loop_over_words(spoilt, off):
    switches = {name: name != off for name in ("clip_target", "clip_spurious", "classifier")}
    expected, dropped = loop(spoilt, **switches)
    kept, report = apply(spoilt, logits=head if switches.pop("classifier") else None, **switches)
    assert kept.listed("target") | kept.listed("spurious") == expected
    assert {(entry.filter, entry.word, entry.taken_for) for entry in report.dropped} == dropped
    assert 10 < len(dropped) < 60  # otherwise there is nothing to compare
    np.testing.assert_array_equal(kept.allowed, spoilt.allowed)


def test_no_filter_keeps_everything(spoilt):
    kept, report = apply(spoilt, clip_target=False, clip_spurious=False)
    assert kept.target == spoilt.target and kept.spurious == spoilt.spurious
    assert not report.dropped and report.before == report.after


def test_the_clip_of_scenes_tells_its_words_apart():
    """Nothing right is dropped, and no word of the other list stays."""
    right = words.load("scenes")
    for share in (0.0, 0.4):
        spoilt = words.with_junk(right, share, seed=1)
        kept, _ = apply(spoilt)
        for part in words.PARTS:
            for name, listed in right.listed(part).items():
                assert set(listed) <= set(kept.listed(part)[name]) <= set(listed) | set(right.unrelated)


def test_values_of_different_pairs_do_not_compete():
    """A lake is nearer to water than to the lawns of dogs, whatever the anchors of the dogs' places are."""
    lists = words.load("scenes")
    places = (
        WordList("land", ("grass", "sand")),
        WordList("water", ("lake", "sea")),
        WordList("wet", ("river", "rain"), anchor="water"),
        WordList("dry", ("brick", "snow"), anchor="land"),
    )
    pairs = (("curved", "land"), ("curved", "water"), ("angular", "wet"), ("angular", "dry"))
    word_set = WordSet(lists.target, places, pairs)
    assert word_set.allowed.tolist() == [[True, True, False, False], [False, False, True, True]]
    kept, report = apply(word_set, clip_target=False)
    assert kept.spurious == places and not report.dropped
    # Were they all to compete, the values with equal anchors could not be told apart.
    with pytest.raises(EmptyWordListError, match="spurious 'wet'"):
        apply(WordSet(lists.target, places), clip_target=False)


def test_classes_of_different_pairs_do_not_compete():
    """By their anchors alone: a bird's words against birds, a dog's against dogs, as the published filter has it."""
    at = lambda *angles: np.stack([[np.cos(a), np.sin(a)] for a in np.radians(angles)])
    lists = tuple(WordList(name, (f"{name} word",)) for name in ("landbird", "waterbird", "small dog", "big dog"))
    places = tuple(WordList(name, (f"{name} word",)) for name in ("land", "water", "indoor", "outdoor"))
    pairs = [(c, v) for c, v in np.ndindex(4, 4) if c // 2 == v // 2]
    word_set = WordSet(lists, places, tuple((lists[c].name, places[v].name) for c, v in pairs))
    # the landbird's word is nearest to the small dog's anchor, the small dog's to the waterbird's
    embedded = filters.AnchoredWords(
        {"target": at(22, 62, 45, 88), "spurious": at(0, 30, 60, 90)},
        {"target": at(0, 60, 25, 90), "spurious": at(0, 30, 60, 90)},
    )
    anchors, judged = embedded.anchors["target"], embedded.words["target"]
    expected = []
    for i, word in enumerate(judged):
        own_pair = [i // 2 * 2, i // 2 * 2 + 1]
        expected.append(i == own_pair[int(np.argmax([word @ anchors[j] for j in own_pair]))])
    assert all(expected) and (judged @ anchors.T).argmax(1).tolist() == [2, 1, 1, 3]
    kept, report = filters.apply(word_set, embedded)
    assert kept.target == lists and not report.dropped


def test_a_word_of_two_lists_stays_where_clip_puts_it():
    word_set = words.load("scenes")
    shared = word_set.replaced("target", {"curved": ("ring", "square"), "angular": ("square", "ring", "triangle")})
    kept, _ = apply(shared)
    assert kept.listed("target") == {"curved": ("ring",), "angular": ("square", "triangle")}
    both, _ = apply(shared, clip_target=False)
    assert both.target == shared.target  # without the filter it stands for both, as published


def test_report(spoilt):
    kept, report = apply(spoilt, logits=head)
    for part in words.PARTS:
        for name, listed in spoilt.listed(part).items():
            gone = {entry.word for entry in report.dropped if entry.name == name}
            assert report.before[part][name] == len(listed)
            assert report.after[part][name] == len(kept.listed(part)[name]) == len(set(listed) - gone)
    assert all(entry.margin > 0 and entry.taken_for != entry.name for entry in report.dropped)
    first = next(entry for entry in report.dropped if entry.filter == "clip" and entry.part == "target")
    own, other = (embed_one(fill("a photo of a {}", f"{name} shape", articles=True)) for name in ("curved", "angular"))
    embedding = embed_one(fill("a photo of a {}", first.word, articles=True))
    difference = cosine(embedding, other) - cosine(embedding, own)
    assert first.name == "curved" and first.margin == pytest.approx(difference, abs=1e-5)
    text = str(report)
    assert f"target curved: {report.after['target']['curved']} of 20 words kept; clip filter dropped" in text
    assert re.search(rf"{first.word} \(angular\)", text) and "classifier filter dropped" in text
    assert report.to_json()["dropped"][0]["word"] == report.dropped[0].word


def test_an_empty_list_names_the_filter_that_emptied_it():
    lists = words.load("scenes")
    only_curved = lambda embeddings: np.tile([1.0, 0.0], (len(embeddings), 1))
    with pytest.raises(EmptyWordListError, match="target 'angular': of 12, the classifier filter 12 dropped") as error:
        apply(lists, logits=only_curved)
    assert "switch a filter off (words.classifier_filter=False)" in str(error.value)
    assert error.value.report.after["target"] == {"curved": 12, "angular": 0}
    swapped = lists.replaced("spurious", {"land": ("lake", "sea"), "water": ("lawn",)})
    match = r"spurious 'land': of 2, the clip filter 2 .*\(words.clip_filter=False\)"
    with pytest.raises(EmptyWordListError, match=match):
        apply(swapped)


def test_scores_that_cannot_be_used():
    lists = words.load("scenes")
    with pytest.raises(ValueError, match=r"24 words in 2 classes have the shape \(24, 3\)"):
        apply(lists, logits=lambda x: np.zeros((len(x), 3)))

    def broken(embeddings):
        scores = np.zeros((len(embeddings), 2))
        scores[2, 1] = np.nan
        return scores

    with pytest.raises(ValueError, match="the word 'ring' are not finite"):
        apply(lists, logits=broken)


def test_judge_among_rivals():
    scores = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.3, 0.9, 0.2], [0.4, 0.4, 0.4]])
    own = np.array([0, 1, 2, 1])
    rivals = np.array([[True, False, True], [False, True, False], [True, False, True]])
    assert filters.judge(scores, own, rivals).tolist() == [2, 1, 0, 1]
    assert filters.judge(scores, own, np.ones((3, 3), bool)).tolist() == [1, 1, 1, 0]
