"""The two views of every image that the method uses: features of the classifier, embeddings of CLIP.

Both are tables of rows that need not fit in memory. Every image is decoded once for all encoders; each
network gets its own preprocessing of it.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

import clip_jax
from clip_jax import embed, preprocess, spread
from clip_jax.attention import fastest
from launch.data import images
from launch.training.prefetch import prefetch
from tldr_jax.classifier import backbones
from tldr_jax.classifier.backbones import Backbone
from tldr_jax.datasets import Part

_AHEAD = 2  # blocks that are under way before the oldest must be done
_GATHERED = 2**24  # numbers that processes exchange at a time


class Crop(Protocol):
    """One image (PIL, RGB) -> uint8 (s, s, 3)."""

    def __call__(self, image: Image.Image, /) -> np.ndarray: ...


class Accepts(Protocol):
    """Whether a stack of images (uint8 (n, h, w, 3)) needs no cropping."""

    def __call__(self, stack: np.ndarray, /) -> bool: ...


class Embed(Protocol):
    """uint8 (k, s, s, 3) -> float32 (k or more, width), the first k of which count; it need not be computed yet."""

    def __call__(self, stack: np.ndarray, /) -> np.ndarray | jax.Array: ...


class CheckStop(Protocol):
    """Raises where the run was asked to stop."""

    def __call__(self) -> None: ...


class EncodeImages(Protocol):
    """A network on images, uint8 (b, s, s, 3) -> (b, width); jitted."""

    def __call__(self, variables: Any, stack: jax.Array, /) -> jax.Array: ...


class Block(NamedTuple):
    """Rows (k, width) that an encoder gives of consecutive images."""

    encoder: str
    first: int
    rows: np.ndarray


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
    """CLIP's image tower, not normalised; `batch_size` images per step."""
    spec = clip.preprocessing
    encode = partial(embed.image_step, fastest(clip.config, jax.local_devices()), spec)
    return Encoder(
        crop=lambda image: preprocess.crop(spec, image),
        accepts=lambda stack: preprocess.is_cropped(spec, stack),
        embed=_on_own_devices(encode, {"image": clip.params["image"]}, batch_size),
        width=clip.config.projection,
    )


def of_classifier(
    backbone: Backbone, variables: Mapping[str, Any], *, outputs: int, batch_size: int, crop: Crop = np.asarray
) -> Encoder:
    """The classifier's features, the input of its head.

    Args:
      backbone: the network.
      variables: trained ones, on the host.
      outputs: of its head.
      batch_size: images per step.
      crop: cuts images to the backbone's size, which sets in memory have already.
    """
    return Encoder(
        crop=crop,
        accepts=lambda stack: True,  # sets in memory are cut to size when they are read
        embed=_on_own_devices(_forward(backbone, outputs), dict(variables), batch_size),
        width=backbone.kind.features,
    )


def outline(
    backbone: Backbone, *, outputs: int, batch_size: int, devices: Sequence[Any]
) -> tuple[Any, tuple[Any, ...]]:
    """What `of_classifier` compiles on some devices: a jitted function and its arguments, as shapes."""
    template = backbones.template(backbone.create(outputs), backbone.image_shape)
    size, variables, split = spread.outline(template, batch_size, devices)
    stack = jax.ShapeDtypeStruct((size, *backbone.image_shape), np.uint8, sharding=split)
    return _forward(backbone, outputs), (variables, stack)


def _forward(backbone: Backbone, outputs: int) -> EncodeImages:
    """The classifier's features."""
    model = backbone.create(outputs)

    @jax.jit
    def encode(variables: Any, stack: jax.Array) -> jax.Array:
        (_, own), _ = model.apply(variables, backbone.normalize(stack), mutable=[])
        return own["features"]

    return encode


