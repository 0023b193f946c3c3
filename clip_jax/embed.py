"""Many images or texts to embeddings, as fast as the devices allow.

Threads decode images ahead of the devices, which take them as 8-bit values and normalise them. Every batch has the same
size (the last one is filled up and cut), so that one program is compiled; each device takes a share of it. Results come
back while later batches are computed. In a run of several processes all of them embed the same inputs together: each
reads and computes its share of every batch, and all get the results.
"""

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from clip_jax import cache as disk
from clip_jax import model, preprocess
from clip_jax.attention import fastest
from clip_jax.clip import Clip
from clip_jax.config import ClipConfig
from clip_jax.preprocess import Preprocessing, Source
from clip_jax.spread import SharedBatches, outline, prepare
from launch.reading import folders

IMAGE_BATCH, TEXT_BATCH = 64, 256
_AHEAD = 3  # batches that are decoded or computed before the oldest must be done
_VERSION = 1  # of the meaning of cached embeddings; increase it when the same inputs give others


class EmbedBatch(Protocol):
    """A compiled pass over one batch on the devices: its columns -> float32 (b, d)."""

    def __call__(self, *columns: jax.Array) -> jax.Array: ...


class LazyImages(Protocol):
    """Images that are decoded when they are indexed, in threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Embedder:
    """Embeds images and texts by one CLIP, always in the same way.

        embedder = Embedder(clip_jax.load(clip_jax.embedded("scenes")), cache="embeddings")
        similarity = embedder.images("photos") @ embedder.texts(["a red circle", "a blue star"]).T

    Attributes:
      clip: the CLIP.
      batch_size: inputs per step and process, rounded up to a multiple of its devices; None for 64 images, 256 texts.
      workers: threads that decode images; None for the cores of this process, at most 32.
      target_pad: pad elongated images first, as composed retrieval does; see `preprocess.pad_to_ratio`.
      cache: a folder that keeps embeddings, or None. An entry is looked up by the tower's parameters (every byte) and
        architecture and by its inputs: the preprocessing and the images (paths by absolute path, size and time of
        modification, arrays by content), or the token ids and the pseudo tokens. A file changed in place without any
        of these changing goes unnoticed.
      progress: show a progress bar.

    Raises:
      ValueError: batch_size or workers below 1.
    """

    clip: Clip
    batch_size: int | None = None
    workers: int | None = None
    target_pad: bool = False
    cache: str | Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def images(self, images: Source | Sequence[Source] | LazyImages) -> np.ndarray:
        """Embeddings of images, not normalised.

        Args:
          images: a folder (its images and those of its subfolders, in the order of `list_images`); paths, PIL images or
            uint8 arrays (h, w, 3), perhaps made when they are indexed; or one uint8 array (n, h, w, 3).

        Returns:
          float32 (n, d); with a cache a read-only array mapped from its file.

        Raises:
          FileNotFoundError, ValueError, TypeError: as `preprocess.preprocess`; a folder without images; PIL images
            together with a cache.
        """
        clip, spec = self.clip, self.clip.preprocessing
        images = _listed(images)
        shape = len(images), clip.config.projection
        spread, placed = prepare({"image": clip.params["image"]}, len(images), self.batch_size or IMAGE_BATCH)
        step = functools.partial(image_step, fastest(clip.config, spread.sharding.device_set), spec, placed)

        def make() -> np.ndarray:
            batches = _image_batches(spec, images, spread, self.workers or _cores(), self.target_pad)
            return _run(step, batches, shape, spread, "image", self.progress)

        if self.cache is None or not len(images):
            return make()
        description = {
            **_described(clip.config, clip.config.image, clip.params["image"]),
            "preprocessing": dataclasses.asdict(spec),
            "target_pad": self.target_pad,
            "images": _identity(images),
        }
        return disk.fetch(self.cache, description, shape, make)

    def texts(self, texts: Sequence[str], *, pseudo_tokens: np.ndarray | jax.Array | None = None) -> np.ndarray:
        """Embeddings of texts, not normalised.

        The texts are sorted by length and computed in the static lengths of `model.text_lengths`, so that short ones
        cost little. The result is in the order of the texts, and the same as of one text at a time up to rounding.

        Args:
          texts: n texts.
          pseudo_tokens: (n, w) or (n, k, w), see `model.encode_text`; text i gets the i-th.

        Returns:
          float32 (n, d); with a cache a read-only array mapped from its file.

        Raises:
          ValueError: a text without the marker, or with another number of markers than pseudo tokens; another number of
            texts than pseudo tokens. And what `clip.tokenize` raises.
        """
        clip, config = self.clip, self.clip.config
        ids = np.asarray(clip.tokenize([texts] if isinstance(texts, str) else list(texts)))
        columns, marker_id = [ids], None
        if pseudo_tokens is not None:
            columns.append(np.asarray(pseudo_tokens, np.float32))
            marker_id = _marker(clip, *columns)
        shape = len(ids), config.projection
        spread, placed = prepare({"text": clip.params["text"]}, len(ids), self.batch_size or TEXT_BATCH)
        step = functools.partial(_text_step, fastest(config, spread.sharding.device_set), marker_id, placed)

        def make() -> np.ndarray:
            order = np.argsort(model.end_positions(config, ids), kind="stable")
            batches = _text_batches(config, [column[order] for column in columns], spread)
            embeddings = np.empty(shape, np.float32)
            embeddings[order] = _run(step, batches, shape, spread, "text", self.progress)
            return embeddings

        if self.cache is None or not len(ids):
            return make()
        description = {
            **_described(config, config.text, clip.params["text"]),
            "texts": [_content(column) for column in columns],
            "marker": marker_id,
        }
        return disk.fetch(self.cache, description, shape, make)


def embed_images(
    clip: Clip,
    images: Source | Sequence[Source] | LazyImages,
    *,
    batch_size: int = IMAGE_BATCH,
    workers: int | None = None,
    target_pad: bool = False,
    cache: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Embeddings of images, float32 (n, d), not normalised; see `Embedder` and `Embedder.images`.

    In a run of several processes all of them call it, with the same images.
    """
    return Embedder(clip, batch_size, workers, target_pad, cache, progress).images(images)


