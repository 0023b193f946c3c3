"""Keys and passwords, which neither logs nor messages may repeat, wherever they were given."""

import re
import urllib.parse
from typing import Any

_KEY_LENGTH = 20  # characters of a part of an address that may be a key
_SHORTEST = 6  # characters of a secret; shorter ones, such as "none", are words that any text may contain
_NAMES = re.compile(r"api[-_]?key|authorization|password|secret|(access|auth|bearer)[-_]?token", re.IGNORECASE)


def is_address(url: str) -> bool:
    """Whether a text is an http address with a host."""
    try:
        address = urllib.parse.urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname)
    except ValueError:
        return False


def public(url: str) -> str:
    """An address without what may be a key: user, password, query, and long parts of the path."""
    try:
        address = urllib.parse.urlsplit(url)
    except ValueError:
        return "the endpoint"
    path = "/".join("…" if len(part) >= _KEY_LENGTH else part for part in address.path.split("/"))
    return urllib.parse.urlunsplit((address.scheme, address.netloc.rpartition("@")[2], path, "", ""))


def without_keys(value: Any) -> Any:
    """A JSON value whose fields with names of keys and passwords are blanked."""
    if isinstance(value, dict):
        return {name: "…" if _NAMES.search(name) else without_keys(item) for name, item in value.items()}
    return [without_keys(item) for item in value] if isinstance(value, list) else value


def hidden(text: str, base_url: str, key: str | None) -> str:
    """A text without an endpoint's key and what may be one in its address."""
    address = urllib.parse.urlsplit(base_url)
    queries = (value for _, value in urllib.parse.parse_qsl(address.query))
    parts = (part for part in address.path.split("/") if len(part) >= _KEY_LENGTH)
    for secret in (key, address.username, address.password, *queries, *parts):
        if secret and len(secret) >= _SHORTEST:
            text = text.replace(secret, "…")
    return text
