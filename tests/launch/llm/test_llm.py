"""Asking a language model: what is kept, what is asked again, and what is said when it goes wrong."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from launch import llm
from launch.llm import Endpoint, EndpointError, Llm, Question, RefusedError, ReplyError, strict_json
from tests.commands import ROOT
from tests.launch.llm.endpoint import completion, serve


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TEST_KEY", "sk-secret")


def endpoint(url="", **changes):
    settings = {"model": "m", "base_url": url, "key_variable": "TEST_KEY", "retries": 0, "timeout": 5}
    return Endpoint(**{**settings, **changes})


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_sent(tmp_path):
    settings = {"temperature": 0.3, "max_tokens": 7, "extra": {"response_format": {"type": "json_object"}}}
    with serve(lambda body, n: '{"a": 1}') as served:
        model = Llm(endpoint(served.url, **settings), tmp_path / "log.jsonl")
        assert model.ask(Question("a?", system="be brief")) == {"a": 1}
    assert served.requests == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a?"}],
            "temperature": 0.3,
            "max_tokens": 7,
            "response_format": {"type": "json_object"},
        }
    ]
    assert served.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in (tmp_path / "log.jsonl").read_text()


def test_none_leaves_the_field_to_the_endpoint(tmp_path):
    with serve(lambda body, n: "1") as served:
        assert Llm(endpoint(served.url, temperature=None), tmp_path / "log").ask("a?") == 1
    assert served.requests[0].keys() == {"model", "messages"}


def test_a_run_is_repeated_without_endpoint_key_and_package(tmp_path, monkeypatch):
    log = tmp_path / "new" / "log.jsonl"
    with serve(lambda body, n: json.dumps(f"{body['messages'][-1]['content']} {n}")) as served:
        model = Llm(endpoint(served.url), log)
        first = model.ask_all(["x", "y", "x", Question("x", draw=1)], workers=1, progress=False)
    assert first == ["x 0", "y 1", "x 0", "x 2"]
    program = (
        "import sys; sys.modules['openai'] = None\n"
        "from launch.llm import *\n"
        f"model = Llm(Endpoint('m', key_variable='NOT_SET'), {str(log)!r})\n"
        "print(model.ask_all(['x', 'y', 'x', Question('x', draw=1)], progress=False))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(first), done.stderr
    with pytest.raises(EndpointError, match=r"no endpoint \(base_url\)"):
        Llm(endpoint(), log).ask(Question("x", draw=2))
    for change in ({"model": "other"}, {"temperature": 0.5}, {"max_tokens": 9}, {"extra": {"seed": 1}}):
        with pytest.raises(EndpointError, match="no endpoint"):
            Llm(endpoint(**change), log).ask("x")


def test_without_the_package_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[llm\]'"):
        Llm(endpoint("http://127.0.0.1:9"), tmp_path / "log").ask("x")


def test_a_bad_reply_is_shown_to_the_model_and_kept(tmp_path):
    log = tmp_path / "log.jsonl"
    replies = ["Sure! Here it is: [1]", "[1]"]
    with serve(lambda body, n: replies[n]) as served:
        assert Llm(endpoint(served.url), log).ask("a list") == [1]
    first, second = served.requests
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == replies[0] and "not JSON alone" in second["messages"][2]["content"]
    kept = [("refused" in e, e["reply"], e["attempt"]) for e in entries(log)]
    assert kept == [(True, replies[0], 1), (False, replies[1], 2)]
    assert Llm(endpoint(), log).ask("a list") == [1]  # found by the question, without the correction


def test_a_model_that_never_answers_as_asked(tmp_path):
    log = tmp_path / "log.jsonl"
    with serve(lambda body, n: "no" if n < 2 else "[2]") as served:
        model = Llm(endpoint(served.url, attempts=2), log)
        with pytest.raises(ReplyError, match=r"m did not answer as asked in 2 attempts.*'no'.*log\.jsonl.*'a list'"):
            model.ask("a list")
        assert len(entries(log)) == 2
        with pytest.raises(EndpointError, match="has no answer to 'a list'"):
            Llm(endpoint(), log).ask("a list")
        assert Llm(endpoint(served.url, attempts=2), log).ask("a list") == [2]  # bad replies do not stand in the way


def test_a_reply_cut_off_at_the_limit_is_not_used(tmp_path):
    with (
        serve(lambda body, n: completion("[1, 2]", "length")) as served,
        pytest.raises(ReplyError, match="max_tokens"),
    ):
        Llm(endpoint(served.url, attempts=1), tmp_path / "log").ask("a list")


def test_a_stricter_parser_asks_again(tmp_path):
    log = tmp_path / "log.jsonl"

    def positive(reply):
        if int(reply) <= 0:
            raise ValueError(f"{reply} is not positive")
        return int(reply)

    with serve(lambda body, n: ["-1", "1"][n]) as served:
        assert Llm(endpoint(served.url), log).ask("a number") == -1
        with pytest.raises(EndpointError, match=r"refused .-1 is not positive"):
            Llm(endpoint(), log).ask("a number", parse=positive)
        assert Llm(endpoint(served.url), log).ask("a number", parse=positive) == 1
    assert Llm(endpoint(), log).ask("a number", parse=positive) == 1  # the later answer counts


def test_an_overloaded_endpoint_is_asked_again(tmp_path):
    statuses = [503, 429, 500]
    with serve(lambda body, n: (statuses[n], b"{}") if n < 3 else "[1]") as served:
        assert Llm(endpoint(served.url, retries=3), tmp_path / "log").ask("x") == [1]
    assert len(served.requests) == 4


@pytest.mark.parametrize(
    "answer, says",
    [
        ((503, b'{"error": {"message": "busy"}}'), "failed .*busy"),
        ((429, b'{"error": {"message": "quota"}}'), "over its rate limit.*quota"),
        ((401, b'{"error": {"message": "bad key"}}'), "refused the key in TEST_KEY"),
        ((404, b'{"error": {"message": "gone"}}'), "does not know .* the model 'm'"),
        ((400, b'{"error": {"message": "no such field"}}'), "no such field"),
        ((200, b"<html>"), "not answer in JSON|not a chat endpoint"),
        ((200, b'{"hello": 1}'), "not a chat endpoint"),
    ],
)
def test_what_an_endpoint_may_answer_instead(tmp_path, answer, says):
    with serve(lambda body, n: answer) as served, pytest.raises(EndpointError, match=says) as error:
        Llm(endpoint(served.url), tmp_path / "log").ask("x")
    assert served.url in str(error.value)


def test_an_endpoint_that_is_down(tmp_path):
    with serve(lambda body, n: "1") as served:
        pass
    with pytest.raises(EndpointError, match=r"cannot be reached, in 2 tries.*0 answers are kept"):
        Llm(endpoint(served.url, retries=1), tmp_path / "log").ask("x")


def test_an_endpoint_that_is_slow(tmp_path):
    done = threading.Event()

    def hang(body, n):
        done.wait(10)
        return "1"

    with serve(hang) as served:
        with pytest.raises(EndpointError, match=r"did not answer within 0\.2 s, in 1 tries; increase timeout"):
            Llm(endpoint(served.url, timeout=0.2), tmp_path / "log").ask("x")
        done.set()


def test_a_missing_key(tmp_path, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with serve(lambda body, n: "1") as served:
        with pytest.raises(EndpointError, match=r"TEST_KEY .* is not set"):
            Llm(endpoint(served.url), tmp_path / "log").ask("x")
        assert not served.requests
        assert Llm(endpoint(served.url, key_variable=""), tmp_path / "log").ask("x") == 1


def test_partial_work_is_kept(tmp_path):
    """The endpoint fails in the middle of many questions; the rest is asked later, and only the rest."""
    log, questions = tmp_path / "log.jsonl", [f"q{i}" for i in range(30)]

    def answer(body, n):
        if n < 5:
            return f'"{n}"'
        time.sleep(0.02)
        return 400, b"{}"

    with serve(answer) as served, pytest.raises(EndpointError, match="5 answers are kept"):
        Llm(endpoint(served.url), log).ask_all(questions, workers=1, progress=False)
    assert len(served.requests) < len(questions)  # what was not under way is not asked any more
    kept = {e["request"]["messages"][0]["content"] for e in entries(log)}
    assert kept == set(questions[:5])
    with serve(lambda body, n: json.dumps(body["messages"][0]["content"])) as served:
        answers = Llm(endpoint(served.url), log).ask_all(questions, workers=4, progress=False)
    assert answers == [*"01234", *questions[5:]]
    assert {r["messages"][0]["content"] for r in served.requests} == set(questions[5:])


def test_equal_questions_are_asked_once(tmp_path):
    def slow(body, n):
        time.sleep(0.05)
        return str(n)

    with serve(slow) as served:
        questions = ["x", Question("x"), "x", Question("x", draw=1)]
        answers = Llm(endpoint(served.url), tmp_path / "log").ask_all(questions, workers=4, progress=False)
    assert len(served.requests) == 2
    assert answers[0] == answers[1] == answers[2] != answers[3]


def test_many_threads_write_whole_lines(tmp_path):
    log, questions = tmp_path / "log.jsonl", [f"{i} " + "x" * 5000 for i in range(40)]
    with serve(lambda body, n: json.dumps(body["messages"][0]["content"])) as served:
        assert Llm(endpoint(served.url), log).ask_all(questions, workers=8, progress=False) == questions
    assert {e["request"]["messages"][0]["content"] for e in entries(log)} == set(questions)


def test_a_line_cut_off_by_a_kill_is_asked_again(tmp_path):
    log = tmp_path / "log.jsonl"
    with serve(lambda body, n: json.dumps(f"é{n}")) as served:
        model = Llm(endpoint(served.url), log)
        assert [model.ask("x"), model.ask("y")] == ["é0", "é1"]
        log.write_bytes(log.read_bytes()[:-9])
        again = Llm(endpoint(served.url), log)
        assert [again.ask("x"), again.ask("y"), again.ask("z")] == ["é0", "é2", "é3"]
    assert len(entries(log)) == 3


HALF = [b'["\\\\ud83d"]', b'"\\ud83d"']  # escaped in the reply's JSON; escaped in the endpoint's, so raw in the reply


@pytest.mark.parametrize("half", HALF)
def test_half_a_surrogate_pair_is_logged_and_asked_again(tmp_path, half):
    body = completion("HALF")[1].replace(b'"HALF"', half if half == HALF[1] else b'"[\\"\\\\ud83d\\"]"')
    log = tmp_path / "log.jsonl"
    with serve(lambda _, n: (200, body) if n == 0 else "[1]") as served:
        assert Llm(endpoint(served.url), log).ask("x", parse=str if half == HALF[1] else None) in ([1], "[1]")
    assert [("refused" in e, "surrogate" in e.get("refused", "")) for e in entries(log)] == [
        (True, True),
        (False, False),
    ]
    assert Llm(endpoint(), log).ask("x") == [1]


def test_a_reply_that_earlier_versions_kept_is_asked_again(tmp_path):
    log = tmp_path / "log.jsonl"
    with serve(lambda _, n: "[1]") as served:
        model = Llm(endpoint(served.url), log)
        model.ask("x")
        log.write_text(log.read_text().replace('"[1]"', json.dumps('["\\ud83d"]')))
        assert Llm(endpoint(served.url), log).ask("x") == [1]
        assert len(served.requests) == 2


def test_content_in_parts(tmp_path):
    parts = [{"type": "text", "text": "[1,"}, {"type": "text", "text": " 2]"}, {"type": "image_url"}]
    with serve(lambda _, n: completion(parts)) as served:
        assert Llm(endpoint(served.url), tmp_path / "log").ask("x") == [1, 2]


def test_a_filtered_reply_is_asked_again(tmp_path):
    with serve(lambda _, n: completion(None, "content_filter") if n == 0 else "[1]") as served:
        assert Llm(endpoint(served.url), tmp_path / "log").ask("x") == [1]
    assert "content filter" in served.requests[1]["messages"][-1]["content"]


def test_refused_questions_are_set_aside_and_the_rest_is_finished(tmp_path):
    log, questions = tmp_path / "log.jsonl", [f"q{i}" for i in range(9)]

    def answer(body, n):
        prompt = body["messages"][0]["content"]
        return (
            (400, b'{"error": {"message": "filtered"}}')
            if prompt == "q0"
            else "no"
            if prompt == "q4"
            else f'"{prompt}"'
        )

    with serve(answer) as served:
        model = Llm(endpoint(served.url, attempts=2), log)
        answers = model.ask_all(questions, workers=1, progress=False, set_aside=True)
    assert sum(request["messages"][0]["content"] == "q0" for request in served.requests) == 2
    assert isinstance(answers[0], RefusedError) and "'q0'" in str(answers[0]) and "filtered" in str(answers[0])
    assert isinstance(answers[4], ReplyError)
    assert [answer for answer in answers if isinstance(answer, str)] == [q for q in questions if q not in ("q0", "q4")]
    with serve(lambda body, n: (400, b"{}")) as served, pytest.raises(RefusedError):
        Llm(endpoint(served.url), tmp_path / "other").ask_all(questions, progress=False, set_aside=True)
    with serve(lambda body, n: (401, b"{}")) as served, pytest.raises(EndpointError, match="refused the key"):
        Llm(endpoint(served.url), log).ask_all([*questions, "new"], workers=1, progress=False, set_aside=True)


def test_no_key_is_in_a_log_or_a_message_wherever_it_was_given(tmp_path, caplog):
    caplog.set_level("INFO")
    log, keys = tmp_path / "log.jsonl", ("user-secret", "pass-secret", "query-secret", "k" * 30, "extra-secret")
    with serve(lambda _, n: '"sk-secret"' if n == 0 else (400, b'{"error": {"message": "not sk-secret"}}')) as served:
        url = served.url.replace("http://", "http://user-secret:pass-secret@") + f"/{'k' * 30}?api-key=query-secret"
        model = Llm(endpoint(url, extra={"api_key": "extra-secret", "more": [{"Authorization": "extra-secret"}]}), log)
        model.ask("x")
        with pytest.raises(EndpointError) as error:
            model.ask("y")
    for secret in (*keys, "sk-secret"):
        assert not any(secret in text for text in (log.read_text(), str(error.value), caplog.text))
    assert entries(log)[0]["base_url"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize("line", ["{", "[]", '{"reply": "a"}'])
def test_a_damaged_log(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"key": "a", "reply": "b"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: is not an entry"):
        Llm(endpoint(), log)


@pytest.mark.parametrize(
    "text, value",
    [
        (' {"a": [1]}\n', {"a": [1]}),
        ('```json\n["x"]\n```', ["x"]),
        ('```JSON\r\n["x"]\r\n```', ["x"]),
        ("~~~ json5\n1\n~~~", 1),
        ("```json [1]```", [1]),
        ("```\n1\n```", 1),
        ('"é"', "é"),
    ],
)
def test_strict_json(text, value):
    assert strict_json(text) == value


@pytest.mark.parametrize(
    "text, says",
    [
        ("Sure: [1]", "not JSON alone"),
        ("[1] and more", "not JSON alone"),
        ("```json\n[1]\n```\nDone.", "not JSON alone"),
        ("", "not JSON alone"),
        ("['a']", "not JSON alone"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("[NaN]", "NaN"),
        ("-Infinity", "Infinity"),
        ('["\\ud83d"]', "surrogate"),
        ("[" * 5000 + "]" * 5000, "nested"),
    ],
)
def test_what_is_no_strict_json(text, says):
    with pytest.raises(ValueError, match=says):
        strict_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"model": ""},
        {"attempts": 0},
        {"retries": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"base_url": "localhost:8000"},
        {"base_url": "http://[::1"},
    ],
)
def test_settings_that_make_no_sense(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(Endpoint("m"), **change)


def test_the_module_needs_no_package_to_be_read():
    assert "openai" not in vars(llm)
