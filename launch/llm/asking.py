"""Asking a language model behind an OpenAI-compatible endpoint, with a log of every reply.

Every reply is appended to a log of JSON lines as it arrives, including unusable ones. A question whose answer is in the
log is not asked again: an interrupted run continues where it stopped, and a finished one can be repeated without
endpoint, key or the `openai` package (extra `llm`).
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from launch.llm import replies, secrets
from launch.reading import InputError, jsons
from launch.reading.records import Record, field

_REFUSALS = (400, 413, 422)  # HTTP states of a question that is refused, not of an endpoint that is down
_HOPELESS = 100  # questions; if so many are asked and none is answered, the endpoint is at fault


class EndpointError(RuntimeError):
    """The endpoint gave no reply; the message says why, and what has been kept."""


class RefusedError(EndpointError):
    """The endpoint refuses this question, in as many attempts as were allowed; it may answer others."""


class ReplyError(RuntimeError):
    """The model did not answer in the requested form, in as many attempts as were allowed."""


class Parse(Protocol):
    """Turns a reply into an answer; raises a ValueError that says what is wrong with the reply."""

    def __call__(self, reply: str, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A model at an endpoint, and how it is asked.

    Attributes:
      model: the model's name at the endpoint.
      base_url: of the endpoint, without /chat/completions; "" for none: every answer must be in the log.
      key_variable: the environment variable that holds the key; "" for an endpoint without keys.
      temperature: of the sampling; None for the endpoint's default.
      max_tokens: of a reply; None for the endpoint's default.
      timeout: seconds without a byte from the endpoint after which a request has failed.
      retries: how often a request is repeated, after growing pauses, when the endpoint is down, slow or overloaded.
      attempts: how many replies to a question may be refused, by us or by the endpoint, before it is given up.
      extra: further fields of the request, such as {"response_format": {"type": "json_object"}}.
    """

    model: str
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    temperature: float | None = 1.0
    max_tokens: int | None = None
    timeout: float = 120.0
    retries: int = 5
    attempts: int = 3
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.model:
            raise ValueError("name the endpoint's model")
        if self.attempts < 1 or self.retries < 0 or not 0 < self.timeout < math.inf:
            raise ValueError(
                f"attempts={self.attempts} must be at least 1, retries={self.retries} not negative and "
                f"timeout={self.timeout} positive and finite"
            )
        if self.base_url and not secrets.is_address(self.base_url):
            raise ValueError(
                f"base_url={secrets.public(self.base_url)!r} must begin with http:// or https:// and a host"
            )


