"""What a language model replies: the text of a message, and the JSON in it."""

import json
import re
from typing import Any

from launch.reading import InputError, jsons

_FINISHED_EARLY = {
    "length": "it was truncated at the limit of tokens (max_tokens)",
    "content_filter": "it was stopped by the endpoint's content filter",
}
# A Markdown code fence around a whole text, with or without the name of a language.
_FENCE = re.compile(
    r"(?P<mark>`{3,}|~{3,})[ \t]*(?:[a-z][\w+-]*[ \t]*(?=[\r\n])|json)?(?P<content>.*?)(?P=mark)",
    re.DOTALL | re.IGNORECASE,
)


def content(message: Any, finish_reason: Any) -> tuple[str, str]:
    """(the text of a message, which can be written as UTF-8; why it cannot be used, or "").

    Args:
      message: has `content`: a text, None, or a list of parts with texts.
      finish_reason: of the choice.
    """
    said = _text(getattr(message, "content", None))
    reply = writable(said)
    problem = "" if reply == said else "it contains half of a surrogate pair, which is not a character"
    return reply, _FINISHED_EARLY.get(str(finish_reason), problem)


def _text(said: Any) -> str:
    if isinstance(said, list):
        return "".join(_text(part.get("text") if isinstance(part, dict) else part) for part in said)
    return said if isinstance(said, str) else ""


def strict_json(reply: str) -> Any:
    """The JSON value of which a reply consists.

    Only white space and one Markdown code fence around the whole are removed.

    Raises:
      ValueError: other text around it, or what `launch.reading.jsons.parse` refuses.
    """

    text = reply.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced["content"]
    try:
        return jsons.parse(text, top=object)
    except InputError as error:
        if isinstance(error.__cause__, json.JSONDecodeError) or not text.strip():
            raise ValueError(f"it is not JSON alone ({error})") from error
        raise


def writable(text: str) -> str:
    """A text with halves of surrogate pairs, which UTF-8 does not have, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def short(text: str) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]} …"
