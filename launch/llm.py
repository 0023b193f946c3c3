"""Asking a language model behind an OpenAI-compatible endpoint, with a log of every reply.

Every reply is appended to a log of JSON lines as it arrives, including unusable ones. A question whose answer is in the
log is not asked again: an interrupted run continues where it stopped, and a finished one can be repeated without
endpoint, key or the `openai` package (extra `llm`).
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tqdm import tqdm


class EndpointError(RuntimeError):
    """The endpoint gave no reply; the message says why, and what has been kept."""


class ReplyError(ValueError):
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
      attempts: how many replies to a question may be refused before it is given up.
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
        if self.attempts < 1 or self.retries < 0 or self.timeout <= 0:
            raise ValueError(
                f"attempts={self.attempts} must be at least 1, retries={self.retries} not negative and "
                f"timeout={self.timeout} positive"
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
          ValueError: a line of the log is not an entry; file and line are named.
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
          parse: of the reply; `strict_json` by default.

        Raises:
          ReplyError: none of `endpoint.attempts` replies had the requested form. The next call starts afresh.
          EndpointError: the endpoint is down, too slow or refuses; no endpoint, and the answer is not in the log.
          ImportError: the endpoint is needed, and `openai` is not installed.
        """
        parse = parse or strict_json
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
    ) -> list[Any]:
        """The answers to many questions, in their order, asked in parallel.

        If one fails, the requests under way are still completed and logged before its error is raised.

        Args:
          questions: the questions; equal ones are asked once.
          parse: as in `ask`.
          workers: simultaneous requests.
          progress: show a progress bar.
        """
        distinct = list(dict.fromkeys(Question(q) if isinstance(q, str) else q for q in questions))
        with (
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(distinct), unit="answer", disable=not progress) as bar,
        ):
            futures = {question: pool.submit(self.ask, question, parse=parse) for question in distinct}
            try:
                for future in concurrent.futures.as_completed(futures.values()):
                    future.result()
                    bar.update()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return [futures[Question(q) if isinstance(q, str) else q].result() for q in questions]

    def _ask_anew(self, question: Question, request: dict, key: str, parse: Parse) -> Any:
        messages, reply, refused = request["messages"], "", ""
        for attempt in range(1, self.endpoint.attempts + 1):
            reply, details = self._send({**request, "messages": messages})
            entry = {"key": key, "draw": question.draw, "attempt": attempt, "reply": reply, **details}
            entry["request"] = request
            try:
                if details["finish_reason"] == "length":
                    raise ValueError("it was truncated at the limit of tokens (max_tokens)")
                answer = parse(reply)
            except ValueError as error:
                refused = str(error)
                self._append({**entry, "refused": refused})
                correction = f"That cannot be used: {refused}. Answer again, in the form asked for."
                exchange = ({"role": "assistant", "content": reply}, {"role": "user", "content": correction})
                messages = [*messages, *exchange]
            else:
                self._append(entry)
                return answer
        raise ReplyError(
            f"{self.endpoint.model} did not answer as asked in {self.endpoint.attempts} attempts. The last reply, "
            f"{_short(reply)!r}, was refused: {refused}. All replies are in {self.log}. The question was "
            f"{_short(question.prompt)!r}"
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
            raise EndpointError(f"no endpoint (base_url), and {why} to {_short(question.prompt)!r}")

    def _send(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The reply to a request, and details for the log."""
        openai = _openai()
        client = self._connected(openai)
        known = {name: request[name] for name in ("model", "messages", "temperature", "max_tokens") if name in request}
        further = {name: value for name, value in request.items() if name not in known}
        try:
            completion = client.chat.completions.create(**known, extra_body=further or None)
        except openai.APIError as error:
            raise EndpointError(f"{_explain(openai, error, self.endpoint)}. {self._kept()}") from error
        except ValueError as error:  # the body is not JSON
            problem = f"{self.endpoint.base_url} did not answer in JSON ({error})"
            raise EndpointError(f"{problem}. {self._kept()}") from error
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise EndpointError(
                f"{self.endpoint.base_url} is not a chat endpoint: it answered {_short(str(completion))!r}. "
                f"{self._kept()}"
            )
        usage = getattr(completion, "usage", None)
        details = {
            "time": round(time.time(), 3),
            "base_url": self.endpoint.base_url,
            "finish_reason": choices[0].finish_reason,
            "usage": usage.model_dump(mode="json") if usage else None,
        }
        return choices[0].message.content or "", details

    def _connected(self, openai):
        with self._lock:
            if self._client is None:
                variable = self.endpoint.key_variable
                key = os.environ.get(variable) if variable else "none"
                if not key:
                    raise EndpointError(
                        f"the environment variable {variable} with the key of {self.endpoint.base_url} is not set; set "
                        'it, or key_variable="" for an endpoint without keys'
                    )
                self._client = openai.OpenAI(
                    api_key=key,
                    base_url=self.endpoint.base_url,
                    timeout=self.endpoint.timeout,
                    max_retries=self.endpoint.retries,
                )
            return self._client

    def _kept(self) -> str:
        return f"{len(self._answers)} answers are kept in {self.log}; the same command continues from there"

    def _append(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
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


def strict_json(reply: str) -> Any:
    """The JSON value of which a reply consists.

    Only white space and one Markdown code fence around the whole are removed.

    Raises:
      ValueError: other text around it, invalid JSON, a repeated key in an object, NaN or infinity.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON value")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [name for name, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(name for name in keys if keys.count(name) > 1)
            raise ValueError(f"the key {twice!r} occurs twice")
        return dict(pairs)

    text = reply.strip()
    if fenced := re.fullmatch(r"```(?:json)?[ \t]*\n(.*)\n?```", text, re.DOTALL):
        text = fenced.group(1)
    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON alone ({error})") from error


def _key(request: Mapping[str, Any], draw: int) -> str:
    return hashlib.sha256(json.dumps([request, draw], sort_keys=True).encode()).hexdigest()


def _read_log(path: Path) -> dict[str, str]:
    """Key -> reply of the log's usable entries; a last line without its end, truncated by a kill, is ignored."""
    if not path.exists():
        return {}
    answers = {}
    lines = path.read_bytes()[: _whole_lines(path)].splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            key, reply, refused = entry["key"], entry["reply"], "refused" in entry
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not an entry of a log of replies ({type(error).__name__}: {error}); remove "
                "the line, or choose another log"
            ) from error
        if not refused:
            answers[key] = reply
    return answers


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    return path.read_bytes().rfind(b"\n") + 1


def _openai():
    try:
        import openai
    except ImportError as error:
        raise ImportError("asking an endpoint needs the package openai: pip install -e '.[llm]'") from error
    return openai


def _explain(openai, error: Exception, endpoint: Endpoint) -> str:
    """The cause of an error, and what to do about it."""
    at, tries = endpoint.base_url, f"{endpoint.retries + 1} tries"
    if isinstance(error, openai.APITimeoutError):
        advice = "increase timeout or ask for less at once"
        return f"{at} did not answer within {endpoint.timeout:g} s, in {tries}; {advice}"
    if isinstance(error, openai.APIConnectionError):
        return f"{at} cannot be reached, in {tries} ({error.__cause__ or error})"
    status = getattr(error, "status_code", None)
    message = _short(str(error))
    if status in (401, 403):
        return f"{at} refuses the key in {endpoint.key_variable or '(none: set key_variable)'} ({message})"
    if status == 404:
        return f"{at} does not know /chat/completions or the model {endpoint.model!r} ({message})"
    if status == 429:
        return f"{at} is over its rate limit, in {tries} ({message})"
    return f"{at} failed ({message})"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]} …"
