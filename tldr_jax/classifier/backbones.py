"""The classifiers that are debiased, by name: networks whose `out["features"]` a linear head, `fc`, takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from launch.networks import weights
from launch.networks.cnn import ResNet
from tldr_jax.classifier import vit
from tldr_jax.classifier.cnn import SmallCnn

HEAD = "fc"
_DEPTHS = (3, 4, 6, 3)


@dataclass(frozen=True)
class Kind:
    """What there is to know of a network by its name.

    Attributes:
      features: the length f of its features.
      relu: whether they are what a ReLU gives, so that the projector ends in one too.
      image_size: side of the images that its published weights take; 0 for any.
    """

    features: int
    relu: bool
    image_size: int


KINDS = {
    "resnet50": Kind(2048, True, 0),
    "vit_b16": Kind(768, False, 224),
    "small_cnn": Kind(64, True, 0),
}


def kind(name: str) -> Kind:
    """Of the network called `name`.

    Raises:
      ValueError: there is none; lists those there are.
    """
    if name not in KINDS:
        raise ValueError(f"unknown backbone {name!r}; there are {', '.join(KINDS)}")
    return KINDS[name]


def create(name: str, outputs: int) -> nn.Module:
    """The network, with a head of so many outputs: `apply(variables, x, train=False) -> (logits, out)`.

    Raises:
      ValueError: unknown name; lists those there are.
    """
    kind(name)
    if name == "resnet50":
        return ResNet(outputs, nn.relu, _DEPTHS, bottleneck=True, imagenet_stem=True)
    return vit.ViT(outputs) if name == "vit_b16" else SmallCnn(outputs)


def template(module: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Its variables as shapes; {} for "batch_stats" where it has none."""
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
      FileNotFoundError, ValueError: no such file; tensors that are missing, extra or of another shape; it is named.
    """
    if name == "small_cnn":
        raise ValueError(f"erm.init_from={str(path)!r}: there are no published weights of small_cnn; pretrain it")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"erm.init_from={str(path)!r}: a .safetensors file with PyTorch's names is needed")
    tensors = {k: v for k, v in weights.read(path).items() if not k.endswith("num_batches_tracked")}
    heads = [tensors[k] for k in ("fc.weight", "head.weight", "heads.head.weight") if k in tensors]
    outputs = len(heads[0]) if heads and heads[0].ndim == 2 else 1000
    shapes = template(create(name, outputs), image_shape)
    try:
        if name == "resnet50":
            found = weights.convert(name, tensors, shapes)
        else:
            found = vit.convert(tensors, {"params": shapes["params"]})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    own = fresh["params"][HEAD]
    if keep_head and outputs != own["bias"].shape[0]:
        raise ValueError(
            f"{path}: its head has {outputs} outputs and the data set {own['bias'].shape[0]} classes; set "
            "erm.keep_head=False for a fresh one"
        )
    found = jax.tree.map(lambda array: np.asarray(array, np.float32), {"batch_stats": {}} | found)
    if not keep_head:
        found = found | {"params": found["params"] | {HEAD: jax.tree.map(np.asarray, own)}}
    return found
