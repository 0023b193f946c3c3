"""φ: networks that turn a CLIP embedding into a pseudo token, and the files that hold them.

Files are safetensors with the names of the published PyTorch modules. Published `.pt` files are read too, where PyTorch
is installed, as tensors only.
"""

import importlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from clip_jax.config import ClipConfig
from launch.files import write_atomically
from launch.networks import dtypes


class ApplyPhi(Protocol):
    """φ in training: embeddings (b, d) and a key for dropout -> pseudo tokens (b, w)."""

    def __call__(self, params: Any, embeddings: jax.Array, key: jax.Array, /) -> jax.Array: ...


def _inputs(embeddings: jax.Array, unit: bool) -> jax.Array:
    """Embeddings (n, d) as the first layer takes them: unchanged, as published, or with `unit` scaled to length √d.

    φ learns from texts and is used on images. Where a CLIP's images have other lengths than its texts, as those of the
    small CLIP of Scenes (27 against 11), only the second way puts both into one range.
    """
    if not unit:
        return embeddings
    return embeddings * (embeddings.shape[-1] ** 0.5 / jnp.linalg.norm(embeddings, axis=-1, keepdims=True))


class Phi(nn.Module):
    """The network of SEARLE and LinCIR: dense, GELU and dropout twice, dense (arXiv 2303.15247, 2312.01998).

    Attributes:
      width: of the pseudo tokens, that of the text tower.
      hidden: width of the two layers in between; None for four times the input's width.
      dropout: share of hidden units that training drops.
      unit_inputs: see `_inputs`.
      dtype: of activations and products; tokens are at least float32.
    """

    width: int
    hidden: int | None = None
    dropout: float = 0.5
    unit_inputs: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeddings (n, d), as CLIP gives them, not normalised -> tokens (n, width).

        With `train` units are dropped, and `apply` needs rngs={"dropout": key}.
        """
        x = _inputs(embeddings, self.unit_inputs).astype(self.dtype)
        for i in range(2):
            x = nn.Dense(self.hidden or 4 * embeddings.shape[-1], dtype=self.dtype, name=f"dense{i}")(x)
            x = nn.gelu(x, approximate=False)
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return dtypes.wide(nn.Dense(self.width, dtype=self.dtype, name="dense2")(x))


class Pic2Word(nn.Module):
    """Pic2Word's network: dense, dropout and ReLU in every hidden layer, dense (arXiv 2302.03084).

    Attributes:
      width: of the pseudo tokens.
      hidden: width of the layers in between.
      layers: how many of them.
      dropout: share of units that training drops.
      unit_inputs: see `_inputs`.
      dtype: of activations and products; tokens are at least float32.
    """

    width: int
    hidden: int = 512
    layers: int = 2
    dropout: float = 0.1
    unit_inputs: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeddings (n, d), not normalised -> tokens (n, width); see `Phi`."""
        x = _inputs(embeddings, self.unit_inputs).astype(self.dtype)
        for i in range(self.layers):
            x = nn.Dense(self.hidden, dtype=self.dtype, name=f"dense{i}")(x)
            x = nn.relu(nn.Dropout(self.dropout)(x, deterministic=not train))
        return dtypes.wide(nn.Dense(self.width, dtype=self.dtype, name=f"dense{self.layers}")(x))