def from_config(config: Mapping[str, Any]) -> Endpoint:
    """An endpoint from a config with its fields; max_tokens=0 and temperature=-1.0 stand for None.

    Raises:
      TypeError: an unknown field.
    """
    values = {name: config[name] for name in config}
    temperature = values.get("temperature", Endpoint.temperature)
    values["temperature"] = None if temperature is None or temperature < 0 else temperature
    values["max_tokens"] = values.get("max_tokens") or None
    if hasattr(values.get("extra"), "to_dict"):  # ml_collections' nested configs are not JSON values
        values["extra"] = values["extra"].to_dict()
    return Endpoint(**values)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question to a model.

    Attributes:
      prompt: the user's message.
      system: the system message; "" for none.
      draw: distinguishes several answers to the same question.
    """

    prompt: str
    system: str = ""
    draw: int = 0


class Llm:
    """A model to ask, and the log of its answers.

    Thread-safe. In a program of many processes, ask in one of them.

    Attributes:
      endpoint: the model, and how it is asked.
      log: path of the log.
    """

    def __init__(self, endpoint: Endpoint, log: str | Path):
        """Read the log, if it exists.

        Raises:
          ValueError: a line of the log is not an entry; the error names file and line.
        """
        self.endpoint, self.log = endpoint, Path(log)
        self._answers = _read_log(self.log)
        self._lock, self._mended = threading.Lock(), False
        self._client = None

    def ask(self, question: Question | str, *, parse: Parse | None = None) -> Any:
        """The answer to a question, from the log or from the endpoint.

        A reply that `parse` refuses is returned to the model with the reason and a request for another one.

        Args:
          question: the question, or its prompt.
          parse: of the reply; `launch.llm.strict_json` by default.

        Raises:
          ReplyError: none of `endpoint.attempts` replies had the requested form. The next call starts afresh.
          RefusedError: the endpoint refused the question (HTTP 400, 413, 422), as content filters do.
          EndpointError: the endpoint is down, too slow or refuses; no endpoint, and the answer is not in the log.
          ImportError: the endpoint is needed, and `openai` is not installed.
        """
        parse = parse or replies.strict_json
        question = Question(question) if isinstance(question, str) else question
        request = self._request(question)
        key = _key(request, question.draw)
        kept = self._answers.get(key)
        if kept is not None:
            try:
                return parse(kept)
            except ValueError as error:  # the caller has become stricter since
                self._need_endpoint(question, f"the reply in {self.log} is refused ({error})")
        else:
            self._need_endpoint(question, f"{self.log} has no answer")
        return self._ask_anew(question, request, key, parse)

    def ask_all(
        self,
        questions: Sequence[Question | str],
        *,
        parse: Parse | None = None,
        workers: int = 8,
        progress: bool = True,
        set_aside: bool = False,
    ) -> list[Any]:
        """The answers to many questions, in their order, asked in parallel.

        If one fails, the requests under way are still completed and logged before its error is raised.

        Args:
          questions: the questions; equal ones are asked once.
          parse: as in `ask`.
          workers: simultaneous requests.
          progress: show a progress bar.
          set_aside: continue if a question is refused or never answered as asked, and return its RefusedError or
            ReplyError in place of the answer. If that happens to the first few and none is answered, it is raised.
        """
        distinct = list(dict.fromkeys(Question(q) if isinstance(q, str) else q for q in questions))
        with (
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(distinct), unit="answer", disable=not progress) as bar,
        ):
            futures = {question: pool.submit(self.ask, question, parse=parse) for question in distinct}
            failures: list[Exception] = []
            try:
                for done, future in enumerate(concurrent.futures.as_completed(futures.values()), 1):
                    error = future.exception()
                    if error is not None:
                        if not set_aside or not isinstance(error, RefusedError | ReplyError):
                            raise error
                        failures.append(error)
                        if len(failures) == done == min(_HOPELESS, len(futures)):
                            raise failures[0]
                    bar.update()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        outcomes = {question: future.exception() or future.result() for question, future in futures.items()}
        return [outcomes[Question(q) if isinstance(q, str) else q] for q in questions]

    def _ask_anew(self, question: Question, request: dict, key: str, parse: Parse) -> Any:
        messages, reply, refused, attempts = request["messages"], "", "", self.endpoint.attempts
        for attempt in range(1, attempts + 1):
            try:
                reply, problem, details = self._send({**request, "messages": messages})
            except RefusedError as error:
                if attempt < attempts:
                    continue  # filters of what the model writes may let another reply pass
                raise RefusedError(f"{error} The question was {replies.short(question.prompt)!r}") from error
            entry = {"key": key, "draw": question.draw, "attempt": attempt, "reply": reply, **details}
            entry["request"] = request
            try:
                if problem:
                    raise ValueError(problem)
                answer = parse(reply)
            except ValueError as error:
                refused = replies.writable(str(error))
                self._append({**entry, "refused": refused})
                correction = f"That cannot be used: {refused}. Answer again, in the form asked for."
                exchange = ({"role": "assistant", "content": reply}, {"role": "user", "content": correction})
                messages = [*messages, *exchange]
            else:
                self._append(entry)
                return answer
        raise ReplyError(
            f"{self.endpoint.model} did not answer as asked in {attempts} attempts. The last reply, "
            f"{replies.short(reply)!r}, was refused: {refused}. All replies are in {self.log}. The question was "
            f"{replies.short(question.prompt)!r}"
        )

    def _request(self, question: Question) -> dict[str, Any]:
        """The request; together with the draw it identifies the answer in the log."""
        system = [{"role": "system", "content": question.system}] if question.system else []
        options = {"temperature": self.endpoint.temperature, "max_tokens": self.endpoint.max_tokens}
        return {
            "model": self.endpoint.model,
            "messages": [*system, {"role": "user", "content": question.prompt}],
            **{name: value for name, value in options.items() if value is not None},
            **json.loads(json.dumps(dict(self.endpoint.extra))),
        }

    def _need_endpoint(self, question: Question, why: str) -> None:
        if not self.endpoint.base_url:
            raise EndpointError(f"no endpoint (base_url), and {why} to {replies.short(question.prompt)!r}")

    def _send(self, request: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
        """The reply to a request, why it cannot be used ("" if nothing is wrong so far), and details for the log."""
        openai = _openai()
        client = self._connected(openai)
        known = {name: request[name] for name in ("model", "messages", "temperature", "max_tokens") if name in request}
        further = {name: value for name, value in request.items() if name not in known}
        at = secrets.public(self.endpoint.base_url)
        try:
            completion = client.chat.completions.create(**known, extra_body=further or None)
        except openai.APIError as error:
            kind = RefusedError if getattr(error, "status_code", None) in _REFUSALS else EndpointError
            raise kind(self._hidden(f"{_explain(openai, error, self.endpoint)}. {self._kept()}.")) from error
        except (ValueError, RecursionError) as error:  # the body is not JSON
            raise EndpointError(self._hidden(f"{at} did not answer in JSON ({error}). {self._kept()}")) from error
        choices: Any = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            answer = replies.short(replies.writable(str(completion)))
            raise EndpointError(self._hidden(f"{at} is not a chat endpoint: it answered {answer!r}. {self._kept()}"))
        usage: Any = getattr(completion, "usage", None)
        finish = getattr(choices[0], "finish_reason", None)
        reply, problem = replies.content(message, finish)
        details = {
            "time": round(time.time(), 3),
            "base_url": at,
            "finish_reason": finish,
            "usage": usage.model_dump(mode="json") if hasattr(usage, "model_dump") else None,
        }
        return reply, problem, details

    def _connected(self, openai):
        with self._lock:
            if self._client is None:
                variable = self.endpoint.key_variable
                key = os.environ.get(variable) if variable else "none"
                if not key:
                    at = secrets.public(self.endpoint.base_url)
                    raise EndpointError(
                        f"the environment variable {variable} with the key of {at} is not set; set it, or "
                        'key_variable="" for an endpoint without keys'
                    )
                for client in ("httpx", "httpx2"):  # log every request's address, with the password or key in it
                    logging.getLogger(client).setLevel(logging.WARNING)
                self._client = openai.OpenAI(
                    api_key=key,
                    base_url=self.endpoint.base_url,
                    timeout=self.endpoint.timeout,
                    max_retries=self.endpoint.retries,
                )
            return self._client

    def _kept(self) -> str:
        return f"{len(self._answers)} answers are kept in {self.log}; the same command continues from there"

    def _hidden(self, text: str) -> str:
        return secrets.hidden(text, self.endpoint.base_url, os.environ.get(self.endpoint.key_variable))

    def _append(self, entry: dict[str, Any]) -> None:
        text = self._hidden(
            json.dumps({**entry, "request": secrets.without_keys(entry["request"])}, ensure_ascii=False)
        )
        line = (text + "\n").encode("utf-8", "replace")
        with self._lock:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as file:
                if not self._mended:  # a line truncated by a kill would spoil this one
                    file.truncate(_whole_lines(self.log))
                    self._mended = True
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if "refused" not in entry:
                self._answers[entry["key"]] = entry["reply"]


def _key(request: Mapping[str, Any], draw: int) -> str:
    return hashlib.sha256(json.dumps([request, draw], sort_keys=True).encode()).hexdigest()


def _read_log(path: Path) -> dict[str, str]:
    """Key -> reply of the log's usable entries; a last line without its end, truncated by a kill, is ignored."""
    if not path.exists():
        return {}
    answers = {}
    for number, line in enumerate(path.read_bytes()[: _whole_lines(path)].splitlines(), 1):
        try:
            entry = Record(path, number, jsons.parse(line.decode(), top=dict, nonfinite=True))
            key, reply = (field(entry, name, str) for name in ("key", "reply"))
        except ValueError as error:
            remedy = "remove the line, or choose another log"
            raise InputError(f"is not an entry of a log of replies ({error})", file=path, place=number, remedy=remedy) \
                from error  # fmt: skip
        if "refused" not in entry.values:
            answers[key] = reply
    return answers


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    return path.read_bytes().rfind(b"\n") + 1


def _openai():
    try:
        import openai
    except ImportError as error:
        raise ImportError("a language model needs the package openai: pip install -e '.[llm]'") from error
    return openai


def _explain(openai, error: Exception, endpoint: Endpoint) -> str:
    """The cause of an error, and what to do about it."""
    at, tries = secrets.public(endpoint.base_url), f"{endpoint.retries + 1} tries"
    if isinstance(error, openai.APITimeoutError):
        advice = "increase timeout or ask for less at once"
        return f"{at} did not answer within {endpoint.timeout:g} s, in {tries}; {advice}"
    if isinstance(error, openai.APIConnectionError):
        return f"{at} cannot be reached, in {tries} ({error.__cause__ or error})"
    status = getattr(error, "status_code", None)
    message = replies.short(str(error))
    if status in (401, 403):
        return f"{at} refused the key in {endpoint.key_variable or '(none: set key_variable)'} ({message})"
    if status == 404:
        return f"{at} does not know /chat/completions or the model {endpoint.model!r} ({message})"
    if status in _REFUSALS:
        return f"{at} refused the question ({message})"
    if status == 429:
        return f"{at} is over its rate limit, in {tries} ({message})"
    return f"{at} failed ({message})"
