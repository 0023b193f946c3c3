"""The CLIP of a run or a command: a folder, a hub name, or one that comes with `clip_jax`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import clip_jax
from clip_jax.files import hub

EMBEDDED = "embedded:"


def locate(name: str) -> Path | None:
    """The folder that a name means, or None for a name of the hub.

    Raises:
      ValueError: it is no folder, no embedded checkpoint and no name of the hub.
    """
    if name.startswith(EMBEDDED):
        return clip_jax.embedded(name.removeprefix(EMBEDDED))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if hub.is_name(name):
        return None
    raise ValueError(f"{name!r} is neither a folder nor a hub name (owner/repository); or take '{EMBEDDED}scenes'")


def load(name: str, put: Callable[[str, np.ndarray], Any] = lambda path, leaf: leaf) -> clip_jax.Clip:
    """The CLIP of a folder, a hub name, or "embedded:scenes".

    Args:
      name: of it.
      put: where each leaf of the parameters goes, see `clip_jax.load`; by default it stays on the host.

    Raises:
      FileNotFoundError: it came without tokenizer files.
      ValueError: see `locate`.
    """
    clip = clip_jax.load(locate(name) or name, put=put)
    if clip.tokenizer is None:
        raise FileNotFoundError(f"clip={name!r} came without tokenizer files: modifications are text")
    return clip