def embed_texts(
    clip: Clip,
    texts: Sequence[str],
    *,
    batch_size: int = TEXT_BATCH,
    pseudo_tokens: np.ndarray | jax.Array | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Embeddings of texts, float32 (n, d), not normalised; see `Embedder` and `Embedder.texts`."""
    embedder = Embedder(clip, batch_size, cache=cache, progress=progress)
    return embedder.texts(texts, pseudo_tokens=pseudo_tokens)


def list_images(folder: str | Path) -> list[Path]:
    """The image files in a folder and its subfolders, sorted by path, each real file once; the log names links that
    are skipped.

    Raises:
      FileNotFoundError: no such folder, or no image in it; the message lists the extensions.
      ValueError: a broken link, or a folder that cannot be read.
    """
    listing = folders.images(folder)
    for note in listing.notes:
        logging.warning("%s", note)
    return listing.paths


def image_outline(clip: Clip, batch_size: int, devices: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """What `Embedder.images` compiles for full batches on some devices: a jitted function and its arguments, as shapes.

    The CLIP may be an `outline`.
    """
    size, params, split = outline({"image": clip.params["image"]}, batch_size, devices)
    side = clip.preprocessing.crop
    images = jax.ShapeDtypeStruct((size, side, side, 3), np.uint8, sharding=split)
    return image_step, (fastest(clip.config, devices), clip.preprocessing, params, images)


def text_outline(
    clip: Clip, batch_size: int, devices: Sequence[Any], *, pseudo_tokens: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """The same of `Embedder.texts`, for the longest texts; with `pseudo_tokens`, each takes one."""
    size, params, split = outline({"text": clip.params["text"]}, batch_size, devices)
    ids = jax.ShapeDtypeStruct((size, clip.config.text.context_length), np.int32, sharding=split)
    config = fastest(clip.config, devices)
    if not pseudo_tokens:
        return _text_step, (config, None, params, ids)
    pseudo = jax.ShapeDtypeStruct((size, clip.config.text.width), np.float32, sharding=split)
    return _text_step, (config, clip.marker_id, params, ids, pseudo)


@functools.partial(jax.jit, static_argnums=(0, 1))
def image_step(config: ClipConfig, spec: Preprocessing, params: Any, images: jax.Array) -> jax.Array:
    """Images as they are cropped, uint8 (b, s, s, 3), to embeddings, float32 (b, d), not normalised; jitted."""
    return model.encode_image(config, params, preprocess.normalize(spec, images)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _text_step(
    config: ClipConfig, marker_id: int | None, params: Any, ids: jax.Array, pseudo: jax.Array | None = None
) -> jax.Array:
    """ids (b, t) and, if any, pseudo tokens (b, w) or (b, k, w) -> (b, d)."""
    embeddings = model.encode_text(config, params, ids, pseudo_tokens=pseudo, marker_id=marker_id)
    return embeddings.astype(np.float32)


def _run(
    step: EmbedBatch,
    batches: Iterable[tuple[np.ndarray, ...]],
    shape: tuple[int, int],
    spread: SharedBatches,
    unit: str,
    progress: bool,
) -> np.ndarray:
    """`step` over batches, of which this process gives its rows; the results in one array."""
    embeddings, waiting, start = np.empty(shape, np.float32), deque(), 0

    def collect(most: int) -> None:
        """Fetch the oldest results until at most `most` are waiting."""
        while len(waiting) > most:
            rows, result = waiting.popleft()
            embeddings[rows] = np.asarray(result)[: rows.stop - rows.start]

    with tqdm(total=shape[0], unit=unit, disable=not progress) as bar:
        for batch in batches:
            rows = slice(start, min(start + spread.size, shape[0]))
            result = spread.whole(step(*map(spread.put, batch)))
            result.copy_to_host_async()
            waiting.append((rows, result))
            start = rows.stop
            collect(_AHEAD)  # bounds what is queued on the devices without waiting for the newest batch
            bar.update(rows.stop - rows.start)
        collect(0)
    return embeddings


def _image_batches(
    spec: Preprocessing, images: "np.ndarray | LazyImages", spread: SharedBatches, workers: int, target_pad: bool
) -> Iterator[tuple[np.ndarray]]:
    """This process's rows of batches of cropped images, uint8 (b, crop, crop, 3), the last one shorter."""
    parts = spread.parts(len(images))
    if isinstance(images, np.ndarray) and preprocess.is_cropped(spec, images):
        yield from ((images[part.start : part.stop],) for part in parts)
        return
    pool = ThreadPoolExecutor(workers)

    def crop(row: int) -> np.ndarray:
        return preprocess.crop(spec, images[row], name=f"number {row}", target_pad=target_pad)

    tasks = ([pool.submit(crop, row) for row in part] for part in parts)
    try:
        ahead = deque(islice(tasks, _AHEAD))
        while ahead:
            batch = np.stack([image.result() for image in ahead.popleft()])
            ahead.extend(islice(tasks, 1))
            yield (batch,)
    finally:
        pool.shutdown(cancel_futures=True)


def _text_batches(
    config: ClipConfig, columns: Sequence[np.ndarray], spread: SharedBatches
) -> Iterator[tuple[np.ndarray, ...]]:
    """This process's rows in order; ids are cut to the shortest static length that holds those of the whole batch."""
    for start, part in zip(count(0, spread.size), spread.parts(len(columns[0])), strict=False):
        ids, *rest = columns
        length = model.cut(config, ids[start : start + spread.size]).shape[1]
        yield (ids[part.start : part.stop, :length], *(column[part.start : part.stop] for column in rest))


def _listed(images: Any) -> "np.ndarray | LazyImages":
    """Images in any of the accepted forms as a sequence, or as one array (n, h, w, 3)."""
    if isinstance(images, str | Path):
        return list_images(images) if Path(images).is_dir() else [images]
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, np.ndarray):
        return images if hasattr(images, "__getitem__") else list(images)  # some decode an image when it is indexed
    if images.ndim != 4:
        raise ValueError(f"an array of images has to be uint8 (n, h, w, 3), got {images.dtype} {images.shape}")
    return images


