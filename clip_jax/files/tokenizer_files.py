"""A tokenizer's files, checked against each other: settings, vocabularies, merges, added tokens."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.reading import InputError, jsons, paths, shown, text

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WORD_END = "</w>"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


def settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of the small files that are there, by name."""
    return {name: jsons.read(folder / name, top=dict) for name in SETTINGS if os.path.lexists(folder / name)}


def contents(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The bytes of those files that are there, by name; a broken link or a pipe is refused."""
    found = {}
    for name in names:
        if os.path.lexists(folder / name):
            with paths.open_regular(folder / name) as file:
                found[name] = file.read()
    return found


def special_tokens(found: Mapping[str, Mapping], folder: Path, default: Mapping[str, str]) -> dict[str, str]:
    """The special tokens by their roles, with transformers' precedence.

    Args:
      found: of `settings`.
      folder: that they come from.
      default: role -> token.
    """
    decides = ["special_tokens_map.json"] if "added_tokens_decoder" not in found.get(SETTINGS[0], {}) else []
    tokens = dict(default)
    for role in tokens:
        for name in (*decides, SETTINGS[0]):
            token = found.get(name, {}).get(role)
            if token is None or token == "":
                continue
            content = token.get("content") if isinstance(token, Mapping) else token
            if not isinstance(content, str):
                raise InputError("must be a token", file=folder / name, field=role, value=token)
            tokens[role] = content
            break
    return tokens


def added_tokens(found: Mapping[str, Mapping], folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """(id, fields) of the tokens beyond vocab.json, such as those of textual inversion, in the order of their ids."""
    path, key = folder / SETTINGS[0], "added_tokens_decoder"
    decoder = found.get(path.name, {}).get(key, {})
    if not isinstance(decoder, Mapping):
        raise InputError("must be an object", file=path, field=key, value=decoder)
    added = []
    for number, token in decoder.items():
        known = isinstance(token, Mapping) and isinstance(token.get("content"), str)
        if not known or any(not isinstance(token.get(flag, False), bool) for flag in _FLAGS):
            raise InputError("must be a token with true or false for its flags", file=path, field=key, value=token)
        if not number.isdecimal() or len(number) > 9:
            raise InputError("must map ids to tokens", file=path, field=key, value=number)
        added.append((int(number), {name: token[name] for name in ("content", *_FLAGS) if name in token}))
    if not added:
        path = folder / "added_tokens.json"
        for content, number in found.get(path.name, {}).items():
            _check_id(number, content, path)
            added.append((number, {"content": content, "special": False}))
    return sorted(added, key=lambda item: item[0])


def vocabulary(values: Any, path: Path) -> dict[str, int]:
    """Token -> id, as vocab.json or tokenizer.json has it: every id once."""
    if not isinstance(values, dict) or not values:
        raise InputError("must map tokens to ids", file=path, field="vocab", value=values)
    tokens: dict[int, str] = {}
    for token, number in values.items():
        _check_id(number, token, path)
        if number in tokens:
            raise InputError(f"{shown(token)} and {shown(tokens[number])} have the same id", file=path, value=number)
        tokens[number] = token
    return values


def merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of merges.txt."""
    pairs = []
    for line, content in text.lines(path):
        if content.startswith("#version"):
            continue
        parts = content.split(" ")
        if len(parts) != 2 or "" in parts:
            raise InputError("must be two symbols with a space between them", file=path, place=line, value=content)
        pairs.append((parts[0], parts[1]))
    return pairs


def check_merges(pairs: Sequence[tuple[str, str]], vocab: Collection[str], others: Iterable[str], path: Path) -> None:
    """Refuse merges that do not belong to a vocabulary.

    Args:
      pairs: the merges.
      vocab: the tokens: byte symbols, what merges make, special tokens.
      others: special and added tokens, which no merge makes.
      path: the merges' file.

    Raises:
      InputError: a merge twice; one of symbols, or into a token, that the vocabulary lacks; tokens that no merge makes.
    """
    made = set()
    for rank, (left, right) in enumerate(pairs):
        if unknown := [token for token in (left, right, left + right) if token not in vocab]:
            raise InputError(
                f"merge {rank}, {shown(left)} and {shown(right)}: the vocabulary has no token {shown(unknown[0])}",
                file=path,
                remedy="take vocabulary and merges from one checkpoint",
            )
        made.add(left + right)
    if len(set(pairs)) < len(pairs):
        seen: set[tuple[str, str]] = set()
        twice = next(pair for pair in pairs if pair in seen or seen.add(pair))
        raise InputError("the merge occurs twice", file=path, value=" ".join(twice))
    known = {*made, *others}
    if lost := [token for token in vocab if token not in known and len(token.removesuffix(WORD_END)) > 1]:
        raise InputError(
            f"{len(lost):,} tokens of the vocabulary are made by none of its {len(pairs):,} merges, the first is "
            f"{shown(lost[0])}",
            file=path,
            remedy="the file is cut, or vocabulary and merges are not from one checkpoint",
        )


def check_whole(vocab: Mapping[str, int], name: str) -> None:
    """Refuse ids that are not 0, 1, 2, … each once; of all tokens, the added ones too."""
    tokens = sorted(vocab.items(), key=lambda item: item[1])
    for expected, (token, number) in enumerate(tokens):
        if number != expected:
            what = (
                f"no token has the id {expected}"
                if number > expected
                else f"another token has the id of {shown(token)}"
            )
            raise ValueError(f"{name}: {what}; ids must be 0 to {len(tokens) - 1}, each once")


def _check_id(number: Any, token: str, path: Path) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 31:
        raise InputError("must be an id, an integer of at least 0", file=path, field=token, value=number)
