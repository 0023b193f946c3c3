"""A CLIP ready to use: parameters, tokenizer and preprocessing from one folder, and back into one."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import jax
import numpy as np
from flax import traverse_util
from jax.core import Tracer
from safetensors.numpy import save_file

from clip_jax import model, preprocess, tokenizer
from clip_jax.config import DTYPES, ClipConfig
from clip_jax.files import config_files, layouts, weights
from clip_jax.files.sources import folder_of
from clip_jax.tokenizer import Tokenizer
from launch import files as atomic

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
# All files that `save` may write; a folder with any other file is not overwritten.
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
      tokenizer: None if the checkpoint came without one.
      preprocessing: what `preprocess` does to images.
      source: the folder that the CLIP was read from, for messages.
    """

    config: ClipConfig
    params: model.Params
    tokenizer: Tokenizer | None
    preprocessing: preprocess.Preprocessing
    source: str = ""

    @property
    def marker_id(self) -> int:
        """Id of the token "$", which stands for a pseudo token: the tokenizer's or, without one, CLIP's.

        Raises:
          ValueError: "$" is not one token of the tokenizer; no tokenizer, and the vocabulary is not CLIP's.
        """
        if self.tokenizer is None:
            if self.config.text.vocab_size <= tokenizer.MARKER_ID:
                raise ValueError(
                    f"{self.source or 'this CLIP'} has no tokenizer, and its vocabulary of "
                    f"{self.config.text.vocab_size} is not CLIP's: pass a marker_id"
                )
            return tokenizer.MARKER_ID
        if self.tokenizer.marker_id is None:
            raise ValueError(f'"{tokenizer.MARKER}" is not one token of the tokenizer: pass another marker_id')
        return self.tokenizer.marker_id

    def tokenize(self, texts: str | Sequence[str]) -> np.ndarray:
        """Token ids of n texts (or one): int32 (n, t), t the shortest static length that holds the longest text.

        Texts longer than the context length are cut, their end token is kept.

        Raises:
          FileNotFoundError: the checkpoint came without tokenizer files; the message names them.
          TypeError, ValueError: an item is not a text; the message has its index.
        """
        return model.cut(self.config, self._tokenizer("tokenize").encode(texts))

    def preprocess(
        self, images: preprocess.Source | Sequence[preprocess.Source], *, target_pad: bool = False
    ) -> np.ndarray:
        """n images (paths, PIL images or uint8 arrays (h, w, 3); or one) -> float32 (n, s, s, 3).

        `target_pad` pads elongated images first, as composed retrieval does; see `clip_jax.preprocess.pad_to_ratio`.

        Raises:
          FileNotFoundError, ValueError, TypeError: an image cannot be read; the message has its file or index.
        """
        return preprocess.preprocess(self.preprocessing, images, target_pad=target_pad)

    @overload
    def encode_image(
        self, params: model.Params, pixels: model.Array, *, intermediates: Literal[False] = False
    ) -> jax.Array: ...

    @overload
    def encode_image(
        self, params: model.Params, pixels: model.Array, *, intermediates: Literal[True]
    ) -> tuple[jax.Array, model.Intermediates]: ...

    def encode_image(
        self, params: model.Params, pixels: model.Array, *, intermediates: bool = False
    ) -> jax.Array | tuple[jax.Array, model.Intermediates]:
        """Unnormalised float32 embeddings (n, d) of pixels (n, s, s, 3); see `clip_jax.model.encode_image`."""
        return model.encode_image(self.config, params, pixels, intermediates=intermediates)

    @overload
    def encode_text(
        self,
        params: model.Params,
        ids: model.Array,
        *,
        pseudo_tokens: model.Array | None = None,
        marker_id: int | None = None,
        intermediates: Literal[False] = False,
    ) -> jax.Array: ...

    @overload
    def encode_text(
        self,
        params: model.Params,
        ids: model.Array,
        *,
        pseudo_tokens: model.Array | None = None,
        marker_id: int | None = None,
        intermediates: Literal[True],
    ) -> tuple[jax.Array, model.Intermediates]: ...

    def encode_text(
        self,
        params: model.Params,
        ids: model.Array,
        *,
        pseudo_tokens: model.Array | None = None,
        marker_id: int | None = None,
        intermediates: bool = False,
    ) -> jax.Array | tuple[jax.Array, model.Intermediates]:
        """Unnormalised float32 embeddings (n, d) of ids (n, t); see `clip_jax.model.encode_text`.

        Args:
          params: the parameters.
          ids: of `tokenize`.
          pseudo_tokens: (n, w) or (n, k, w): embeddings in place of those of the marker.
          marker_id: the marker, this checkpoint's `marker_id` by default.
          intermediates: also return a dict of intermediate results.

        Raises:
          ValueError: shapes that do not fit; a text without its markers. Values cannot be checked inside `jit`: call
            `clip_jax.model.check_marker` where the ids are made.
        """
        if pseudo_tokens is not None:
            marker_id = self.marker_id if marker_id is None else marker_id
            if not isinstance(ids, Tracer):
                model.check_marker(ids, marker_id, pseudo_tokens.shape[1] if pseudo_tokens.ndim == 3 else None)
        return model.encode_text(
            self.config, params, ids, pseudo_tokens=pseudo_tokens, marker_id=marker_id, intermediates=intermediates
        )

    def _tokenizer(self, purpose: str) -> Tokenizer:
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
    put: layouts.PutLeaf = lambda path, leaf: jax.device_put(leaf),
) -> Clip:
    """A CLIP from a folder or from the Hugging Face hub.

    Reads Hugging Face's layout (config.json with safetensors, sharded or not, old Flax msgpack files, or PyTorch's)
    and OpenCLIP's (open_clip_config.json); `clip_jax.files.weights` has the order of preference. The files must hold
    exactly the tensors of the model, each in its shape. Weights stored in half precision are widened.

    A folder without tokenizer files loads, but cannot `tokenize`. Without preprocessor_config.json images are prepared
    as for all published CLIPs (bicubic, CLIP's mean and standard deviation) at the tower's size.

    Args:
      source: a folder, a hub name such as "openai/clip-vit-base-patch32" (a folder of that name takes precedence), or a
        checkpoint that comes with the package, "embedded:scenes".
      dtype: of the parameters and of the computation: "float32" (None), "bfloat16", "float16"; the scalar logit_scale
        stays float32. To train in bfloat16 on float32 parameters, load without it and replace `config.dtype`.
      put: where each leaf of the parameters goes. The default places it on the default device; give a function that
        splits it, by the rules of `clip_jax.sharding`, for towers larger than one device's memory. The host holds one
        leaf at a time.

    Raises:
      FileNotFoundError: no such folder, or files are missing from it.
      ConnectionError: a hub name, and the hub cannot be reached.
      ValueError: corrupt files; config fields, tensors or a tokenizer that do not fit; the error names the file.
      ImportError: the weights are a PyTorch file, and PyTorch is not installed.
    """
    clip = outline(source, dtype=dtype)
    folder = Path(clip.source)
    files = _files(folder)
    tensors = weights.read(folder, files)
    with _naming(folder / files.weights):
        params = layouts.to_params(_layout(files, tensors), tensors, clip.config, dtype=clip.config.dtype, put=put)
    return replace(clip, params=params)


