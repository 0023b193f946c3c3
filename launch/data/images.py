"""Cropping of decoded images on the host, with Pillow, and work on many of them in threads."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

# Random resized crop (Szegedy et al. 2015, "Going deeper with convolutions"), bounds as in torchvision.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


def decoding_threads() -> int:
    """Number of images that a process decodes at once: its available cores, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


class ChunkWork(Protocol):
    """Work on the examples of a range, called in threads."""

    def __call__(self, chunk: range) -> None: ...


def in_chunks(n: int, work: ChunkWork, title: str, *, size: int = 256) -> None:
    """Call `work` on chunks of range(n) in threads, with a progress bar; decoding releases the GIL.

    Args:
      n: number of examples.
      work: called once per chunk.
      title: of the progress bar.
      size: examples per chunk.
    """

    def done(start: int) -> int:
        chunk = range(start, min(start + size, n))
        work(chunk)
        return len(chunk)

    with (
        ThreadPoolExecutor(decoding_threads()) as pool,
        tqdm(total=n, desc=title, unit="image", disable=None, leave=False) as bar,
    ):
        for count in pool.map(done, range(0, n, size)):
            bar.update(count)


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator, *, flip: bool) -> np.ndarray:
    """Crop a random part of the image, resize it to (size, size), and with `flip` flip it with probability 1/2.

    Returns:
      uint8, (size, size, 3).
    """
    left, top, width, height = crop_box(*image.size, rng)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw (left, top, width, height) of a crop with area and log aspect ratio uniform in `AREA` and `RATIO`.

    After ten draws that do not fit, it is the largest centred crop with an aspect ratio in `RATIO`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Crop the centre of the image after its short side is resized to size * 256 / 224.

    Returns:
      uint8, (size, size, 3).
    """
    short = round(size * 256 / 224)
    width, height = image.size
    target = (max(short, short * width // height), max(short, short * height // width))
    image = image.resize(target, Image.Resampling.BILINEAR)
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def evaluation_view(image: Image.Image, size: int, *, as_stored: bool) -> np.ndarray:
    """The image if it has size (size, size) already and `as_stored`, else its centre crop: uint8, (size, size, 3)."""
    if as_stored and image.size == (size, size):
        return np.asarray(image)
    return center_crop(image, size)
