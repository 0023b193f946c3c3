"""Checkpoints from the Hugging Face hub: only the files that `clip_jax.load` reads."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from clip_jax.files import weights

# What fails without a network; the hub's HTTP library has changed its name before, so its error is taken from here.
_UNREACHABLE = (OSError, errors.HTTPError)  # pyright: ignore[reportPrivateImportUsage]
# Small files, read besides the weights. All are fetched, so that a cached folder is complete without the hub.
_SMALL = (
    weights.HUGGINGFACE_CONFIG,
    weights.OPENCLIP_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def is_name(text: str) -> bool:
    """Whether a text could name a repository on the hub: "openai/clip-vit-base-patch32"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) is not None


def download(name: str) -> Path:
    """The local folder with a repository's checkpoint, in the hub's cache; fetched if necessary.

    Without the hub (no network, or HF_HUB_OFFLINE=1) the cached files are used.

    Args:
      name: "owner/repository".

    Raises:
      FileNotFoundError: no such repository, no access to it, or no CLIP in it.
      ConnectionError: the hub cannot be reached and the checkpoint is not in the cache; the message says how to fetch
        it elsewhere.
    """
    try:
        files = huggingface_hub.HfApi().list_repo_files(name)
    except errors.RepositoryNotFoundError as error:  # also for private and gated ones
        raise FileNotFoundError(
            f"{name!r} is neither a local folder nor a repository that you can access (log in with `hf auth login` "
            f"if it is private or gated): {error}"
        ) from error
    except _UNREACHABLE as error:
        return _cached(name, error)
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_SMALL)))
        checkpoint = weights.find(files, folder)
        if checkpoint is not None:
            patterns = [*_SMALL, *weights.patterns(checkpoint)]
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except _UNREACHABLE as error:
        raise ConnectionError(_elsewhere(name, error)) from error
    raise FileNotFoundError(
        f"the repository {name!r} holds no CLIP checkpoint. Readable: {weights.known_names()}. It has: "
        f"{', '.join(sorted(files))}"
    )


def _cached(name: str, error: Exception) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_SMALL), local_files_only=True))
    except _UNREACHABLE:
        raise ConnectionError(_elsewhere(name, error)) from error


def _elsewhere(name: str, error: Exception) -> str:
    folder = name.split("/")[1]
    return (
        f"no local folder {name!r}, and it cannot be fetched from the hub ({type(error).__name__}: {error}). On a "
        f"machine with network access run `hf download {name} --local-dir {folder}`, copy the folder here and use "
        f'clip_jax.load("{folder}")'
    )