def outline(source: str | Path, *, dtype: Any = None) -> Clip:
    """A checkpoint without its weights: `params` holds shapes, `jax.ShapeDtypeStruct`s.

    Reads the small files only, so it takes no time and no memory, however large the towers; of a hub name it fetches
    the weights too.

    Args:
      source, dtype: as for `load`.

    Raises: as `load`.
    """
    kind = _dtype(dtype)
    folder = folder_of(source)
    files = _files(folder)
    with _naming(folder / files.config):
        config = _read_config(folder, files)
    config = replace(config, dtype=kind)
    shapes = {
        path: leaf if path == "logit_scale" else jax.ShapeDtypeStruct(leaf.shape, np.dtype(kind))
        for path, leaf in layouts.template(config).items()
    }
    params = traverse_util.unflatten_dict(shapes, sep="/")
    return Clip(config, params, tokenizer.load(folder, config), preprocess.load(folder, config), str(folder))


def save(clip: Clip, folder: str | Path, *, dtype: Any = None) -> None:
    """Write a CLIP in Hugging Face's layout: config.json, model.safetensors, tokenizer and preprocessing.

    `clip_jax.load` and transformers' CLIPModel, CLIPTokenizer and CLIPImageProcessor read the folder. It is written
    under a temporary name and moved into place when it is complete. A folder that `save` wrote is replaced; one that
    holds any other file is left alone. In a program of many processes, call it in one of them.

    Args:
      clip: to write.
      folder: to create or replace.
      dtype: of the stored weights ("float16" halves the file), None to keep that of the parameters. logit_scale is
        never converted.

    Raises:
      FileExistsError: `folder` is a file, or holds files that are not of a saved CLIP; the error names them.
      ValueError: the parameters do not have the shapes of the config; an unknown dtype.
    """
    target = Path(os.path.realpath(folder))
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing_folder(target) as temporary:
        _write(clip, temporary, dtype)


