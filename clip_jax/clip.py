"""A CLIP ready to use: parameters, tokenizer and preprocessing from one folder, and back into one."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from clip_jax import model, preprocess, tokenizer
from clip_jax.config import DTYPES, ClipConfig
from clip_jax.files import config_files, hub, layouts, weights

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
# All that `save` may write: a folder with other files in it is not overwritten.
_WRITTEN = {
    *_TOKENIZER_FILES,
    "added_tokens.json",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
}


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP as data and pure functions.

    Compared and hashed by identity, so that its methods can be given to `jax.jit` and the like:
    `jax.jit(clip.encode_text)(clip.params, clip.tokenize(["a red circle"]))`.

    Attributes:
      config: sizes, and how to compute.
      params: the parameter tree (see `clip_jax.model`).
      tokenizer: None where the checkpoint came without one.
      preprocessing: what `preprocess` does to images.
      source: the folder that it was read from, for messages.
    """

    config: ClipConfig
    params: model.Params
    tokenizer: tokenizer.Tokenizer | None
    preprocessing: preprocess.Preprocessing
    source: str = ""

    @property
    def marker_id(self) -> int:
        """Id of the token "$", which stands for a pseudo token: the tokenizer's, without one that of CLIP's vocabulary.

        Raises:
          ValueError: "$" is not one token of the tokenizer, or there is none and the vocabulary is not CLIP's.
        """
        if self.tokenizer is None:
            if self.config.text.vocab_size <= tokenizer.MARKER_ID:
                raise ValueError(
                    f"{self.source or 'this CLIP'} has no tokenizer, and its vocabulary of "
                    f"{self.config.text.vocab_size} is not CLIP's: pass a marker_id"
                )
            return tokenizer.MARKER_ID
        if self.tokenizer.marker_id is None:
            raise ValueError(f'"{tokenizer.MARKER}" is not one token of the tokenizer: pass the marker_id of another')
        return self.tokenizer.marker_id

    def tokenize(self, texts: str | Sequence[str]) -> np.ndarray:
        """Token ids of n texts (or one): int32 (n, t), t the shortest static length that holds the longest text.

        Texts longer than the context length are cut, their end token is kept.

        Raises:
          FileNotFoundError: the checkpoint came without tokenizer files; they are named.
          TypeError, ValueError: something that is not a text, by its index.
        """
        return model.cut(self.config, self._tokenizer("tokenize").encode(texts))

    def preprocess(
        self, images: preprocess.Source | Sequence[preprocess.Source], *, target_pad: bool = False
    ) -> np.ndarray:
        """n images (paths, PIL images or uint8 arrays (h, w, 3); or one) -> float32 (n, s, s, 3).

        `target_pad` pads elongated images first, as composed retrieval does; see `clip_jax.preprocess.pad_to_ratio`.

        Raises:
          FileNotFoundError, ValueError, TypeError: an image that cannot be read, by its file or index.
        """
        return preprocess.preprocess(self.preprocessing, images, target_pad=target_pad)

    def encode_image(
        self, params: model.Params, pixels: jax.Array, *, intermediates: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Unnormalised float32 embeddings (n, d) of pixels (n, s, s, 3); see `clip_jax.model.encode_image`."""
        return model.encode_image(self.config, params, pixels, intermediates=intermediates)

    def encode_text(
        self,
        params: model.Params,
        ids: jax.Array,
        *,
        pseudo_tokens: jax.Array | None = None,
        marker_id: int | None = None,
        intermediates: bool = False,
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Unnormalised float32 embeddings (n, d) of ids (n, t); see `clip_jax.model.encode_text`.

        Args:
          params: the parameters.
          ids: of `tokenize`.
          pseudo_tokens: (n, w) or (n, k, w): embeddings in place of those of the marker.
          marker_id: the marker, this checkpoint's `marker_id` by default.
          intermediates: also return a dict of what lies in between.

        Raises:
          ValueError: shapes that do not fit; a text without its markers. Inside `jit` values cannot be looked at: call
            `clip_jax.model.check_marker` where the ids are made.
        """
        if pseudo_tokens is not None:
            marker_id = self.marker_id if marker_id is None else marker_id
            if not isinstance(ids, jax.core.Tracer):
                model.check_marker(ids, marker_id, pseudo_tokens.shape[1] if pseudo_tokens.ndim == 3 else None)
        return model.encode_text(
            self.config, params, ids, pseudo_tokens=pseudo_tokens, marker_id=marker_id, intermediates=intermediates
        )

    def _tokenizer(self, purpose: str) -> tokenizer.Tokenizer:
        if self.tokenizer is None:
            raise FileNotFoundError(
                f"{purpose} needs a tokenizer, and {self.source or 'this CLIP'} came without one: put the checkpoint's "
                "tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json and special_tokens_map.json into "
                "its folder and load it again"
            )
        return self.tokenizer


def load(
    source: str | Path,
    *,
    dtype: Any = None,
    put: Callable[[str, np.ndarray], Any] = lambda path, leaf: jax.device_put(leaf),
) -> Clip:
    """A CLIP from a folder or from the Hugging Face hub.

    Read are Hugging Face's layout (config.json with safetensors, sharded or not, old Flax msgpack files, or PyTorch's)
    and OpenCLIP's (open_clip_config.json); `clip_jax.files.weights` has the order of preference. Nothing is filled in:
    every tensor of the model has to be there in its shape, and no other. Weights stored in half precision are widened.

    A folder without tokenizer files loads, only `tokenize` is missing. Without preprocessor_config.json images are
    prepared as for all published CLIPs (bicubic, their one mean and standard deviation) at the tower's size.

    Args:
      source: a folder, or a hub name such as "openai/clip-vit-base-patch32". A folder of that name goes first.
      dtype: of the parameters and of the computation: "float32" (None), "bfloat16", "float16"; the scalar logit_scale
        stays float32. To train in bfloat16 on float32 parameters, load without it and replace `config.dtype`.
      put: where each leaf of the parameters goes: from its path ("image/blocks/up/kernel") and numpy array to what
        `params` shall hold. The default places it on the default device; give a function that splits it, by the rules
        of `clip_jax.sharding`, for towers larger than one device's memory. The host holds one leaf at a time.

    Raises:
      FileNotFoundError: no such folder, or files are missing from it.
      ConnectionError: a hub name, and the hub cannot be reached.
      ValueError: corrupt files; config fields, tensors or a tokenizer that do not fit; the file is named.
      ImportError: only a PyTorch file is there, and PyTorch is not installed.
    """
    dtype = _dtype(dtype)
    folder = _folder(source)
    found = _found(folder)
    with _naming(folder / found.config):
        config = _read_config(folder, found)
    config = replace(config, dtype=dtype)
    words = tokenizer.load(folder, config)
    images = preprocess.load(folder, config)
    tensors = weights.read(folder, found)
    with _naming(folder / found.weights):
        params = layouts.to_params(_layout(found, tensors), tensors, config, dtype=dtype, put=put)
    return Clip(config, params, words, images, str(folder))


def save(clip: Clip, folder: str | Path, *, dtype: Any = None) -> None:
    """Write a CLIP as Hugging Face lays it out: config.json, model.safetensors, tokenizer and preprocessing.

    `clip_jax.load` and transformers' CLIPModel, CLIPTokenizer and CLIPImageProcessor read the folder. It is written
    beside its place and moved there when it is whole. A folder that `save` wrote is replaced; one that holds any other
    file is left alone. In a program of many processes, call it in one of them.

    Args:
      clip: to write.
      folder: to create or replace.
      dtype: of the stored weights ("float16" halves the file), None for the parameters' own. logit_scale keeps its own.

    Raises:
      FileExistsError: `folder` is a file, or holds something else than a CLIP that was saved; it is named.
      ValueError: parameters of other shapes than the config's, or an unknown dtype.
    """
    target = Path(os.path.realpath(folder))
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _write(clip, temporary, dtype)
        _move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def embedded(name: str) -> Path:
    """The folder of a checkpoint that comes with this package, for `load`.

    Raises:
      ValueError: there is none of that name; lists those there are.
    """
    folders = _embedded()
    if name not in folders:
        raise ValueError(f"no embedded checkpoint {name!r}; there are {', '.join(sorted(folders)) or 'none'}")
    return folders[name]


def _embedded() -> dict[str, Path]:
    root = Path(str(resources.files("clip_jax"))) / "checkpoints"
    return {path.parent.name: path.parent for path in root.glob(f"*/{weights.HUGGINGFACE_CONFIG}")}


# -- Reading ----------------------------------------------------------------------------------


def _folder(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{path} is a file; give the folder of the checkpoint, with config.json in it")
    if isinstance(source, str) and hub.is_name(source):
        return hub.download(source)
    names = ", ".join(f"clip_jax.embedded({name!r})" for name in sorted(_embedded())) or "none"
    raise FileNotFoundError(
        f"there is no folder {str(source)!r}, and it is no hub name (owner/repository). Checkpoints that come with the "
        f"package: {names}"
    )


def _found(folder: Path) -> weights.Found:
    files = sorted(path.name for path in folder.iterdir())
    found = weights.find(files, folder)
    if found is None:
        there = ", ".join(files) or "nothing"
        raise FileNotFoundError(f"{folder} is no CLIP checkpoint. It holds {there}; needed: {weights.known_names()}")
    return found


def _read_config(folder: Path, found: weights.Found) -> ClipConfig:
    values = weights.read_json(folder / found.config)
    if found.config == weights.OPENCLIP_CONFIG:
        return config_files.from_openclip(values)
    towers = {"clip_text_model": "text", "clip_vision_model": "image"}
    if (kind := values.get("model_type")) in towers:
        raise ValueError(
            f"this is the {towers[kind]} tower of a CLIP by itself (model_type {kind}); a checkpoint with both towers "
            "(model_type clip) is needed"
        )
    return config_files.from_huggingface(values)


def _layout(found: weights.Found, tensors: dict[str, layouts.Tensor]) -> layouts.Layout:
    if found.config == weights.OPENCLIP_CONFIG:
        return layouts.openclip(tensors)
    return layouts.FLAX if found.weights.endswith(".msgpack") else layouts.HUGGINGFACE


def _dtype(dtype: Any) -> str:
    if dtype is None:
        return "float32"
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = dtype
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; there are {', '.join(DTYPES)}")
    if name == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("dtype float64 needs jax.config.update('jax_enable_x64', True)")
    return name


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name in front of what is wrong with its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# -- Writing ----------------------------------------------------------------------------------


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; give a folder")
    files = {path.name for path in target.iterdir()} if target.exists() else set()
    if strangers := sorted(files - _WRITTEN):
        raise FileExistsError(
            f"{target} holds what a saved CLIP does not and would be lost: {', '.join(strangers)}. Choose another "
            "folder or remove them"
        )


def _write(clip: Clip, folder: Path, dtype: Any) -> None:
    params = _stored(clip, dtype)
    save_file(layouts.to_tensors(layouts.HUGGINGFACE, params), folder / "model.safetensors", metadata={"format": "pt"})
    kind = params["text"]["tokens"].dtype.name
    _write_json(folder / "config.json", config_files.to_huggingface(clip.config) | {"dtype": kind})
    _write_json(folder / "preprocessor_config.json", preprocess.to_huggingface(clip.preprocessing))
    if clip.tokenizer is not None:
        clip.tokenizer.save(folder)
    os.chmod(folder, 0o755)  # mkdtemp gives 0700
    for path in folder.iterdir():
        os.chmod(path, 0o644)
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _stored(clip: Clip, dtype: Any) -> model.Params:
    """The parameters on the host, as they will be stored."""
    flat = traverse_util.flatten_dict(jax.device_get(clip.params), sep="/")
    shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
    wanted = {path: leaf.shape for path, leaf in layouts.template(clip.config).items()}
    if wrong := sorted(path for path in shapes.keys() | wanted.keys() if shapes.get(path) != wanted.get(path)):
        raise ValueError(f"these parameters are not those of the config: {', '.join(wrong)}")
    if dtype is not None:
        name = _dtype(dtype)
        flat = {path: leaf if path == "logit_scale" else leaf.astype(name) for path, leaf in flat.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _move(new: Path, target: Path) -> None:
    """Put a whole folder in its place; a folder that is there goes only when the new one has come."""
    if not target.exists() or not any(target.iterdir()):
        os.rename(new, target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.rename(target, aside / "old")
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside / "old", target)
        os.rmdir(aside)
        raise
    shutil.rmtree(aside)
