"""The classifiers that are debiased, by name: networks whose `out["features"]` feed a linear head, `fc`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from launch.data import augment
from launch.networks import dtypes, weights
from launch.networks.cnn import ResNet
from launch.stages import require, require_known
from tldr_jax.classifier import vit
from tldr_jax.classifier.cnn import SmallCnn

HEAD = "fc"
_DEPTHS = (3, 4, 6, 3)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Kind:
    """Facts about a network.

    Attributes:
      features: the length f of its features.
      relu: whether they come out of a ReLU, so that the projector ends in one too.
      image_size: side of the images that its published weights take; 0 for any.
    """

    features: int
    relu: bool
    image_size: int


KINDS = {
    "resnet50": Kind(2048, True, 0),
    "vit_b16": Kind(768, False, 224),
    "small_cnn": Kind(64, True, 0),
    "small_vit": Kind(96, False, 32),
}


@dataclass(frozen=True)
class Backbone:
    """A network and the images that it takes.

    Attributes:
      name: one of `KINDS`.
      image_size: side of its images, in pixels.
      mean, std: per channel, in [0, 1] units, of the normalisation; () for ImageNet's.
      precision: of its products, see `launch.processes.compiling`; that of the run, not of the section.
      dtype: of activations and products, see `launch.networks.dtypes`; features are float32.
    """

    name: str
    image_size: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    precision: str = "default"
    dtype: str = "float32"

    def __post_init__(self):
        require_known(self, "name", KINDS)
        require_known(self, "dtype", dtypes.DTYPES)
        size = self.kind.image_size
        expected = f"{self.name} takes images of {size} pixels: set data.image_size={size}"
        require(not size or self.image_size == size, self, "image_size", expected)
        require(self.image_size >= 1, self, "image_size", "a side in pixels: set data.image_size=224, for example")
        for name in ("mean", "std"):
            values = getattr(self, name)
            inside = all(0 <= value <= 1 and (name == "mean" or value > 0) for value in values)
            ok = not values or (len(values) == 3 and inside)
            require(ok, self, name, "three values in [0, 1], those of std positive, or () for ImageNet's")

    @property
    def kind(self) -> Kind:
        """Facts about the network."""
        return KINDS[self.name]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of its images."""
        return (self.image_size, self.image_size, 3)

    def create(self, outputs: int) -> nn.Module:
        """The network with a head of `outputs` outputs, see `create`."""
        return create(self.name, outputs, self.dtype)

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 images (n, h, w, c) -> float32, normalised."""
        return augment.normalize(images, self.mean or _IMAGENET[0], self.std or _IMAGENET[1])


def create(name: str, outputs: int, dtype: str = "float32") -> nn.Module:
    """The network, with a head of `outputs` outputs: `apply(variables, x, train=False) -> (logits, out)`.

    Raises:
      ValueError: an unknown name or dtype; the message lists the valid ones.
    """
    computed = dtypes.get(dtype)
    if name not in KINDS:
        raise ValueError(f"unknown backbone {name!r}; valid names: {', '.join(map(repr, KINDS))}")
    if name == "resnet50":
        return ResNet(outputs, nn.relu, _DEPTHS, bottleneck=True, imagenet_stem=True, dtype=computed)
    if name == "small_vit":
        return vit.ViT(outputs, patch=4, width=KINDS[name].features, depth=4, heads=4, dtype=computed)
    return vit.ViT(outputs, dtype=computed) if name == "vit_b16" else SmallCnn(outputs, dtype=computed)


def template(module: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The variables of a network as shapes; {} for "batch_stats" of one without batch norm."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return {"batch_stats": {}} | dict(shapes)


def load(
    name: str, path: str | Path, image_shape: tuple[int, int, int], fresh: Mapping[str, Any], *, keep_head: bool
) -> dict[str, Any]:
    """Variables from a safetensors file with torchvision's names (ResNet-50, ViT-B/16) or timm's (the same, ViT's own).

    Args:
      name: of the network.
      path: of the file; its head may have any number of outputs.
      image_shape: (h, w, c).
      fresh: variables from `init`, of which the head is taken.
      keep_head: take the file's head; its outputs must be as many.

    Raises:
      FileNotFoundError: no such file.
      ValueError: tensors that are missing, extra or of another shape; the error names them.
    """
    if name.startswith("small_"):
        raise ValueError(f"erm.init_from={str(path)!r}: no published weights of {name} exist; pretrain it")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"erm.init_from={str(path)!r}: give a .safetensors file with PyTorch's names")
    tensors = {k: v for k, v in weights.read(path).items() if not k.endswith("num_batches_tracked")}
    heads = [tensors[k] for k in ("fc.weight", "head.weight", "heads.head.weight") if k in tensors]
    outputs = len(heads[0]) if heads and heads[0].ndim == 2 else 1000
    shapes = template(create(name, outputs), image_shape)
    try:
        if name == "resnet50":
            variables = weights.convert(name, tensors, shapes)
        else:
            variables = vit.convert(tensors, {"params": shapes["params"]})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    fresh_head = fresh["params"][HEAD]
    if keep_head and outputs != fresh_head["bias"].shape[0]:
        raise ValueError(
            f"{path}: its head has {outputs} outputs and the data set {fresh_head['bias'].shape[0]} classes; set "
            "erm.keep_head=False for a fresh one"
        )
    variables = jax.tree.map(lambda array: np.asarray(array, np.float32), {"batch_stats": {}} | variables)
    return variables if keep_head else with_head(variables, fresh_head)


def with_head(variables: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with another head."""
    return dict(variables) | {"params": dict(variables["params"]) | {HEAD: jax.tree.map(np.asarray, dict(head))}}
