"""How published checkpoints store the parameters of our tree: tables of names, and conversion both ways.

Three layouts are known: Hugging Face's CLIPModel with PyTorch's names (`HUGGINGFACE`), its former Flax model
(`FLAX`) and OpenCLIP's (`OPENCLIP`, and `OPENCLIP_CUSTOM` with the text tower under `text.`). A table names, for each
leaf of ours, the stored tensors it is made of; stacked blocks are stored one by one, "{}" stands for their number.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import traverse_util

from clip_jax import model
from clip_jax.config import ClipConfig

FLOATS = ("float16", "bfloat16", "float32", "float64")
_EXPONENTS = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}  # bits that are all set in NaN and infinity


class Tensor(Protocol):
    """A stored tensor: an array, or one that is read when NumPy asks for it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any:
        """An object whose str() is NumPy's name of the type."""
        ...

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray: ...


class PutLeaf(Protocol):
    """Where a leaf goes: its path ("image/blocks/up/kernel") and NumPy array -> what the tree will hold."""

    def __call__(self, path: str, leaf: np.ndarray, /) -> Any: ...


class StoredLeaf(NamedTuple):
    """The stored tensors behind one leaf of ours.

    Attributes:
      names: one, or three for queries, keys and values, which are one leaf here.
      axes: the stored tensor's axes in our order.
      fused: one tensor holds queries, keys and values, concatenated along its first axis.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    fused: bool


@dataclass(frozen=True, eq=False)
class WeightLayout:
    """A family of checkpoints.

    Attributes:
      name: for messages.
      modules: our module, or our whole leaf, -> theirs; a module of a block is named within the block.
      leaves: our leaf's name -> theirs.
      transposed: kernels are stored with the outputs first, as in PyTorch.
      matrices: kernels that are stored as (inputs, outputs) nevertheless.
      buffers: stored tensors that are not parameters: constants that old versions wrote out.
    """

    name: str
    modules: Mapping[str, str | tuple[str, ...]]
    leaves: Mapping[str, str]
    transposed: bool
    matrices: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()

    def slot(self, path: str, ndim: int) -> StoredLeaf:
        """Where one of our leaves is stored.

        Args:
          path: "image/blocks/qkv/kernel".
          ndim: of our leaf, without the axis of the layers.
        """
        block, _, inner = path.rpartition("blocks/")
        prefix = f"{self.modules[block + 'blocks']}." if block else ""
        module, _, leaf = inner.rpartition("/")
        theirs = self.modules.get(inner)
        if theirs is None:
            modules = self.modules[module]
            modules = (modules,) if isinstance(modules, str) else modules
            theirs = tuple(f"{m}.{self.leaves[leaf]}" for m in modules)
        names = (theirs,) if isinstance(theirs, str) else theirs
        qkv = module == "qkv"
        ndim -= qkv
        axes = tuple(range(ndim))
        if leaf == "kernel" and self.transposed and path not in self.matrices:
            axes = (*range(2, ndim), 1, 0)  # out, in, h, w -> h, w, in, out
        return StoredLeaf(tuple(prefix + name for name in names), axes, fused=qkv and len(names) == 1)


_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_HF_MODULES = {
    "image/patch": "vision_model.embeddings.patch_embedding",
    "image/class_token": "vision_model.embeddings.class_embedding",
    "image/position": "vision_model.embeddings.position_embedding.weight",
    "image/pre_norm": "vision_model.pre_layrnorm",  # spelt so
    "image/blocks": "vision_model.encoder.layers.{}",
    "image/post_norm": "vision_model.post_layernorm",
    "image/projection": "visual_projection",
    "text/tokens": "text_model.embeddings.token_embedding.weight",
    "text/position": "text_model.embeddings.position_embedding.weight",
    "text/blocks": "text_model.encoder.layers.{}",
    "text/final_norm": "text_model.final_layer_norm",
    "text/projection": "text_projection",
    "logit_scale": "logit_scale",
    "norm1": "layer_norm1",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_TABLES = ("image/position", "text/tokens", "text/position")
_OPENCLIP_TEXT = {
    "text/tokens": "token_embedding.weight",
    "text/position": "positional_embedding",
    "text/blocks": "transformer.resblocks.{}",
    "text/final_norm": "ln_final",
    "text/projection/kernel": "text_projection",
}
_OPENCLIP_MODULES = {
    "image/patch": "visual.conv1",
    "image/class_token": "visual.class_embedding",
    "image/position": "visual.positional_embedding",
    "image/pre_norm": "visual.ln_pre",
    "image/blocks": "visual.transformer.resblocks.{}",
    "image/post_norm": "visual.ln_post",
    "image/projection/kernel": "visual.proj",
    "logit_scale": "logit_scale",
    "norm1": "ln_1",
    "qkv/kernel": "attn.in_proj_weight",
    "qkv/bias": "attn.in_proj_bias",
    "out": "attn.out_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
} | _OPENCLIP_TEXT
_OPENCLIP_MATRICES = frozenset({"image/projection/kernel", "text/projection/kernel"})

HUGGINGFACE = WeightLayout(
    "Hugging Face CLIP (PyTorch)",
    _HF_MODULES,
    _TORCH_LEAVES,
    transposed=True,
    buffers=frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}),
)
FLAX = WeightLayout(
    "Hugging Face CLIP (Flax)",
    _HF_MODULES | {path: _HF_MODULES[path].replace(".weight", ".embedding") for path in _TABLES},
    {"kernel": "kernel", "scale": "scale", "bias": "bias"},
    transposed=False,
)
OPENCLIP = WeightLayout(
    "OpenCLIP",
    _OPENCLIP_MODULES,
    _TORCH_LEAVES,
    transposed=True,
    matrices=_OPENCLIP_MATRICES,
    buffers=frozenset({"attn_mask"}),
)
OPENCLIP_CUSTOM = WeightLayout(
    "OpenCLIP with a separate text tower",
    _OPENCLIP_MODULES | {path: f"text.{name}" for path, name in _OPENCLIP_TEXT.items()},
    _TORCH_LEAVES,
    transposed=True,
    matrices=_OPENCLIP_MATRICES,
    buffers=frozenset({"text.attn_mask"}),
)


def openclip(names: Iterable[str]) -> WeightLayout:
    """The one of OpenCLIP's two layouts that has these tensors."""
    return OPENCLIP_CUSTOM if any(name.startswith("text.") for name in names) else OPENCLIP


