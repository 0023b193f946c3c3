"""Captions from files, for LinCIR's training and for the generation of triplets."""

from pathlib import Path

from absl import logging

from clip_jax.tokenizer import MARKER
from launch.reading import InputError, forms, paths

ENDINGS = (".txt", ".jsonl", ".csv", ".tsv", ".json")


def clean(text: str) -> str:
    """A caption as the published trainings take it: without the marker "$", "person" where names were taken out."""
    return text.replace("<PERSON>", "person").replace(MARKER, "")


def read(path: str | Path, *, column: str = "caption") -> list[str]:
    """The captions of a file, cleaned, without blank ones and repetitions, in the order of their first occurrence.

    Args:
      path: see `launch.reading.forms.texts`.
      column: the key or column of the captions.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another ending, a line that cannot be read or lacks the column (with its number), or no caption.
    """
    path = paths.path(path, "captions")
    texts = forms.texts(path, column, endings=ENDINGS, setting="captions")
    written = [text for _, text in texts]
    cleaned = [clean(text) for text in written]
    if changed := sum(text != other for text, other in zip(written, cleaned, strict=True)):
        logging.warning('%s: %d captions held "$" or "<PERSON>", which are taken out', path, changed)
    captions = [caption for caption in dict.fromkeys(" ".join(text.split()) for text in cleaned) if caption]
    if not captions:
        raise InputError("contains no caption", file=path)
    return captions
