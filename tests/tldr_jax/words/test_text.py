"""Templates, and words to embedding tables."""

import functools
import hashlib
import re

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import model
from launch.data import scenes
from launch.stages import File
from launch.store import Store
from tests.clip_jax import towers
from tldr_jax import words
from tldr_jax.stages.images import FrozenClip
from tldr_jax.stages.text import EmbeddedWords
from tldr_jax.words import templates, text
from tldr_jax.words.templates import Templates, fill

TOLERANCE = 2e-5
TWO = Templates(("a {}", "this is a {}"), ("the {}", "a photo of the {}"), articles=True, name="two")


@functools.cache
def clip():
    return clip_jax.load(clip_jax.embedded("scenes"))


encode = jax.jit(model.encode_text, static_argnums=0)


def one_by_one(prompts):
    """At full length, one prompt a call."""
    found = clip()
    return np.concatenate([encode(found.config, found.params, found.tokenizer.encode(p)) for p in prompts])


# -- Templates ---------------------------------------------------------------------------------


def test_the_eighty_templates_of_clip():
    assert len(templates.IMAGENET) == len(set(templates.IMAGENET)) == 80
    assert all(template.count("{}") == 1 for template in templates.IMAGENET)
    # Of the sorted list, one a line: no template changes unseen.
    digest = hashlib.sha256("\n".join(sorted(templates.IMAGENET)).encode()).hexdigest()
    assert digest == "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"


@pytest.mark.parametrize("name", templates.SETS)
def test_template_sets(name):
    found = templates.get(name)
    assert found.name == name and len(found.target) == len(found.spurious) > 0


def test_unknown_templates_list_those_there_are():
    with pytest.raises(ValueError, match="unknown templates 'clip'; valid names: 'imagenet', 'photo', 'scenes'"):
        templates.get("clip")


@pytest.mark.parametrize("wrong", ["a photo", "a {} and a {}", "a {word}", "a {0}"])
def test_a_template_has_one_place_for_the_word(wrong):
    for changes in ({"target": (wrong,)}, {"spurious": (wrong,)}, {"target_anchor": wrong}):
        with pytest.raises(ValueError, match=re.escape(f"{wrong!r} needs exactly one place")):
            Templates(**{"name": "x", "target": ("{}",), "spurious": ("{}",), **changes})


def test_as_many_templates_for_either_role():
    with pytest.raises(ValueError, match="there are 2 and 1"):
        Templates(("a {}", "the {}"), ("a {}",), name="x")


def test_fill():
    assert fill("a photo of a {}.", "oval") == "a photo of a oval."  # as CLIP's notebook does
    assert fill("a photo of a {}", "oval", articles=True) == "a photo of an oval"
    assert fill("a {} on a {{x}}", "owl {}", articles=True) == "an owl {} on a {{x}}"


def test_prompts_of_scenes_are_made_of_the_words_of_its_captions():
    found, lists = templates.get("scenes"), words.load("scenes")
    prompts = {
        fill(template, word, articles=True)
        for own, anchor, group in (
            (found.target, found.target_anchor, lists.target),
            (found.spurious, found.spurious_anchor, lists.spurious),
        )
        for template in (*own, anchor)
        for each in group
        for word in (*each.words, each.anchor)
    }
    assert "this is an arrow" in prompts and "a photo of an angular shape" in prompts
    assert {word for prompt in prompts for word in prompt.split()} <= set(scenes.vocabulary())
    unknown = [t for t in templates.IMAGENET if not set(t.replace("{}", "").split()) <= set(scenes.vocabulary())]
    assert len(unknown) == 80  # with their full stops, it knows none of CLIP's


# -- Tables ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    return text.embed(clip(), words.load("scenes"), TWO, progress=False)


