"""The CLIP of a run or a command: a folder, a hub name, or one that comes with `clip_jax`."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

import clip_jax
from clip_jax.files import hub
from launch.reading import paths

EMBEDDED = "embedded:"


class Put(Protocol):
    """What a leaf of the parameters becomes, from its path and NumPy array."""

    def __call__(self, path: str, leaf: np.ndarray, /) -> Any: ...


def locate(name: str) -> Path | None:
    """The folder of a name, or None for a hub name.

    Raises:
      ValueError: it is neither a folder, nor an embedded checkpoint, nor a hub name.
    """
    if name.startswith(EMBEDDED):
        return clip_jax.embedded(name.removeprefix(EMBEDDED))
    folder = paths.path(name, "clip")
    if folder.is_dir():
        return folder
    if hub.is_name(name):
        return None
    raise ValueError(f"{name!r} is neither a folder nor a hub name (owner/repository); or take '{EMBEDDED}scenes'")


def load(name: str, put: Put = lambda path, leaf: leaf) -> clip_jax.Clip:
    """The CLIP of a folder, a hub name, or "embedded:scenes".

    Args:
      name: see above.
      put: see `clip_jax.load`; by default the parameters stay on the host.

    Raises:
      FileNotFoundError: it has no tokenizer files.
      ValueError: see `locate`.
    """
    clip = clip_jax.load(locate(name) or name, put=put)
    if clip.tokenizer is None:
        raise FileNotFoundError(f"clip={name!r} has no tokenizer files, which texts need")
    return clip