@lru_cache(maxsize=8)
def template(config: ClipConfig) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Path ("image/patch/kernel") -> shape and dtype of every leaf of our parameter tree."""
    tree = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    shapes: Any = traverse_util.flatten_dict(tree, sep="/")
    return MappingProxyType(shapes)


def to_params(
    layout: WeightLayout,
    tensors: Mapping[str, Tensor],
    config: ClipConfig,
    *,
    dtype: str = "float32",
    put: PutLeaf = lambda path, leaf: leaf,
) -> dict:
    """A checkpoint's tensors as our parameter tree.

    Tensors are read one by one into the stacked leaves, so that only one is in memory besides the result.

    Args:
      layout: of the tensors.
      tensors: stored name -> tensor, of any float dtype.
      config: of the model.
      dtype: of the result's arrays. `logit_scale` stays float32: bfloat16 would change the logits by one per cent.
      put: called on each leaf as soon as it is complete; by default the tree holds the NumPy array.

    Returns:
      The tree (see `clip_jax.model`), nested dicts.

    Raises:
      ValueError: tensors are missing, extra, or of another shape or kind; the message lists them all. A tensor with
        NaN or infinite values, also such as `dtype` cannot hold.
    """
    leaves = template(config)
    _check(layout, tensors, leaves)
    params = {}
    for path, leaf in leaves.items():
        out = np.empty(leaf.shape, np.float32 if path == "logit_scale" else np.dtype(dtype))
        for slot, block in _blocks(layout, path, out):
            parts = [tensors[name] for name in slot.names]
            if slot.fused:
                parts = np.split(np.asarray(parts[0]), 3)
            for place, part in zip(_places(block, path), parts, strict=True):
                stored = np.asarray(part)
                with np.errstate(over="ignore"):  # refused below
                    place[...] = stored.transpose(slot.axes) if place.ndim else stored.reshape(())
            _check_finite(block, slot.names)
        params[path] = put(path, out)
    return traverse_util.unflatten_dict(params, sep="/")


def _check_finite(values: np.ndarray, names: tuple[str, ...]) -> None:
    """Refuse NaN and infinite values, by the names of the stored tensors."""
    if exponent := _EXPONENTS.get(values.dtype.name):  # NumPy's isfinite takes seconds a gigabyte of these
        infinite = values.view(np.uint16) & exponent == exponent
    else:
        infinite = ~np.isfinite(values)
    if infinite.any():
        wider = f", or beyond the range of {values.dtype.name}" if exponent else ""
        count = np.count_nonzero(infinite)
        raise ValueError(f"{' or '.join(names)}: {count:,} values are NaN or infinite{wider}; is the file damaged?")


def to_tensors(layout: WeightLayout, params: Mapping) -> dict[str, np.ndarray]:
    """Our parameter tree as a checkpoint's tensors: the inverse of `to_params`.

    Returns:
      Stored name -> contiguous array, of the leaf's dtype.
    """
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        for slot, block in _blocks(layout, path, np.asarray(leaf)):
            back = np.argsort(slot.axes)
            parts = [part.transpose(back) if part.ndim else part for part in _places(block, path)]
            parts = [np.concatenate(parts)] if slot.fused else parts
            tensors |= {name: np.array(part, order="C") for name, part in zip(slot.names, parts, strict=True)}
    return tensors


def _blocks(layout: WeightLayout, path: str, leaf: Any) -> Iterable[tuple[StoredLeaf, Any]]:
    """A leaf, or each layer of a stacked one, and where it is stored; `leaf` is an array or a `ShapeDtypeStruct`."""
    if "/blocks/" not in path:
        yield layout.slot(path, leaf.ndim), leaf
        return
    slot = layout.slot(path, leaf.ndim - 1)
    for index in range(leaf.shape[0]):
        block = leaf[index] if isinstance(leaf, np.ndarray) else jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        yield slot._replace(names=tuple(name.format(index) for name in slot.names)), block


def _places(block: np.ndarray, path: str) -> list[np.ndarray]:
    """Views of the parts of a block that are stored separately: queries, keys and values, or the whole."""
    if "/qkv/" not in path:
        return [block]
    return [block[..., which, :] for which in range(3)]


def _stored_shape(slot: StoredLeaf, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the tensors of a slot must have for a leaf (or layer) of our `shape`."""
    if "/qkv/" in path:
        shape = (*shape[:-2], shape[-1])
    stored = tuple(shape[axis] for axis in np.argsort(slot.axes))
    return (3 * stored[0], *stored[1:]) if slot.fused else stored


