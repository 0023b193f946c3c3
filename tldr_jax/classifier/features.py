"""The two views of every image that the method uses: features of the classifier, embeddings of CLIP.

Both are tables of rows that need not fit in memory. Every image is decoded once for all encoders; each
network gets its own preprocessing of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

import clip_jax
from clip_jax import preprocess
from launch.data import images
from launch.training.prefetch import prefetch
from tldr_jax.classifier import backbones
from tldr_jax.classifier.backbones import Backbone
from tldr_jax.datasets import Part


class Crop(Protocol):
    """One image (PIL, RGB) -> uint8 (s, s, 3)."""

    def __call__(self, image: Image.Image, /) -> np.ndarray: ...


class Accepts(Protocol):
    """Whether a stack of images (uint8 (n, h, w, 3)) needs no cropping."""

    def __call__(self, stack: np.ndarray, /) -> bool: ...


class Embed(Protocol):
    """uint8 (k, s, s, 3), k up to a batch -> float32 (k, width)."""

    def __call__(self, stack: np.ndarray, /) -> np.ndarray: ...


class CheckStop(Protocol):
    """Raises where the run was asked to stop."""

    def __call__(self) -> None: ...


class LabelledRows(NamedTuple):
    """Rows (n, f) of the images of a split, with their classes and spurious values (n,)."""

    rows: np.ndarray
    classes: np.ndarray
    spurious: np.ndarray


@dataclass(frozen=True)
class Encoder:
    """One of the two networks, with its preprocessing and the width of its embeddings."""

    crop: Crop
    accepts: Accepts
    embed: Embed
    width: int


def of_clip(clip: clip_jax.Clip, batch_size: int) -> Encoder:
    """CLIP's image tower, not normalised."""
    spec = clip.preprocessing
    return Encoder(
        crop=lambda image: preprocess.crop(spec, image),
        accepts=lambda stack: preprocess.is_cropped(spec, stack),
        embed=lambda stack: clip_jax.embed_images(clip, stack, batch_size=batch_size, progress=False),
        width=clip.config.projection,
    )


def of_classifier(backbone: Backbone, variables: Mapping[str, Any], *, outputs: int, batch_size: int) -> Encoder:
    """The classifier's features, the input of its head.

    Args:
      backbone: the network.
      variables: trained ones, on the host.
      outputs: of its head.
      batch_size: images per step, rounded up to a multiple of this process's devices.
    """
    mesh, size = _mesh(jax.local_devices(), batch_size)
    placed = jax.device_put(dict(variables), NamedSharding(mesh, P()))
    features = _forward(backbone, outputs)

    def embed(stack: np.ndarray) -> np.ndarray:
        full = np.concatenate([stack, np.repeat(stack[-1:], size - len(stack), axis=0)])
        rows = features(placed, jax.device_put(full, NamedSharding(mesh, P("data"))))
        return np.asarray(rows, np.float32)[: len(stack)]

    return Encoder(
        crop=lambda image: images.center_crop(image, backbone.image_size),
        accepts=lambda stack: True,  # sets in memory are cut to size when they are read
        embed=embed,
        width=backbone.kind.features,
    )


def outline(
    backbone: Backbone, *, outputs: int, batch_size: int, devices: Sequence[Any]
) -> tuple[Any, tuple[Any, ...]]:
    """What `of_classifier` compiles on some devices: a jitted function and its arguments, as shapes."""
    mesh, size = _mesh(devices, batch_size)
    copy = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P()))
    variables = jax.tree.map(copy, backbones.template(backbone.create(outputs), backbone.image_shape))
    stack = jax.ShapeDtypeStruct((size, *backbone.image_shape), np.uint8, sharding=NamedSharding(mesh, P("data")))
    return _forward(backbone, outputs), (variables, stack)


def _forward(backbone: Backbone, outputs: int) -> Any:
    """The classifier's features, jitted: (variables, uint8 (b, s, s, 3)) -> (b, width)."""
    model = backbone.create(outputs)
    return jax.jit(lambda variables, stack: model.apply(variables, backbone.normalize(stack))[1]["features"])


def _mesh(devices: Sequence[Any], batch_size: int) -> tuple[Mesh, int]:
    """A mesh over devices, and a batch that divides over it."""
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    return mesh, -(-batch_size // mesh.size) * mesh.size


def encode(part: Part, encoders: Mapping[str, Encoder], *, batch_size: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Every image of a split through every encoder: yields (encoder, first row, rows (k, width)).

    Batches are decoded and cropped by threads while the devices compute the one before.
    """
    for first, stacks in prefetch(_stacks(part, encoders, batch_size), lambda item: item, depth=1):
        for encoder, stack in stacks.items():
            yield encoder, first, encoders[encoder].embed(stack)


def write(
    part: Part, encoders: Mapping[str, Encoder], folders: Mapping[str, Path], *, batch_size: int, check_stop: CheckStop
) -> dict[str, np.ndarray]:
    """Tables of a split by encoder, float32 (n, width), as memory maps in folders, one pass over the images for all.

    Args:
      part: the images.
      encoders: by name.
      folders: empty ones, by the same names.
      batch_size: images that are decoded at a time.
      check_stop: called after every block of rows.
    """
    tables: dict[str, np.ndarray] = {
        name: np.lib.format.open_memmap(folders[name] / "rows.npy", "w+", np.float32, (len(part), encoder.width))
        for name, encoder in encoders.items()
    }
    for name, first, rows in encode(part, encoders, batch_size=batch_size):
        tables[name][first : first + len(rows)] = rows
        check_stop()
    return tables


def _stacks(
    part: Part, encoders: Mapping[str, Encoder], batch_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    def views(image) -> list[np.ndarray]:
        return [encoder.crop(image) for encoder in encoders.values()]

    source = part.images
    with ThreadPoolExecutor(images.decoding_threads()) as pool:
        for first in range(0, len(part), batch_size):
            rows = range(first, min(first + batch_size, len(part)))
            if isinstance(source, np.ndarray):
                stack = source[rows.start : rows.stop]
                if all(encoder.accepts(stack) for encoder in encoders.values()):
                    yield first, dict.fromkeys(encoders, stack)
                    continue
                decode = lambda i: Image.fromarray(part.images[i])
            else:
                decode = source.__getitem__
            cropped = list(pool.map(lambda i, decode=decode: views(decode(i)), rows))
            yield first, {name: np.stack([view[k] for view in cropped]) for k, name in enumerate(encoders)}