@dataclass(frozen=True, eq=False)
class Network:
    """A φ with its parameters.

    Attributes:
      module: a `Phi` or `Pic2Word`.
      params: its tree: dense0, dense1, …, each with kernel and bias.
    """

    module: Phi | Pic2Word
    params: dict[str, Any]

    @property
    def input_width(self) -> int:
        """Width of the embeddings that φ takes, a CLIP's `config.projection`."""
        return self.params["dense0"]["kernel"].shape[0]

    @property
    def token_width(self) -> int:
        """Width of the pseudo tokens, a CLIP's `config.text.width`."""
        return self.module.width

    def __call__(self, embeddings: np.ndarray | jax.Array) -> jax.Array:
        """Pseudo tokens (n, width) of embeddings (n, d) that are not normalised.

        Raises:
          ValueError: embeddings of another width.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.input_width:
            raise ValueError(f"φ takes embeddings (n, {self.input_width}), got {embeddings.shape}")
        return self._compiled(self.params, embeddings)

    @cached_property
    def _compiled(self):
        return jax.jit(lambda params, embeddings: self.module.apply({"params": params}, embeddings))


def init(kind: str, input_width: int, token_width: int, key: jax.Array) -> Network:
    """A φ with fresh float32 parameters, drawn as PyTorch draws those of linear layers: U(-1, 1) / sqrt(inputs).

    Args:
      kind: "phi" or "pic2word".
      input_width: of the embeddings, a CLIP's `config.projection`.
      token_width: of the tokens, a CLIP's `config.text.width`.
      key: of the draw.

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown φ {kind!r}; valid names: {', '.join(map(repr, KINDS))}")
    module = KINDS[kind](token_width)
    shapes = jax.eval_shape(lambda: module.init(key, jnp.zeros((1, input_width))))["params"]

    def draw(name: str, number: int) -> dict[str, jax.Array]:
        bound = shapes[name]["kernel"].shape[0] ** -0.5
        weight, bias = jax.random.split(jax.random.fold_in(key, number))
        uniform = lambda key, leaf: jax.random.uniform(key, leaf.shape, minval=-bound, maxval=bound)
        return {"kernel": uniform(weight, shapes[name]["kernel"]), "bias": uniform(bias, shapes[name]["bias"])}

    return Network(module, {name: draw(name, i) for i, name in enumerate(sorted(shapes))})


def check_fits(network: Network, config: ClipConfig) -> None:
    """Raise ValueError if φ takes or gives vectors of other widths than the CLIP's, naming both."""
    if (network.input_width, network.token_width) != (config.projection, config.text.width):
        raise ValueError(
            f"this φ maps embeddings of width {network.input_width} to tokens of width {network.token_width}; the CLIP "
            f"has embeddings of width {config.projection} and tokens of width {config.text.width}: take the φ that was "
            "trained with this CLIP"
        )


# -- PyTorch's names --------------------------------------------------------------------------