def _check(layout: WeightLayout, tensors: Mapping[str, Tensor], leaves: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raise one ValueError that lists every mismatch between `tensors` and `leaves`."""
    expected = {
        name: _stored_shape(slot, path, block.shape)
        for path, leaf in leaves.items()
        for slot, block in _blocks(layout, path, leaf)
        for name in slot.names
    }
    problems = []
    if missing := expected.keys() - tensors.keys():
        problems.append(f"missing {_listed(missing)}")
    if extra := tensors.keys() - expected.keys() - layout.buffers:
        problems.append(f"not in the model {_listed(extra)}")
    shapes, kinds = defaultdict(list), defaultdict(list)
    for name in expected.keys() & tensors.keys():
        shape, kind = tuple(tensors[name].shape), str(tensors[name].dtype)
        if shape != expected[name] and not (expected[name] == () and shape == (1,)):  # some write the scale as a vector
            shapes[shape, expected[name]].append(name)
        if kind not in FLOATS:
            kinds[kind].append(name)
    for (shape, ours), names in sorted(shapes.items()):
        problems.append(f"of shape {shape} where the config asks for {ours}: {_listed(names)}")
    for kind, names in sorted(kinds.items()):
        problems.append(f"of type {kind} where one of {', '.join(FLOATS)} is needed: {_listed(names)}")
    if problems:
        raise ValueError(f"the tensors do not fit the {layout.name} layout of the config: " + "; ".join(problems))


def _listed(names: Iterable[str]) -> str:
    """All names, those of many blocks joined: "layers.[0-11].mlp.fc1.bias"."""
    groups = defaultdict(list)
    for name in names:
        match = re.fullmatch(r"(.*?\.(?=\d+\.)|.*)(\d*)(.*)", name, re.DOTALL)
        before, number, after = match.groups() if match else (name, "", "")
        groups[before, after].append(number)
    return ", ".join(f"{before}{_runs(numbers)}{after}" for (before, after), numbers in sorted(groups.items()))


def _runs(numbers: list[str]) -> str:
    """["0", "1", "2", "5"] -> "[0-2,5]", ["4"] -> "4"."""
    if len(numbers) == 1:
        return numbers[0]
    runs = []
    for _, run in itertools.groupby(enumerate(sorted(map(int, numbers))), lambda pair: pair[1] - pair[0]):
        first, *rest = [number for _, number in run]
        runs.append(f"{first}-{rest[-1]}" if rest else str(first))
    return f"[{','.join(runs)}]"
