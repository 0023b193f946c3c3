"""Captions from files, for LinCIR's training and for the generation of triplets."""

from pathlib import Path

from launch.reading import InputError, forms, paths

ENDINGS = (".txt", ".jsonl", ".csv", ".tsv", ".json")


def read(path: str | Path, *, column: str = "caption") -> list[str]:
    """The captions of a file, without blank ones and repetitions, in the order of their first occurrence.

    Args:
      path: see `launch.reading.forms.texts`.
      column: the key or column of the captions.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another ending, a line that cannot be read or lacks the column (with its number), or no caption.
    """
    path = paths.path(path, "captions")
    texts = forms.texts(path, column, endings=ENDINGS, setting="captions")
    captions = list(dict.fromkeys(" ".join(text.split()) for _, text in texts))
    if not captions:
        raise InputError("contains no caption", file=path)
    return captions
