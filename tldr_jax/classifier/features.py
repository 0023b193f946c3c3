"""The two views of every image that the method works with: features of the classifier, embeddings of CLIP.

Every image is decoded once; each network gets its own preprocessing of it.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

import clip_jax
from clip_jax import preprocess
from launch.data import augment, images
from launch.run import Run
from launch.training import loop
from tldr_jax import stages
from tldr_jax.classifier import backbones, erm
from tldr_jax.datasets import Grouped, Part


@dataclass(frozen=True)
class Encoder:
    """One of the two networks.

    Attributes:
      crop: one image (PIL, RGB) -> uint8 (s, s, 3).
      accepts: whether a stack of images (uint8 (n, h, w, 3)) needs no cropping.
      embed: uint8 (k, s, s, 3), k up to a batch -> float32 (k, width).
      width: of its embeddings.
    """

    crop: Callable[[Image.Image], np.ndarray]
    accepts: Callable[[np.ndarray], bool]
    embed: Callable[[np.ndarray], np.ndarray]
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


def of_classifier(config, outputs: int, variables: Callable[[], Mapping[str, Any]]) -> Encoder:
    """The classifier's features, what its head takes.

    Args:
      config: of the run: `backbone`, `data.image_size`, `evaluation.batch_size`.
      outputs: of its head.
      variables: () -> the trained variables; asked for when the first batch comes, and so without other processes.
    """
    model, (mean, std) = backbones.create(config.backbone.name, outputs), erm.normalisation(config)
    mesh = Mesh(np.array(jax.local_devices()), ("data",), axis_types=(AxisType.Auto,))
    size = -(-config.evaluation.batch_size // mesh.size) * mesh.size
    placed: list[Any] = []

    @jax.jit
    def features(variables, stack):
        return model.apply(variables, augment.normalise(stack, mean, std))[1]["features"]

    def embed(stack: np.ndarray) -> np.ndarray:
        if not placed:
            placed.append(jax.device_put(dict(variables()), NamedSharding(mesh, P())))
        full = np.concatenate([stack, np.repeat(stack[-1:], size - len(stack), axis=0)])
        found = features(placed[0], jax.device_put(full, NamedSharding(mesh, P("data"))))
        return np.asarray(found, np.float32)[: len(stack)]

    return Encoder(
        crop=lambda image: images.centre_crop(image, config.data.image_size),
        accepts=lambda stack: True,  # sets in memory are cut to size when they are read
        embed=embed,
        width=backbones.kind(config.backbone.name).features,
    )


def encode(
    parts: Mapping[str, Part], encoders: Mapping[str, Encoder], *, batch_size: int
) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """Every image of every split through every encoder: yields (encoder, split, first row, rows (k, width)).

    Batches are decoded and cropped by threads while the devices compute the one before.
    """
    for name, part in parts.items():
        for first, stacks in loop.prefetch(_stacks(part, encoders, batch_size), lambda item: item, depth=1):
            for encoder, stack in stacks.items():
                yield encoder, name, first, encoders[encoder].embed(stack)


def _stacks(
    part: Part, encoders: Mapping[str, Encoder], batch_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    def views(image) -> list[np.ndarray]:
        return [encoder.crop(image) for encoder in encoders.values()]

    in_memory = isinstance(part.images, np.ndarray)
    with ThreadPoolExecutor(images.decoding_threads()) as pool:
        for first in range(0, len(part), batch_size):
            rows = range(first, min(first + batch_size, len(part)))
            if in_memory:
                stack = part.images[rows.start : rows.stop]
                if all(encoder.accepts(stack) for encoder in encoders.values()):
                    yield first, dict.fromkeys(encoders, stack)
                    continue
                decode = lambda i: Image.fromarray(part.images[i])
            else:
                decode = part.images.__getitem__
            found = list(pool.map(lambda i, decode=decode: views(decode(i)), rows))
            yield first, {name: np.stack([view[k] for view in found]) for k, name in enumerate(encoders)}


def tables(
    config, run: Run, data: Grouped, clip: clip_jax.Clip, variables: Callable[[], Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Features (n, f) and CLIP embeddings (n, d) of all splits, by split; made in one pass where both are missing.

    Returns:
      Read-only arrays mapped from files in the run directory: they need not fit in memory.
    """
    size = config.evaluation.batch_size
    encoders = {
        "features": of_classifier(config, len(data.classes), variables),
        "images": of_clip(clip, config.clip.batch_size),
    }
    shapes = {
        stage: {name: (len(part), encoder.width) for name, part in data.parts.items()}
        for stage, encoder in encoders.items()
    }

    def make(missing):
        if "features" in missing:
            variables()  # trained or restored by all processes together, before one of them goes through the images
        return encode(data.parts, {stage: encoders[stage] for stage in missing}, batch_size=size)

    found = stages.keep_tables(run, config, tuple(encoders), shapes, make)
    return found["features"], found["images"]
