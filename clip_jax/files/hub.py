"""Checkpoints from the Hugging Face hub: the files that `clip_jax.load` reads, and no others."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from clip_jax.files import weights

# Read besides the weights, all small. All of them are fetched, so that a cached folder is complete without the hub.
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
    """The local folder with a repository's checkpoint, in the hub's cache; fetched where it is not there yet.

    Without the hub (no network, or HF_HUB_OFFLINE=1) what the cache has is taken.

    Args:
      name: "owner/repository".

    Raises:
      FileNotFoundError: there is no such repository, or no access to it, or no CLIP in it.
      ConnectionError: the hub cannot be reached and the cache has not the checkpoint; says how to fetch it elsewhere.
    """
    try:
        files = huggingface_hub.HfApi().list_repo_files(name)
    except errors.RepositoryNotFoundError as error:  # also for private and gated ones
        raise FileNotFoundError(
            f"{name!r} is neither a folder here nor a repository that the hub shows you (log in with `hf auth login` "
            f"if it is private or gated): {error}"
        ) from error
    except (OSError, errors.HTTPError) as error:
        return _cached(name, error)
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_SMALL)))
        found = weights.find(files, folder)
        if found is not None:
            wanted = [*_SMALL, *weights.patterns(found)]
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (OSError, errors.HTTPError) as error:
        raise ConnectionError(_elsewhere(name, error)) from error
    raise FileNotFoundError(
        f"the repository {name!r} holds no CLIP checkpoint. Readable: {weights.known_names()}. It has: "
        f"{', '.join(sorted(files))}"
    )


def _cached(name: str, error: Exception) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_SMALL), local_files_only=True))
    except (OSError, errors.HTTPError):
        raise ConnectionError(_elsewhere(name, error)) from error


def _elsewhere(name: str, error: Exception) -> str:
    folder = name.split("/")[1]
    return (
        f"there is no folder {name!r} here, and it cannot be fetched from the hub ({type(error).__name__}: {error}). "
        f"Where there is network run `hf download {name} --local-dir {folder}`, bring the folder here and use "
        f'clip_jax.load("{folder}")'
    )