def _marker(clip: Clip, ids: np.ndarray, pseudo: np.ndarray) -> int:
    """The id that the pseudo tokens replace; raises ValueError unless ids and pseudo tokens fit together."""
    if len(pseudo) != len(ids):
        raise ValueError(f"{len(ids)} texts cannot take pseudo tokens for {len(pseudo)} texts")
    model.check_marker(ids, clip.marker_id, pseudo.shape[1] if pseudo.ndim == 3 else None)
    return clip.marker_id


def _described(config: ClipConfig, tower: Any, params: Any) -> dict[str, Any]:
    """All that the embeddings of a tower depend on besides its inputs."""
    return {
        "version": _VERSION,
        "tower": dataclasses.asdict(tower),
        "kind": type(tower).__name__,
        "projection": config.projection,
        "dtype": config.dtype,
        "params": disk.fingerprint(params),
    }


def _identity(images: "np.ndarray | LazyImages") -> str | list[str]:
    """What identifies images in the cache."""
    if isinstance(images, np.ndarray):
        return _content(images)
    paths = [image for image in images if isinstance(image, str | Path)]
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if len(paths) == len(images):
        return disk.file_list(paths)
    if len(arrays) == len(images):
        return [_content(array) for array in arrays]
    raise ValueError("a cache needs all images as paths or all as arrays: hashing PIL images would be costly")


def _content(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {disk.digest(array)}"


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, cores)
