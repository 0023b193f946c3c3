"""Keywords of captions, and the rule-based triplets that are made with them."""

import importlib.util
import itertools

import numpy as np
import pytest

import clip_jax
from launch import llm
from launch.data import scenes
from rtd_jax.text import generation, masking, phrasings, triplets
from tests.commands import finish, start


@pytest.fixture(scope="module")
def clip():
    return clip_jax.load(clip_jax.embedded("scenes"))


@pytest.mark.parametrize(
    "text, masked",
    [
        ("a small red circle on the grass", "a $ on the $"),
        ("Two dogs, a cat and a BLUE car.", "Two $ , a $ and a $ ."),
        ("red", "$"),
        ("nothing here to see", None),
        ("a dog for $ 5", None),  # the marker is taken
        ("a dog-like thing", None),  # one word, and not in the list
    ],
)
def test_runs_of_keywords_become_one_marker(text, masked):
    assert masking.mask([text], masking.create("lexicon")) == [masked]


@pytest.mark.parametrize(
    "text, masked",
    [
        ("a small red circle on the grass", {"$ on $"}),
        ("two dogs, a cat and the BLUE car.", {"two $ , $ and $ ."}),
        ("the dog", {"$"}),
        ("walking slowly", {"$ slowly", "walking $"}),  # one word of the caption, whichever
        ("a dog for $ 5", {None}),
    ],
)
def test_the_published_rule_masks_determiners_and_a_random_word_where_there_is_none(text, masked):
    matcher = masking.create("lexicon", determiners=True)
    found = {masking.mask([text], matcher, seed=seed)[0] for seed in range(20)}
    assert found == masked
    assert masking.mask([text] * 8, matcher, seed=3) == masking.mask([text] * 8, matcher, seed=3)


def test_words_of_a_world_alone():
    matcher = masking.create("auto", {"circle", "red"})
    assert masking.mask(["a red circle on the grass"], matcher) == ["a $ on the grass"]
    assert "2 words" in matcher.note
    matcher = masking.create("auto", {"circle", "red"}, determiners=True)
    assert masking.mask(["a red circle on the grass"], matcher) == ["$ on $ grass"]


def test_the_lexicon_knows_scenes_and_its_kinds():
    table = masking.lexicon()
    assert scenes.KEYWORDS - table.keys() == set()
    kinds = {table[word] for word in ("red", "azure")}, {table[word] for word in ("dog", "horse")}
    assert kinds == ({"adjective.colour"}, {"noun.animal"})
    assert all(kind.split(".")[0] in ("noun", "adjective") for kind in table.values())


def test_unknown_and_missing_matchers():
    with pytest.raises(ValueError, match="valid names: 'auto', 'spacy', 'lexicon'"):
        masking.create("nltk")
    if importlib.util.find_spec("spacy") is None:
        with pytest.raises(ImportError, match=r"pip install -e '.\[spacy\]'"):
            masking.create("spacy")
        assert "built-in lexicon" in masking.create("auto").note


def test_every_phrasing_says_what_comes_in():
    every = (*phrasings.ADJECTIVES, *phrasings.NOUNS)
    assert len(set(every)) == len(every) >= 24
    for phrasing in every:
        text = phrasing.format(old="OUT", new="IN")
        assert "IN" in text and "$" not in text and "{" not in text


def test_substitutes_are_of_the_same_kind_and_near(clip):
    kinds = {word: masking.lexicon()[word] for word in ("red", "blue", "crimson", "circle", "star", "square", "sea")}
    others = generation.substitutes(clip, kinds, nearest=2, synonym=1.1)
    assert "sea" not in others  # alone of its kind
    assert all(kinds[other] == kinds[word] for word, found in others.items() for other in found)
    words = ["circle", "star", "square"]
    vectors = clip_jax.embed_texts(clip, [f"a photo of {word}" for word in words], progress=False)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearer = max(("star", "square"), key=lambda word: vectors[0] @ vectors[words.index(word)])
    assert others["circle"][0] == nearer
    assert "blue" in generation.substitutes(clip, kinds, synonym=1.1)["red"]
    none_left = generation.substitutes(clip, kinds, synonym=-1.0)
    assert none_left == {}


def test_rule_based_triplets(clip):
    texts = ["a red circle on the grass", "an orange star", "a blue heart in front of the sea", "A square", "nothing"]
    made = generation.by_rules(clip, texts, masking.create("lexicon"), seed=0, per_caption=3)
    triplets.check(made)
    assert set(made.references) <= set(texts) - {"nothing"} and len(made) > 4
    for reference, modification, target in zip(made.references, made.modifications, made.targets, strict=True):
        before, after = reference.lower().split(), target.lower().split()
        assert len(before) == len(after)
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b and {a, b} != {"a", "an"}]
        assert len(changed) == 1 and changed[0][1] in modification
        for article, word in itertools.pairwise(after):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou")
    assert made == generation.by_rules(clip, texts, masking.create("lexicon"), seed=0, per_caption=3)
    assert made != generation.by_rules(clip, texts, masking.create("lexicon"), seed=1, per_caption=3)
    with pytest.raises(ValueError, match="1 captions gave no triplet"):
        generation.by_rules(clip, ["nothing"], masking.create("lexicon"), seed=0)


class Model:
    """Stands for `launch.llm.Llm`: gives replies through the parser, as that does."""

    def __init__(self, replies):
        self.replies = replies

    def ask_all(self, questions, *, parse, workers, progress, set_aside):
        assert all(question.prompt.startswith("Caption: ") and question.system for question in questions)
        replies = [self.replies[question.prompt.removeprefix("Caption: ")] for question in questions]
        assert set_aside
        return [reply if isinstance(reply, Exception) else parse(reply) for reply in replies]


def test_captions_that_the_endpoint_refuses_are_named_at_the_end(caplog):
    replies = {"a dog": '{"modification": "is a cat", "target": "a cat"}', "a gun": llm.RefusedError("filtered")}
    made = generation.by_llm(Model(replies), ["a gun", "a dog"])
    assert made == triplets.Triplets(["a dog"], ["is a cat"], ["a cat"])
    assert "'a gun': filtered" in caplog.text and "1 of 2 captions set aside" in caplog.text


def test_triplets_of_a_language_model():
    replies = {
        "a dog": '{"modification": "has a cat instead.", "target": "a cat"}',
        "a car": '{"modification": "is the same", "target": "a car"}',
    }
    made = generation.by_llm(Model(replies), ["a dog", "costs $", "a car", "a dog"])
    assert made == triplets.Triplets(["a dog"], ["has a cat instead"], ["a cat"])
    for reply in ('{"modification": "is"}', "text", '{"modification": "has $", "target": "x"}'):
        with pytest.raises(ValueError):
            generation.by_llm(Model({"a dog": reply}), ["a dog"])


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "captions.csv").write_bytes(b"caption\ncaf\xe9\n")
    options = ("-m", "rtd_jax.text.generation", f"--captions={tmp_path / 'captions.csv'}")
    says = finish(start(*options, f"--out={tmp_path / 'out.jsonl'}"), 2)
    assert says.count("\n") == 1 and "captions.csv, line 2: byte 4 of the line, 0xe9, is not UTF-8" in says
    assert "--out has to end in .jsonl" in finish(start(*options, f"--out={tmp_path / 'out.csv'}"), 2)
    assert finish(start(*options), 2).startswith("flag --out=None: Flag --out must have a value")
