"""Texts to token ids: CLIP's byte-level BPE, read from a checkpoint's files or built for a small vocabulary.

The ids are those of transformers' `CLIPTokenizer` (version 5): NFC normalisation, runs of white space as one space,
lower case, byte-level BPE with `</w>` at the end of words. OpenAI's original also repairs broken encodings and HTML
entities (ftfy); like transformers, this one does not.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from clip_jax.config import ClipConfig, TextTower
from clip_jax.files import tokenizer_files
from launch.reading import InputError, jsons

MARKER = "$"  # stands for a pseudo token in a text
MARKER_ID = 259  # its id in CLIP's vocabulary: 256 bytes, then the same as ends of words, where "$" is the fourth
_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", tokenizer_files.WORD_END
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_T = TypeVar("_T")
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """CLIP's tokenizer.

    Attributes:
      backend: splits and merges; adds the start and the end token, neither pads nor truncates.
      context_length: positions of the text tower.
      start_id, end_id, pad_id: ids of the special tokens. Padding is often the end token again.
      vocab_size: rows that the embedding table needs: the largest id plus one.
      marker_id: id of "$" (259 in CLIP's vocabulary), or None if it is not one token. Surround the marker with white
        space: "a $ , red" has it, in "a $, red" it is part of another word.
      files: name -> content of the files that it was read from or that were made for it.
    """

    backend: tokenizers.Tokenizer
    context_length: int
    start_id: int
    end_id: int
    pad_id: int
    vocab_size: int
    marker_id: int | None
    files: Mapping[str, bytes]

    def encode(self, texts: str | Sequence[str], length: int | None = None) -> np.ndarray:
        """Token ids of texts, each between the start and the end token, padded.

        Args:
          texts: n texts, or one.
          length: columns, 2 to `context_length` (the default). Longer texts lose their last tokens but keep the end
            token.

        Returns:
          int32 (n, length).

        Raises:
          TypeError, ValueError: an item is not a text or not valid Unicode (the message has its index); a length out
            of bounds.
        """
        length = self.context_length if length is None else length
        if not 2 <= length <= self.context_length:
            raise ValueError(f"length={length} must lie between 2 and the context length, {self.context_length}")
        texts = [texts] if isinstance(texts, str) else list(texts)
        _check_texts(texts)
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        for row, encoding in zip(ids, self.backend.encode_batch_fast(texts), strict=True):
            tokens = encoding.ids
            if len(tokens) > length:
                tokens = [*tokens[: length - 1], self.end_id]
            row[: len(tokens)] = tokens
        return ids

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json.

        Files that the tokenizer was read from are written unchanged.
        `transformers.CLIPTokenizer.from_pretrained(folder)` reads the result.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {**_files(self), **self.files}.items():
            (folder / name).write_bytes(content)


def load(folder: str | Path, config: ClipConfig) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, from tokenizer.json or else from vocab.json and merges.txt.

    Args:
      folder: in Hugging Face's layout.
      config: of the checkpoint.

    Returns:
      None if the folder has none of the three files.

    Raises:
      FileNotFoundError: vocab.json without merges.txt, or vice versa.
      ValueError: a file cannot be read; vocabulary, merges and added tokens do not belong together; or the tokenizer
        does not fit the text tower: another vocabulary size, or another end token than the tower pools at.
    """
    folder = Path(folder)
    names = ("vocab.json", "merges.txt", "tokenizer.json")
    files = tokenizer_files.contents(folder, (*names, *tokenizer_files.SETTINGS))
    if not files.keys() & set(names):
        return None
    settings = tokenizer_files.settings(folder)
    special = tokenizer_files.special_tokens(settings, folder, _roles(_START, _END, _END, _END))
    if "tokenizer.json" in files:
        backend = _read_backend(folder / "tokenizer.json")
    else:
        if missing := [name for name in names[:2] if name not in files]:
            raise FileNotFoundError(f"{folder} lacks {missing[0]}; a tokenizer needs it, or else tokenizer.json")
        path = folder / names[0]
        vocab = tokenizer_files.vocabulary(jsons.read(path, top=dict), path)
        merges, added = tokenizer_files.merges(folder / names[1]), tokenizer_files.added_tokens(settings, folder)
        others = {*special.values(), *(token["content"] for _, token in added)}
        tokenizer_files.check_merges(merges, vocab, others, folder / names[1])
        backend = _backend(vocab, merges, special, str(path))
        _add_tokens(backend, added, folder)
    tokenizer = _finish(backend, special, config.text.context_length, files, name=str(folder))
    _check_fit(tokenizer, config.text, folder)
    tokenizer_files.check_whole(backend.get_vocab(), f"the tokenizer in {folder}")
    return tokenizer


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, whose vocabulary and merges have to belong together."""
    content = jsons.read(path, top=dict)
    with _reading(path):
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.no_truncation()
    backend.no_padding()
    model = content["model"]
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise InputError("must be a model of type 'BPE', CLIP's", file=path, field="model", value=model)
    if model.get("dropout"):
        raise InputError("leaves out merges at random: the same text would have other ids each time; set it to null",
                         file=path, field="model.dropout", value=model["dropout"])  # fmt: skip
    vocab = tokenizer_files.vocabulary(model["vocab"], path)
    merges: Any = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    tokenizer_files.check_merges(merges, vocab, added, path)
    return backend


def build(texts: Iterable[str], *, context_length: int) -> Tokenizer:
    """A small tokenizer of CLIP's kind in which every word of the given texts is one token; any other text works too.

    Ids in CLIP's order: 256 byte symbols, the same at the end of a word (so that "$" is 259 here too), one for each
    merge, start and end token. The same set of words gives the same tokenizer. Intended for hundreds of words: the time
    grows with the square of their number.

    Args:
      texts: words or whole texts, or one text; words in CLIP's sense: "t-shirt" is three, every digit is one.
      context_length: positions of the text tower.

    Raises:
      ValueError: context_length < 2.
    """
    if context_length < 2:
        raise ValueError(f"context_length={context_length} leaves no room for the start and the end token")
    texts = [texts] if isinstance(texts, str) else texts
    normalizer, splitter = _normalizer(), _splitter()
    words = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    merges = _learn_merges(words)
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + _WORD_END for s in symbols), *(a + b for a, b in merges), _START, _END]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    special = _roles(_START, _END, _END, _END)
    backend = _backend(vocab, merges, special, "the built vocabulary")
    return _finish(backend, special, context_length, {}, name="the built tokenizer")


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def _splitter() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _roles(*values: _T) -> dict[str, _T]:
    """Values for the special tokens, by their roles."""
    return dict(zip(_SPECIAL, values, strict=True))


def _backend(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Mapping[str, str], name: str
) -> tokenizers.Tokenizer:
    """CLIP's pipeline around a vocabulary."""
    if missing := sorted({special["bos_token"], special["eos_token"]} - set(vocab)):
        raise ValueError(f"{name} lacks the special token {missing[0]!r}")
    bpe = models.BPE(
        vocab=dict(vocab),
        merges=list(merges),
        continuing_subword_prefix="",
        end_of_word_suffix=_WORD_END,
        unk_token=special["unk_token"],
    )
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer, backend.pre_tokenizer, backend.decoder = _normalizer(), _splitter(), decoders.ByteLevel()
    end, start = ((token, vocab[token]) for token in (special["eos_token"], special["bos_token"]))
    backend.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return backend


def _finish(
    backend: tokenizers.Tokenizer, special: Mapping[str, str], context_length: int, files: Mapping[str, bytes], *, name
) -> Tokenizer:
    """A tokenizer with the ids that its backend gives."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [token for token in dict.fromkeys(special.values()) if token not in known]
    if unknown := [token for token in missing if backend.token_to_id(token) is None]:
        raise ValueError(f"{name}: the special token {unknown[0]!r} is not in the vocabulary")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    ends = backend.encode("").ids
    if len(ends) != 2:
        raise ValueError(
            f"{name}: CLIP adds a start and an end token to a text, this tokenizer adds {len(ends)} tokens"
        )
    marker = backend.encode(MARKER).ids[1:-1]
    return Tokenizer(
        backend=backend,
        context_length=context_length,
        start_id=ends[0],
        end_id=ends[1],
        pad_id=_id(backend, special["pad_token"]),
        vocab_size=max(backend.get_vocab().values()) + 1,
        marker_id=marker[0]
        if len(marker) == 1 and marker[0] not in ends
        else None,  # the end token is also the unknown token
        files=files,
    )


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary has."""
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise ValueError(f"the special token {token!r} is not in the vocabulary")
    return token_id


def _add_tokens(backend: tokenizers.Tokenizer, added: Sequence[tuple[int, dict]], folder: Path) -> None:
    for i, token in added:
        backend.add_tokens([AddedToken(**token)])
        if (place := backend.token_to_id(token["content"])) != i:
            raise ValueError(
                f"{folder}: the added token {token['content']!r} has id {i} in its file, but its place is {place}"
            )


def _check_fit(tokenizer: Tokenizer, text: TextTower, folder: Path) -> None:
    if tokenizer.vocab_size != text.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the text tower's vocabulary "
            f"{text.vocab_size}: they belong to different checkpoints. Replace the tokenizer's files by those of the "
            "checkpoint"
        )
    pooled = tokenizer.vocab_size - 1 if text.end_rule == "largest_id" else text.eos_token_id
    if tokenizer.end_id != pooled:
        raise ValueError(
            f"the tokenizer in {folder} ends texts with id {tokenizer.end_id}, the text tower pools at id {pooled} "
            f"(end rule {text.end_rule}). If the tokenizer is right, set text_config.eos_token_id to "
            f"{tokenizer.end_id} in config.json"
        )