def from_torch(tensors: Mapping[str, Any], *, unit_inputs: bool = False) -> Network:
    """φ from the state dict of a published module: the names tell the network, the shapes its sizes.

    Names are `layers.{0,3,6}.{weight,bias}` (SEARLE, LinCIR) or `layers.{i}.0.{weight,bias}` and `fc_out.{weight,bias}`
    (Pic2Word); a prefix `module.`, which DataParallel leaves, is dropped.

    Args:
      tensors: name -> array, or anything that NumPy converts to one, with PyTorch's axes (outputs, inputs).
      unit_inputs: whether φ was trained with inputs of one length; published ones were not.

    Raises:
      ValueError: names that are neither's, layers that are missing or do not fit each other; a tensor that is not of
        floats, or has NaN or infinite values.
    """
    given = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    tensors = {name.removeprefix("module."): tensor for name, tensor in given.items()}
    if len(tensors) < len(given):
        raise ValueError("the same tensors are there with and without the prefix 'module.'")
    for name, tensor in given.items():
        if tensor.dtype.kind in "iubcOSU":
            raise ValueError(f"{name} is of type {tensor.dtype}, floats are needed")
        if count := np.count_nonzero(~np.isfinite(tensor.astype(np.float32))):
            raise ValueError(f"{name} has {count:,} values that are NaN or infinite")
    names = _PHI_NAMES if "fc_out.weight" not in tensors else _pic2word_names(_layers(tensors))
    expected = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    if expected != set(tensors):
        missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        raise ValueError(
            f"these tensors are not a φ: missing {', '.join(missing) or 'none'}; unknown {', '.join(extra) or 'none'}"
        )
    params, width = {}, 0
    for i, name in enumerate(names):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or width not in (0, weight.shape[1]):
            raise ValueError(
                f"{name}: weight {weight.shape} and bias {bias.shape} do not fit each other or the {width} inputs"
            )
        width = len(weight)
        params[f"dense{i}"] = {"kernel": jnp.asarray(weight.T, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    hidden = params["dense0"]["bias"].shape[0]
    if any(params[f"dense{i}"]["bias"].shape[0] != hidden for i in range(len(names) - 1)):
        raise ValueError("the hidden layers of this φ differ in width")
    module = Phi(width, hidden) if names is _PHI_NAMES else Pic2Word(width, hidden, len(names) - 1)
    return Network(module.clone(unit_inputs=unit_inputs), params)


def to_torch(network: Network) -> dict[str, np.ndarray]:
    """The state dict of the published module, float32, the inverse of `from_torch`."""
    count = len(network.params)
    names = _PHI_NAMES if isinstance(network.module, Phi) else _pic2word_names(count - 1)
    tensors = {}
    for i, name in enumerate(names):
        layer = jax.device_get(network.params[f"dense{i}"])
        tensors[f"{name}.weight"] = np.ascontiguousarray(layer["kernel"].T, np.float32)
        tensors[f"{name}.bias"] = np.asarray(layer["bias"], np.float32)
    return tensors


def _layers(tensors: Mapping[str, Any]) -> int:
    """The number of hidden layers by Pic2Word's names."""
    return len([name for name in tensors if name.startswith("layers.") and name.endswith(".weight")])


def _pic2word_names(layers: int) -> tuple[str, ...]:
    return (*(f"layers.{i}.0" for i in range(layers)), "fc_out")


# -- files ------------------------------------------------------------------------------------


def load(path: str | Path) -> Network:
    """φ from a file: `.safetensors`, or PyTorch's `.pt`, `.pth` or `.bin` where PyTorch is installed.

    A published PyTorch file may hold more than φ (the epoch, CLIP's weights, an optimiser): the only dict in it with
    φ's names is taken. Nothing but tensors and plain values is ever unpickled.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a corrupt file, one without φ or with more than plain data, or another suffix; the error names it.
      ImportError: a PyTorch file without PyTorch.
    """
    path = Path(path).expanduser()
    check_file(path)
    tensors = _READERS[path.suffix](path)
    try:
        return from_torch(tensors, unit_inputs=_unit_inputs(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_file(path: str | Path) -> None:
    """Raise FileNotFoundError or ValueError, as `load`, for a file that is missing or has another suffix."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no φ file {path}")
    if path.suffix not in _READERS:
        raise ValueError(f"{path}: a φ file must end in {', '.join(_READERS)}")


def save(network: Network, path: str | Path) -> None:
    """Write φ as safetensors with the published names, whole or not at all.

    Raises:
      ValueError: `path` does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: φ is saved as .safetensors")
    metadata = {"format": "pt", **({_UNIT: "true"} if network.module.unit_inputs else {})}
    write_atomically(path, safetensors.numpy.save(to_torch(network), metadata=metadata))


def _unit_inputs(path: Path) -> bool:
    """Whether a file that `save` wrote says that φ takes inputs of one length; published files do not say."""
    if path.suffix != ".safetensors":
        return False
    with safetensors.safe_open(path, "np") as file:
        return (file.metadata() or {}).get(_UNIT) == "true"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"{path} is a PyTorch file and PyTorch is not installed: install it (pip install torch), or rewrite the "
            "file once where it is, with rtd_jax.phi.save(rtd_jax.phi.load(FILE), NEW.safetensors)"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is corrupt, or holds more than plain data, which could run code, and is not opened: {error}"
        ) from error
    except Exception as error:  # PyTorch's parsers fail on damaged files with any error: RuntimeError, EOFError, …
        raise ValueError(f"{path} is not a whole PyTorch file: {error}") from error
    candidates = [part for part in _dicts(content) if _looks_like_phi(part)]
    if len(candidates) != 1:
        raise ValueError(f"{path} holds {len(candidates)} dicts with the names of a φ, not one")
    return {name: tensor.float().numpy() for name, tensor in candidates[0].items()}


def _dicts(content: Any) -> list[dict]:
    """A dict and the dicts among its values."""
    every = (content, *content.values()) if isinstance(content, dict) else ()
    return [part for part in every if isinstance(part, dict)]


def _looks_like_phi(part: dict) -> bool:
    names = {str(name).removeprefix("module.") for name in part}
    return "layers.0.weight" in names or "fc_out.weight" in names


KINDS = {"phi": Phi, "pic2word": Pic2Word}
_UNIT = "unit_inputs"  # in a safetensors file's metadata
_PHI_NAMES = ("layers.0", "layers.3", "layers.6")
_READERS = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
}