def _on_own_devices(encode: EncodeImages, variables: Any, batch_size: int) -> Embed:
    """A network whose variables are copied to the devices of this process once."""
    placed = spread.copied(variables, alone=True)

    def of_stack(stack: np.ndarray) -> jax.Array:
        over, own = spread.prepare(placed, len(stack), batch_size)
        batches = (over.put(stack[first : first + over.size]) for first in range(0, len(stack), over.size))
        return jnp.concatenate([encode(own, batch).astype(jnp.float32) for batch in batches])

    return of_stack


def encode(
    part: Part, encoders: Mapping[str, Encoder], *, batch_size: int, firsts: Sequence[int] | None = None
) -> Iterator[Block]:
    """Images of a split through every encoder.

    Blocks are decoded and cropped by threads while the devices compute those before.

    Args:
      part: the images.
      encoders: by name.
      batch_size: images of a block.
      firsts: the first image of each block; None for all.
    """
    firsts = range(0, len(part), batch_size) if firsts is None else firsts
    waiting: deque = deque()
    for first, stacks in prefetch(_stacks(part, encoders, firsts, batch_size), lambda item: item, depth=1):
        waiting += [(name, first, len(stack), encoders[name].embed(stack)) for name, stack in stacks.items()]
        while len(waiting) > _AHEAD * len(encoders):
            yield _fetched(*waiting.popleft())
    while waiting:
        yield _fetched(*waiting.popleft())


def _fetched(name: str, first: int, count: int, rows: Any) -> Block:
    return Block(name, first, np.asarray(rows)[:count])


def write(
    part: Part, encoders: Mapping[str, Encoder], folders: Mapping[str, Path], *, batch_size: int, check_stop: CheckStop
) -> dict[str, np.ndarray]:
    """Tables of a split by encoder, float32 (n, width), as memory maps in folders, one pass over the images for all.

    In a run of several processes each takes its share of the images; the first one writes, the others have no tables.

    Args:
      part: the images.
      encoders: by name.
      folders: empty ones, by the same names.
      batch_size: images that are decoded at a time.
      check_stop: called after every block of rows, or every few of each process.
    """
    tables: dict[str, np.ndarray] = {}
    if jax.process_index() == 0:
        for name, encoder in encoders.items():
            shape = len(part), encoder.width
            tables[name] = np.lib.format.open_memmap(folders[name] / "rows.npy", "w+", np.float32, shape)
    if jax.process_count() == 1:
        for name, first, rows in encode(part, encoders, batch_size=batch_size):
            tables[name][first : first + len(rows)] = rows
            check_stop()
        return tables
    for gathered in _together(part, encoders, batch_size):
        for name, first, rows in gathered if tables else ():
            tables[name][first : first + len(rows)] = rows
        check_stop()
    return tables


def _together(part: Part, encoders: Mapping[str, Encoder], batch_size: int) -> Iterator[list[Block]]:
    """The blocks of all processes, some at a time, on every process: each computes every n-th block."""
    index, count = jax.process_index(), jax.process_count()
    widest = max(encoder.width for encoder in encoders.values())
    several = max(1, _GATHERED // (count * batch_size * widest))  # of each process
    firsts = range(0, len(part), batch_size)
    own = encode(part, encoders, batch_size=batch_size, firsts=firsts[index::count])
    for begin in range(0, len(firsts), several * count):
        group = firsts[begin : begin + several * count]
        held = {name: np.zeros((several, batch_size, own.width), np.float32) for name, own in encoders.items()}
        mine = {first: place for place, first in enumerate(group[index::count])}
        for name, first, rows in itertools.islice(own, len(mine) * len(encoders)):
            held[name][mine[first], : len(rows)] = rows
        found = multihost_utils.process_allgather(held)
        yield [
            Block(name, first, rows[place % count, place // count, : len(part) - first])
            for name, rows in found.items()
            for place, first in enumerate(group)
        ]


def _stacks(
    part: Part, encoders: Mapping[str, Encoder], firsts: Sequence[int], batch_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    def views(image) -> list[np.ndarray]:
        return [encoder.crop(image) for encoder in encoders.values()]

    source = part.images
    with ThreadPoolExecutor(images.decoding_threads()) as pool:
        for first in firsts:
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
