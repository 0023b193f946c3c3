"""Word lists from a language model: what is asked, what is taken, and what happens when it fails."""

import dataclasses
import json
import os
import re
import threading

import pytest
from ml_collections import FrozenConfigDict

import launch.train
from configs.tldr.words import get_config
from launch.llm import Endpoint, EndpointError, Llm, ReplyError, from_config
from tests.commands import finish, train
from tests.launch.llm.endpoint import serve
from tldr_jax import words
from tldr_jax.words import WordList, WordSet, generate
from tldr_jax.words.generate import parse_words

DESCRIPTIONS = {
    "target": {"cat": "breeds of cats", "dog": "breeds of dogs"},
    "spurious": {"in": "indoor places", "out": "outdoor places"},
}
OUTLINE = WordSet(
    tuple(WordList(name, (), name, text) for name, text in DESCRIPTIONS["target"].items()),
    tuple(WordList(name, (), f"{name}doors", text) for name, text in DESCRIPTIONS["spurious"].items()),
    name="pets",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def model(url, tmp_path, **changes):
    settings = {"model": "m", "base_url": url, "key_variable": "", "retries": 0, "timeout": 5}
    return Llm(Endpoint(**{**settings, **changes}), tmp_path / "replies.jsonl")


def asked(body):
    """(the list that is asked for, how many, what is to be left out) of a request."""
    prompt = body["messages"][1]["content"]
    number, description = re.search(r"List (\d+) different (.*)\.", prompt).groups()
    known = re.search(r"already there: (.*)\.", prompt)
    names = {text: name for part in DESCRIPTIONS.values() for name, text in part.items()}
    return names[description], int(number), known.group(1).split(", ") if known else []


def reply(listed):
    return json.dumps({"words": listed})


def obedient(body, n):
    """New words, numbered, as many as are asked for."""
    name, count, known = asked(body)
    return reply([f"{name} number {len(known) + i}" for i in range(count)])


def test_lists_are_asked_for_in_rounds(tmp_path):
    with serve(obedient) as served:
        found, report = generate.generate(model(served.url, tmp_path), OUTLINE, count=7, batch=3)
    for part in words.PARTS:
        for name in OUTLINE.listed(part):
            assert found.listed(part)[name] == tuple(f"{name} number {i}" for i in range(7))
            assert report.got[part][name] == 7 and report.rounds[part][name] == 3
    dogs = [asked(body) for body in served.requests if asked(body)[0] == "dog"]
    assert [(count, len(known)) for _, count, known in dogs] == [(3, 0), (3, 3), (1, 6)]
    assert served.requests[0]["messages"][0]["content"] == generate.SYSTEM
    assert [own.anchor for own in found.target] == [own.anchor for own in OUTLINE.target]
    assert found.note == "Written by m."
    words.save(found, tmp_path / "pets.json")
    assert words.load(tmp_path / "pets.json").spurious == found.spurious


def test_it_is_repeated_without_the_endpoint(tmp_path):
    with serve(obedient) as served:
        first, report = generate.generate(model(served.url, tmp_path), OUTLINE, count=5, batch=2)
    again, second = generate.generate(model("", tmp_path), OUTLINE, count=5, batch=2)
    assert words.to_json(again) == words.to_json(first) and second == report


def test_repeated_words_are_dropped(tmp_path):
    """The model has five words for every list, in many spellings, and gives them again and again."""

    def forgetful(body, n):
        name, _, known = asked(body)
        fresh = [f"{name} {i}" for i in range(len(known), min(len(known) + 2, 5))]
        return reply([*fresh, f"The {name.upper()}-0", f"{name}  0."])

    with serve(forgetful) as served:
        found, report = generate.generate(model(served.url, tmp_path), OUTLINE, count=20, batch=10, rounds=9)
    assert found.listed("target")["dog"] == tuple(f"dog {i}" for i in range(5))
    assert report.got["target"]["dog"] == 5
    assert report.repeated["target"]["dog"] == ["The DOG-0", "dog 0."] * 5
    assert report.rounds["target"]["dog"] == 5  # the last two brought nothing new
    assert len([body for body in served.requests if asked(body)[0] == "dog"]) == 5  # and were asked, not looked up
    assert "target dog: 5 of 20 words in 5 rounds, 10 given again" in str(report)


def test_more_words_than_asked_for_are_left(tmp_path):
    with serve(lambda body, n: reply([f"{asked(body)[0]} {i}" for i in range(9)])) as served:
        found, report = generate.generate(model(served.url, tmp_path), OUTLINE, count=4, batch=4)
    assert found.listed("target")["cat"] == tuple(f"cat {i}" for i in range(4))
    assert len(served.requests) == 4 and report.repeated["target"]["cat"] == []


def test_a_word_of_two_lists_is_dropped_from_both(tmp_path):
    listed = {
        "cat": ["tabby", "Persian", "sofa"],
        "dog": ["pug", "persian"],
        "in": ["kitchen", "Sofa", "porch"],
        "out": ["lawn", "the porch"],
    }
    with serve(lambda body, n: reply(listed[asked(body)[0]])) as served:
        found, report = generate.generate(
            model(served.url, tmp_path), OUTLINE, count=3, batch=3, rounds=1, drop_contested=True
        )
        kept, _ = generate.generate(model(served.url, tmp_path), OUTLINE, count=3, batch=3, rounds=1)
    # by default the CLIP filter decides between two classes or two values, but nothing is both a class and a value
    assert kept.listed("target") == {"cat": ("tabby", "Persian"), "dog": ("pug", "persian")}
    assert kept.listed("spurious") == {"in": ("kitchen", "porch"), "out": ("lawn", "the porch")}
    assert found.listed("target") == {"cat": ("tabby",), "dog": ("pug",)}
    assert found.listed("spurious") == {"in": ("kitchen",), "out": ("lawn",)}
    assert report.contested == {"persian": ["cat", "dog"], "sofa": ["cat", "in"], "porch": ["in", "out"]}
    assert "dropped from both: persian (cat, dog), sofa (cat, in), porch (in, out)" in str(report)
    assert report.to_json()["got"] == {"target": {"cat": 1, "dog": 1}, "spurious": {"in": 1, "out": 1}}


def test_values_of_different_pairs_may_share_a_word(tmp_path):
    apart = dataclasses.replace(OUTLINE, pairs=(("cat", "in"), ("dog", "out")))
    listed = {"cat": ["tabby"], "dog": ["pug"], "in": ["porch"], "out": ["porch"]}
    with serve(lambda body, n: reply(listed[asked(body)[0]])) as served:
        found, report = generate.generate(model(served.url, tmp_path), apart, count=1, rounds=1)
    assert found.listed("spurious") == {"in": ("porch",), "out": ("porch",)} and report.contested == {}


def test_a_list_with_no_word_of_its_own(tmp_path):
    listed = {"cat": ["tabby"], "dog": ["tabby"], "in": ["sofa"], "out": ["lawn"]}
    with (
        serve(lambda body, n: reply(listed[asked(body)[0]])) as served,
        pytest.raises(ValueError, match="target 'cat' has no words"),
    ):
        generate.generate(model(served.url, tmp_path), OUTLINE, count=1, rounds=1, drop_contested=True)


def test_partial_work_is_kept_when_the_endpoint_goes_down(tmp_path):
    lock, answered = threading.Lock(), []

    def failing(body, n):
        with lock:
            if len(answered) == 5:
                return 503, b"{}"
            answered.append(asked(body))
        return obedient(body, n)

    with serve(failing) as served, pytest.raises(EndpointError, match=r"answers are kept in .*replies\.jsonl"):
        generate.generate(model(served.url, tmp_path), OUTLINE, count=6, batch=2, workers=1)
    assert len(answered) == 5
    with serve(obedient) as served:
        found, _ = generate.generate(model(served.url, tmp_path), OUTLINE, count=6, batch=2)
    assert len(served.requests) == 4 * 3 - 5
    assert found.listed("target")["dog"] == tuple(f"dog number {i}" for i in range(6))


def test_a_reply_that_is_not_what_was_asked_for_is_asked_again(tmp_path):
    def chatty(body, n):
        return obedient(body, n) if len(body["messages"]) > 2 else "Certainly! Here are some breeds: tabby"

    with serve(chatty) as served:
        found, _ = generate.generate(model(served.url, tmp_path), OUTLINE, count=2, batch=2)
        assert found.listed("target")["cat"] == ("cat number 0", "cat number 1")
    with serve(lambda body, n: "no") as served, pytest.raises(ReplyError, match="m did not answer as asked in 2"):
        generate.generate(model(served.url, tmp_path / "new", attempts=2), OUTLINE, count=2)


def test_what_it_needs_to_ask(tmp_path):
    no_description = dataclasses.replace(OUTLINE, spurious=(WordList("in", ()), WordList("out", ())))
    with pytest.raises(ValueError, match="spurious 'in' of pets needs a description"):
        generate.generate(model("", tmp_path), no_description)
    with pytest.raises(ValueError, match="count=0"):
        generate.generate(model("", tmp_path), OUTLINE, count=0)


@pytest.mark.parametrize(
    "text, says",
    [
        ('["a"]', "not a JSON object of the form"),
        ('{"words": "a"}', "not a JSON object of the form"),
        ('{"words": ["a"], "note": "b"}', "not a JSON object of the form"),
        ('{"words": []}', "has no words"),
        ('{"words": ["a", 3]}', "3 is not a word"),
        ('{"words": [" . "]}', "is not a word"),
        ('{"words": ["' + "long " * 20 + '"]}', "longer than 60"),
        ("tabby, Persian", "not JSON alone"),
    ],
)
def test_replies_that_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_words(text)


def test_a_reply_that_is_taken():
    assert parse_words('```json\n{"words": [" blue  jay", "Owl"]}\n```') == ["blue jay", "Owl"]


# -- As an experiment --------------------------------------------------------------------------


def options(url, tmp_path, **changes):
    llm = {"llm.model": "m", "llm.base_url": url, "llm.key_variable": "", "llm.retries": 0}
    return {"outline": str(tmp_path / "outline.json"), "count": 4, "batch": 2, **llm, **changes}


def execute(workdir, values):
    """`launch.train` within this process."""
    config = get_config()
    config.update_from_flattened_dict(values)
    return launch.train.execute(config, str(workdir))


def test_the_experiment_leaves_a_word_list(tmp_path):
    """The endpoint fails, the command goes on at another port, and all is made again from the log."""
    words.save(OUTLINE, tmp_path / "outline.json")
    run = tmp_path / "run"
    with serve(lambda body, n: obedient(body, n) if n < 3 else (503, b"{}")) as served, pytest.raises(EndpointError):
        execute(run, options(served.url, tmp_path, workers=1))
    with serve(obedient) as served:
        flags = [f"--config.{key}={value}" for key, value in options(served.url, tmp_path).items()]
        output = finish(train("configs/tldr/words.py", run, *flags))
    assert len(served.requests) == 4 * 2 - 3
    assert "target cat: 4 of 4 words in 2 rounds" in output
    result = {"target cat": 4, "target dog": 4, "spurious in": 4, "spurious out": 4}
    assert json.loads((run / "result.json").read_text()) == result
    assert json.loads((run / "report.json").read_text())["rounds"]["target"] == {"cat": 2, "dog": 2}
    found = words.load(run / "words.json")
    assert found.listed("target")["cat"] == tuple(f"cat number {i}" for i in range(4))
    assert execute(tmp_path / "again", options("", tmp_path, log=str(run / "store" / "replies.jsonl"))) == result
    assert (tmp_path / "again" / "words.json").read_text() == (run / "words.json").read_text()


def test_the_config_has_every_field_of_an_endpoint():
    config = get_config()
    assert set(config.llm) == {field.name for field in dataclasses.fields(Endpoint)}
    config.llm.model = "m"
    assert from_config(FrozenConfigDict(config).llm) == Endpoint("m")
    config.llm.temperature, config.llm.max_tokens = -1.0, 9
    config.llm.extra = {"response_format": {"type": "json_object"}}
    asked = from_config(FrozenConfigDict(config).llm)
    assert (asked.temperature, asked.max_tokens) == (None, 9)
    assert json.dumps(dict(asked.extra)) == '{"response_format": {"type": "json_object"}}'