def test_tables(embedded):
    lists = words.load("scenes")
    target, spurious = ([word for own in lists.lists(part) for word in own.words] for part in words.PARTS)
    assert embedded.target.shape == (24, 2, 64) and embedded.spurious.shape == (21, 2, 64)
    assert embedded.target.dtype == embedded.spurious.dtype == np.float32
    prompts = [fill(t, w, articles=True) for w in target for t in TWO.target]
    np.testing.assert_allclose(embedded.target.reshape(-1, 64), one_by_one(prompts), atol=TOLERANCE)
    prompts = [fill(t, w, articles=True) for w in spurious for t in TWO.spurious]
    np.testing.assert_allclose(embedded.spurious.reshape(-1, 64), one_by_one(prompts), atol=TOLERANCE)
    assert np.ptp(np.linalg.norm(embedded.target, axis=-1)) > 0.01  # not normalised
    assert embedded.target_class.dtype == embedded.spurious_value.dtype == np.int32
    assert embedded.target_class.tolist() == [0] * 12 + [1] * 12
    assert embedded.spurious_value.tolist() == [0] * 11 + [1] * 10
    assert embedded.allowed.tolist() == [[True, True], [True, True]]


def test_a_text_set_is_a_pytree(embedded):
    @jax.jit
    def mean(tables, i, j):
        return (tables.target[i, 0] + tables.spurious[j, 1]) / 2, tables.target_class[i]

    found, label = mean(embedded, 20, 3)
    np.testing.assert_allclose(found, (embedded.target[20, 0] + embedded.spurious[3, 1]) / 2, rtol=1e-6)
    assert label == 1


def test_equal_prompts_are_embedded_once(monkeypatch):
    seen = []

    def spy(clip, prompts, **options):
        seen.append(list(prompts))
        return clip_jax.embed_texts(clip, prompts, **options)

    monkeypatch.setattr(text, "embed_texts", spy)
    prompts = ["the lake", "a ring", "the lake", "a star", "a ring"]
    found = text.embed_prompts(clip(), prompts, progress=False)
    assert seen == [["the lake", "a ring", "a star"]]
    np.testing.assert_allclose(found, one_by_one(prompts), atol=TOLERANCE)


def test_embeddings_are_kept_by_the_content_of_the_words(tmp_path, monkeypatch):
    frozen, lists = FrozenClip(File(str(clip_jax.embedded("scenes")))), words.load("scenes")
    first = Store(tmp_path).get(EmbeddedWords(frozen, lists, TWO))
    monkeypatch.setattr(clip_jax.embed, "_run", lambda *_: pytest.fail("computed again"))
    words.save(lists, tmp_path / "copy.json")
    same = EmbeddedWords(frozen, words.load(tmp_path / "copy.json"), TWO)
    again = Store(tmp_path).get(same)
    np.testing.assert_array_equal(first.texts.spurious, again.texts.spurious)
    np.testing.assert_array_equal(first.anchored.anchors["target"], again.anchored.anchors["target"])
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        fewer = lists.replaced("target", lists.listed("target") | {"curved": ("ring",)})
        Store(tmp_path).get(EmbeddedWords(frozen, fewer, TWO))


def test_a_prompt_that_would_lose_its_end():
    context = clip().tokenizer.context_length
    fits, long = " ".join(["red"] * (context - 2)), " ".join(["red"] * (context - 1))
    assert text.embed_prompts(clip(), [fits], progress=False).shape == (1, 64)
    with pytest.raises(ValueError, match=f"red red' has {context + 1} tokens, this CLIP reads {context}"):
        text.embed_prompts(clip(), ["a ring", long], progress=False)


def test_a_clip_without_tokenizer_says_so():
    bare = clip_jax.Clip(towers.TINY, towers.parameters(towers.TINY), None, clip().preprocessing)
    with pytest.raises(FileNotFoundError, match="needs a tokenizer"):
        text.embed_prompts(bare, ["a ring"], progress=False)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rows_of_the_kept_words(share):
    everything = words.with_junk(words.load("scenes"), share, seed=0)
    tables = text.embed(clip(), everything, TWO, progress=False)
    pick = lambda part: {name: np.arange(len(own)) % 3 != 1 for name, own in everything.listed(part).items()}
    kept = words.select(everything, pick("target"), pick("spurious"))
    ours, alone = text.narrow(tables, everything, kept), text.embed(clip(), kept, TWO, progress=False)
    assert len(ours.target) < len(tables.target)
    for name in ("target", "spurious"):
        np.testing.assert_allclose(getattr(ours, name), getattr(alone, name), atol=TOLERANCE)
    for name in ("target_class", "spurious_value", "allowed"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(alone, name))
    with pytest.raises(ValueError, match="'disc' of 'curved' is not among the embedded words"):
        text.narrow(ours, kept, everything)