def _check_texts(texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is a {type(text).__name__}, not a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text {i} is not valid Unicode: {error}") from error


@contextlib.contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    """Name the file in errors raised while it is parsed."""
    try:
        yield
    except Exception as error:  # the library's parsers raise Exception itself
        raise ValueError(f"{path} cannot be read as a tokenizer file: {error}") from error


def _byte_symbols() -> list[str]:
    """The 256 characters that represent bytes in GPT-2's and CLIP's vocabularies, in the order of their ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges, most frequent pair first (ties in the order of the symbols), until every word is one symbol."""
    ranks: dict[tuple[str, str], int] = {}
    pieces = [(*word[:-1], word[-1] + _WORD_END) for word in sorted(words)]
    while pieces := [symbols for symbols in pieces if len(symbols) > 1]:
        counts = Counter(pair for symbols in pieces for pair in pairwise(symbols))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        ranks[best] = len(ranks)
        pieces = [_merge(symbols, ranks) if best in pairwise(symbols) else symbols for symbols in pieces]
    return list(ranks)


def _merge(symbols: tuple[str, ...], ranks: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """Join pairs of symbols, lowest rank first and leftmost first, until no pair has a rank."""
    while len(symbols) > 1:
        rank, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols)))
        if rank == len(ranks):
            break
        symbols = (*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :])
    return symbols


def _files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer in Hugging Face's layout."""
    backend = tokenizer.backend
    whole = backend.to_str(pretty=True)
    model = json.loads(whole)["model"]
    tokens = {role: backend.id_to_token(i) for role, i in _special_ids(tokenizer, model).items()}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, **tokens}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges", [])]
    return {
        "vocab.json": _dump(model["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "tokenizer.json": whole.encode(),
        "tokenizer_config.json": _dump(settings),
        "special_tokens_map.json": _dump(tokens),
    }


def _special_ids(tokenizer: Tokenizer, model: Mapping) -> dict[str, int]:
    unknown = model.get("unk_token")
    unknown = tokenizer.end_id if unknown is None else _id(tokenizer.backend, unknown)
    return _roles(tokenizer.start_id, tokenizer.end_id, unknown, tokenizer.pad_id)


def _dump(value: Mapping) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