# -- Reading ----------------------------------------------------------------------------------


def _files(folder: Path) -> weights.CheckpointFiles:
    names = sorted(path.name for path in folder.iterdir())
    files = weights.find(names, folder)
    if files is None:
        content = ", ".join(names) or "nothing"
        raise FileNotFoundError(
            f"{folder} is not a CLIP checkpoint. It holds {content}; needed: {weights.known_names()}"
        )
    return files


def _read_config(folder: Path, files: weights.CheckpointFiles) -> ClipConfig:
    values = weights.read_json(folder / files.config)
    if files.config == weights.OPENCLIP_CONFIG:
        return config_files.from_openclip(values)
    towers = {"clip_text_model": "text", "clip_vision_model": "image"}
    if (kind := values.get("model_type")) in list(towers):
        raise ValueError(
            f"this is only the {towers[kind]} tower of a CLIP (model_type {kind}); give a checkpoint with both towers "
            "(model_type clip)"
        )
    return config_files.from_huggingface(values)


def _layout(files: weights.CheckpointFiles, tensors: dict[str, layouts.Tensor]) -> layouts.WeightLayout:
    if files.config == weights.OPENCLIP_CONFIG:
        return layouts.openclip(tensors)
    return layouts.FLAX if files.weights.endswith(".msgpack") else layouts.HUGGINGFACE


def _dtype(dtype: Any) -> str:
    if dtype is None:
        return "float32"
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = dtype
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; valid names: {', '.join(map(repr, DTYPES))}")
    if name == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError("dtype float64 needs jax.config.update('jax_enable_x64', True)")
    return name


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Prefix a ValueError with the name of the file that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# -- Writing ----------------------------------------------------------------------------------


def _check_replaceable(target: Path) -> None:
    """Raise FileExistsError if `target` is a file, or a folder with files other than those that `save` writes."""
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; give a folder")
    names = {path.name for path in target.iterdir()} if target.exists() else set()
    if strangers := sorted(names - _WRITTEN):
        raise FileExistsError(
            f"{target} holds files that are not of a saved CLIP and would be lost: {', '.join(strangers)}. Choose "
            "another folder or remove them"
        )


def _write(clip: Clip, folder: Path, dtype: Any) -> None:
    params = _stored(clip, dtype)
    save_file(layouts.to_tensors(layouts.HUGGINGFACE, params), folder / "model.safetensors", metadata={"format": "pt"})
    kind = params["text"]["tokens"].dtype.name
    _write_json(folder / "config.json", config_files.to_huggingface(clip.config) | {"dtype": kind})
    _write_json(folder / "preprocessor_config.json", preprocess.to_huggingface(clip.preprocessing))
    if clip.tokenizer is not None:
        clip.tokenizer.save(folder)
    for path in folder.iterdir():
        os.chmod(path, 0o644)
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _stored(clip: Clip, dtype: Any) -> model.Params:
    """The parameters on the host, as they will be stored."""
    flat: Any = traverse_util.flatten_dict(jax.device_get(clip.params), sep="/")
    shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
    expected = {path: leaf.shape for path, leaf in layouts.template(clip.config).items()}
    if wrong := sorted(path for path in shapes.keys() | expected.keys() if shapes.get(path) != expected.get(path)):
        raise ValueError(f"these parameters do not have the shapes of the config: {', '.join(wrong)}")
    if dtype is not None:
        name = _dtype(dtype)
        flat = {path: leaf if path == "logit_scale" else leaf.astype(name) for path, leaf in flat.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
