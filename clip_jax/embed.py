"""Many images or texts to embeddings, as fast as the devices go.

Images are decoded by threads ahead of the devices, which take them as 8-bit values and normalise them themselves. Every
batch has the same size (the last one is filled up and cut), so that one program is compiled; with several local devices
each takes a share of it. Results come back while later batches are computed.
"""

import dataclasses
import functools
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from clip_jax import cache as store
from clip_jax import model, preprocess
from clip_jax.config import ClipConfig
from clip_jax.preprocess import Preprocessing, Source

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_AHEAD = 3  # batches that are decoded or computed before the oldest has to be done
_VERSION = 1  # of what cached embeddings mean; count it up when the same inputs give others


def embed_images(
    clip,
    images: Source | Sequence[Source],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    target_pad: bool = False,
    cache: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Embeddings of images, not normalised.

    Args:
      clip: a Clip: its `config`, `params` and `preprocessing` are used.
      images: a folder (its images and those of its subfolders, in the order of `list_images`); paths, PIL images or
        uint8 arrays (h, w, 3); or one uint8 array (n, h, w, 3).
      batch_size: images a step, over all local devices; rounded up to a multiple of their number.
      workers: threads that decode; by default the cores of this process, at most 32.
      target_pad: pad elongated images first, as composed retrieval does; see `preprocess.pad_to_ratio`.
      cache: a folder that keeps the result. It is found again by the image tower's parameters (every byte) and
        architecture, the preprocessing, and the images: paths by absolute path, size and time of modification, arrays
        by content. A file changed in place without any of these changing goes unnoticed.
      progress: show a progress bar.

    Returns:
      float32 (n, d); with `cache` a read-only array mapped from its file.

    Raises:
      FileNotFoundError, ValueError, TypeError: as `preprocess.preprocess`; a folder without images; batch_size or
        workers < 1; PIL images together with a cache.
    """
    spec = clip.preprocessing
    images = _listed(images)
    size, placed, sharding = _prepare({"image": clip.params["image"]}, len(images), batch_size)
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    step = functools.partial(_image_step, clip.config, spec, placed)

    def make() -> np.ndarray:
        batches = _image_batches(spec, images, size, workers or _cores(), target_pad)
        return _run(step, batches, (len(images), clip.config.projection), size, sharding, "image", progress)

    if cache is None or not len(images):
        return make()
    description = {
        **_described(clip.config, clip.config.image, clip.params["image"]),
        "preprocessing": dataclasses.asdict(spec),
        "target_pad": target_pad,
        "images": _identity(images),
    }
    return store.fetch(cache, description, (len(images), clip.config.projection), make)


def embed_texts(
    clip,
    texts: Sequence[str],
    *,
    batch_size: int = 256,
    pseudo_tokens: np.ndarray | jax.Array | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Embeddings of texts, not normalised.

    The texts are sorted by length and computed in the static lengths of `model.text_lengths`, so that short ones cost
    little; the result is in the order given, the same as of one text at a time up to rounding.

    Args:
      clip: a Clip: its `config`, `params`, `tokenize` and, with pseudo tokens, `marker_id` are used.
      texts: n texts.
      batch_size: texts a step, over all local devices; rounded up to a multiple of their number.
      pseudo_tokens: (n, w) or (n, k, w), see `model.encode_text`; text i gets the i-th.
      cache: a folder that keeps the result, found again by the text tower's parameters (every byte) and architecture,
        the token ids and the pseudo tokens.
      progress: show a progress bar.

    Returns:
      float32 (n, d); with `cache` a read-only array mapped from its file.

    Raises:
      ValueError: a text without the marker, or with another number of them than there are pseudo tokens; pseudo tokens
        for another number of texts; batch_size < 1. And what `clip.tokenize` raises.
    """
    config = clip.config
    ids = np.asarray(clip.tokenize([texts] if isinstance(texts, str) else list(texts)))
    columns, marker_id = [ids], None
    if pseudo_tokens is not None:
        columns.append(np.asarray(pseudo_tokens, np.float32))
        marker_id = _marker(clip, *columns)
    size, placed, sharding = _prepare({"text": clip.params["text"]}, len(ids), batch_size)
    step = functools.partial(_text_step, config, marker_id, placed)

    def make() -> np.ndarray:
        order = np.argsort(model.end_positions(config, ids), kind="stable")
        batches = _text_batches(config, [column[order] for column in columns], size)
        found = np.empty((len(ids), config.projection), np.float32)
        found[order] = _run(step, batches, found.shape, size, sharding, "text", progress)
        return found

    if cache is None or not len(ids):
        return make()
    description = {
        **_described(config, config.text, clip.params["text"]),
        "texts": [_content(column) for column in columns],
        "marker": marker_id,
    }
    return store.fetch(cache, description, (len(ids), config.projection), make)


def list_images(folder: str | Path) -> list[Path]:
    """The image files in a folder and its subfolders, sorted by path.

    Raises:
      FileNotFoundError: there are none; the extensions that count are named.
    """
    found = [Path(base) / name for base, _, names in os.walk(folder, followlinks=True) for name in names]
    images = sorted(path for path in found if path.suffix.lower() in EXTENSIONS)
    if not images:
        raise FileNotFoundError(f"no images in {folder} ({' '.join(EXTENSIONS)})")
    return images


@functools.partial(jax.jit, static_argnums=(0, 1))
def _image_step(config: ClipConfig, spec: Preprocessing, params, images: jax.Array) -> jax.Array:
    """uint8 (b, s, s, 3) -> (b, d)."""
    return model.encode_image(config, params, preprocess.normalise(spec, images)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _text_step(config: ClipConfig, marker_id: int | None, params, ids: jax.Array, pseudo=None) -> jax.Array:
    """ids (b, t) and, if there are any, pseudo tokens (b, w) or (b, k, w) -> (b, d)."""
    found = model.encode_text(config, params, ids, pseudo_tokens=pseudo, marker_id=marker_id)
    return found.astype(np.float32)


def _run(
    step: Callable,
    batches: Iterable[tuple[np.ndarray, ...]],
    shape: tuple[int, int],
    size: int,
    sharding: NamedSharding,
    unit: str,
    progress: bool,
) -> np.ndarray:
    """`step` over batches of at most `size` rows, the results in one array."""
    found, waiting, start = np.empty(shape, np.float32), deque(), 0

    def collect(most: int):
        while len(waiting) > most:
            rows, result = waiting.popleft()
            found[rows] = np.asarray(result)[: rows.stop - rows.start]

    with tqdm(total=shape[0], unit=unit, disable=not progress) as bar:
        for batch in batches:
            count = len(batch[0])
            result = step(*jax.device_put(tuple(_filled(column, size) for column in batch), sharding))
            result.copy_to_host_async()
            waiting.append((slice(start, start + count), result))
            start += count
            collect(_AHEAD)  # bounds what is queued on the devices, without waiting for the newest
            bar.update(count)
        collect(0)
    return found


def _filled(column: np.ndarray, size: int) -> np.ndarray:
    """With its last row repeated up to `size` rows."""
    missing = size - len(column)
    return np.concatenate([column, np.repeat(column[-1:], missing, axis=0)]) if missing else column


def _image_batches(
    spec: Preprocessing, images: Sequence[Source], size: int, workers: int, target_pad: bool
) -> Iterator[tuple[np.ndarray]]:
    """Cropped images, uint8 (size, crop, crop, 3), the last batch shorter."""
    if isinstance(images, np.ndarray) and preprocess.is_cropped(spec, images):
        yield from ((images[start : start + size],) for start in range(0, len(images), size))
        return
    pool = ThreadPoolExecutor(workers)
    tasks = (
        pool.submit(preprocess.crop, spec, image, name=f"number {i}", target_pad=target_pad)
        for i, image in enumerate(images)
    )
    try:
        ahead = deque(islice(tasks, _AHEAD * size))
        while ahead:
            batch = np.stack([ahead.popleft().result() for _ in range(min(size, len(ahead)))])
            ahead.extend(islice(tasks, size))
            yield (batch,)
    finally:
        pool.shutdown(cancel_futures=True)


def _text_batches(config: ClipConfig, columns: Sequence[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows in order; the ids of each batch cut to the shortest static length that holds them."""
    for start in range(0, len(columns[0]), size):
        ids, *rest = (column[start : start + size] for column in columns)
        yield (model.cut(config, ids), *rest)


def _prepare(params: Any, rows: int, batch_size: int) -> tuple[int, Any, NamedSharding]:
    """The rows of a batch, the parameters on the devices, and how batches are split.

    Parameters that are split over a mesh stay there, and batches are split over its axis "data"; others are copied
    to every local device. Few rows make a smaller batch, a power of two.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    shardings = [leaf.sharding for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding) and s.mesh.size > 1]
    if meshes:
        mesh = meshes[0]
    else:
        mesh = Mesh(np.array(jax.local_devices()), ("data",), axis_types=(AxisType.Auto,))
        params = jax.device_put(params, NamedSharding(mesh, P()))
    axis = "data" if "data" in mesh.axis_names else None
    shards = mesh.shape[axis] if axis else 1
    size = min(batch_size, 1 << max(rows - 1, 0).bit_length())
    return -(-size // shards) * shards, params, NamedSharding(mesh, P(axis))


def _listed(images: Source | Sequence[Source]) -> Sequence[Source]:
    """A sequence of images, whatever way they were given."""
    if isinstance(images, str | Path):
        return list_images(images) if Path(images).is_dir() else [images]
    if not isinstance(images, np.ndarray):
        return list(images)
    if images.ndim != 4:
        raise ValueError(f"an array of images has to be uint8 (n, h, w, 3), got {images.dtype} {images.shape}")
    return images


def _marker(clip, ids: np.ndarray, pseudo: np.ndarray) -> int:
    """The id that pseudo tokens replace, once it is clear that they can."""
    if len(pseudo) != len(ids):
        raise ValueError(f"there are {len(ids)} texts and pseudo tokens for {len(pseudo)}")
    model.check_marker(ids, clip.marker_id, pseudo.shape[1] if pseudo.ndim == 3 else None)
    return clip.marker_id


def _described(config: ClipConfig, tower: Any, params: Any) -> dict[str, Any]:
    """What the embeddings of a tower depend on besides its inputs."""
    return {
        "version": _VERSION,
        "tower": dataclasses.asdict(tower),
        "kind": type(tower).__name__,
        "projection": config.projection,
        "dtype": config.dtype,
        "params": store.fingerprint(params),
    }


def _identity(images: Sequence[Source]) -> str | list[str]:
    if isinstance(images, np.ndarray):
        return _content(images)
    if all(isinstance(image, str | Path) for image in images):
        return store.file_list(images)
    if all(isinstance(image, np.ndarray) for image in images):
        return [_content(image) for image in images]
    raise ValueError("a cache needs all images as paths or all as arrays: what PIL images hold cannot be told cheaply")


def _content(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()}"


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, cores)
