"""Images to pixels: CLIP's resize, crop and normalisation, with Pillow and NumPy.

Equal to transformers' `CLIPImageProcessor` (version 5, Pillow backend) with two deliberate exceptions: the EXIF
rotation is applied, and grey of more than 8 bits is scaled (Pillow's conversion clips it to white); see
`launch.reading.images`, the decoder. Transparent images are composed with white, as in transformers; OpenAI's original
drops alpha.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from clip_jax.config import ClipConfig
from launch.reading import InputError, images, jsons, shown

Source = str | Path | Image.Image | np.ndarray

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TARGET_RATIO = 1.25  # of the sides after target padding, at most
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to the pixels of a tower.

    Attributes:
      size: pixels of the short side after resizing, or (height, width) regardless of the aspect ratio.
      crop: side of the square that is cut out of the centre, in pixels.
      mean, std: of the RGB channels, in units of `rescale` times the 8-bit value.
      resample: Pillow's number of the filter; 3 is bicubic.
      rescale: factor of the 8-bit values, 1/255.

    Raises:
      ValueError: a field of another type or out of its range, a crop larger than the resized image, an unknown filter.
    """

    size: int | tuple[int, int]
    crop: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: int = 3
    rescale: float = 1 / 255

    def __post_init__(self):
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in (*sizes, self.crop)):
            raise ValueError(f"size={shown(self.size)} and crop={shown(self.crop)} must be integers")
        if not 0 < self.crop <= min(sizes):
            raise ValueError(
                f"crop={shown(self.crop)} must be positive and at most the resized short side, {shown(min(sizes))}"
            )
        if isinstance(self.resample, bool) or self.resample not in list(_FILTERS.values()):
            names = ", ".join(f"{number} ({name})" for name, number in _FILTERS.items())
            raise ValueError(f"unknown resample={shown(self.resample)}; valid numbers: {names}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(map(_is_finite, values)) or (name == "std" and min(values) <= 0):
                raise ValueError(
                    f"mean and std need three values, numbers that are finite, std positive; {name} is {shown(values)}"
                )
        if not _is_finite(self.rescale) or self.rescale <= 0:
            raise ValueError(f"rescale must be a positive number, got {shown(self.rescale)}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def preprocess(spec: Preprocessing, images: Source | Sequence[Source], *, target_pad: bool = False) -> np.ndarray:
    """Resized, cropped and normalised images.

    Args:
      spec: sizes, filter, mean and standard deviation.
      images: n paths, PIL images or uint8 arrays (h, w, 3), or one of them; or a uint8 array (n, h, w, 3), which takes
        one vectorised pass if it already has the final size.
      target_pad: pad elongated images with black first; see `pad_to_ratio`.

    Returns:
      float32 (n, crop, crop, 3).

    Raises:
      FileNotFoundError, ValueError, TypeError: an image is missing, unreadable or of a kind without a defined
        conversion; the message has its file or index.
    """
    return normalize(spec, crop_all(spec, images, target_pad=target_pad))


def crop_all(spec: Preprocessing, images: Source | Sequence[Source], *, target_pad: bool = False) -> np.ndarray:
    """As `preprocess`, without the normalisation: uint8 (n, crop, crop, 3)."""
    if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise ValueError(f"an array of images has to be uint8 (n, h, w, 3), got {images.dtype} {images.shape}")
        if is_cropped(spec, images):
            return images
    cropped = np.empty((len(images), spec.crop, spec.crop, 3), np.uint8)
    for i, image in enumerate(images):
        cropped[i] = crop(spec, image, name=f"number {i}", target_pad=target_pad)
    return cropped


def is_cropped(spec: Preprocessing, images: np.ndarray) -> bool:
    """Whether an array is a stack of images that `crop` would not change."""
    sizes = (spec.size, spec.size) if isinstance(spec.size, int) else spec.size
    return images.dtype == np.uint8 and images.shape[1:] == (*sizes, 3) and sizes == (spec.crop, spec.crop)


def crop(spec: Preprocessing, image: Source, *, name: str = "", target_pad: bool = False) -> np.ndarray:
    """One image, resized and cropped.

    Args:
      spec: sizes and filter.
      image: a path, a PIL image or a uint8 array (h, w, 3).
      name: of an image without a file, for error messages.
      target_pad: see `pad_to_ratio`.

    Returns:
      uint8 (crop, crop, 3).

    Raises: as `preprocess`.
    """
    image = read(image, name=name)
    if target_pad:
        image = pad_to_ratio(image, TARGET_RATIO)
    image = image.resize(_resized(spec, *image.size), resample=spec.resample)
    left, top = (image.width - spec.crop) // 2, (image.height - spec.crop) // 2
    return np.asarray(image.crop((left, top, left + spec.crop, top + spec.crop)))


def normalize(spec: Preprocessing, images: Any) -> Any:
    """uint8 (..., h, w, 3) -> float32, by mean and standard deviation; NumPy or JAX (inside jit) like `images`."""
    *lead, height, width, _ = images.shape
    mean, std = np.asarray(spec.mean, np.float64), np.asarray(spec.std, np.float64)
    scale, shift = (np.tile(x.astype(np.float32), height * width) for x in (spec.rescale / std, mean / std))
    values = images.reshape(*lead, height * width * 3).astype(np.float32)  # NumPy is slow along an axis of three
    values *= scale
    values -= shift
    return values.reshape(images.shape)


def read(image: Source, *, name: str = "") -> Image.Image:
    """An image in RGB, upright.

    Transparent parts become white, grey of more than 8 bits is scaled, the EXIF rotation is applied.

    Args:
      image: a path, a PIL image or a uint8 array (h, w, 3).
      name: of an image without a file, for error messages.

    Raises: as `preprocess`.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image {name}: arrays have to be uint8 (h, w, 3), got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    if isinstance(image, str | Path):
        return images.decode(image, alpha="white")
    if not isinstance(image, Image.Image):
        raise TypeError(f"image {name} must be a path, a PIL image or a uint8 array, not {type(image).__name__}")
    name = getattr(image, "filename", "") or f"image {name}"
    sixteen_bits = image.mode == "I" and image.format is None  # of no file: Pillow's mode of 16 bits before version 11
    return images.decode(image, alpha="white", name=name, value_range=(0, 65535) if sixteen_bits else None)


def pad_to_ratio(image: Image.Image, ratio: float) -> Image.Image:
    """Pad the shorter axis with black on both sides until the longer is at most (up to a pixel) `ratio` times as long.

    The preprocessing of composed image retrieval since CLIP4Cir (Baldrati et al. 2022, section 3.3), with ratio 1.25.
    """
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    least = max(width, height) / ratio
    across, down = max(int((least - width) / 2), 0), max(int((least - height) / 2), 0)
    return ImageOps.expand(image, (across, down, across, down), fill=0)


def _resized(spec: Preprocessing, width: int, height: int) -> tuple[int, int]:
    """(width, height) after resizing."""
    if not isinstance(spec.size, int):
        return spec.size[1], spec.size[0]
    long = int(spec.size * max(width, height) / min(width, height))
    return (spec.size, long) if width <= height else (long, spec.size)


# -- Files of a checkpoint -----------------------------------------------------------------


def load(folder: str | Path, config: ClipConfig) -> Preprocessing:
    """The preprocessing of a checkpoint folder.

    Read from preprocessor_config.json, processor_config.json (Hugging Face) or open_clip_config.json (OpenCLIP).
    Without any of them it is that of all published CLIPs: bicubic, CLIP's mean and standard deviation, at the tower's
    image size.

    Args:
      folder: of the checkpoint.
      config: of the checkpoint.

    Raises:
      ValueError: a file is not JSON, asks for steps that CLIP's preprocessing does not have, or crops to a size that is
        not the image tower's.
    """
    size = config.image.image_size
    for name, part, read_config in (
        ("preprocessor_config.json", None, from_huggingface),
        ("processor_config.json", "image_processor", from_huggingface),
        ("open_clip_config.json", "preprocess_cfg", lambda values: from_openclip(values, size)),
    ):
        path = Path(folder) / name
        if not os.path.lexists(path):
            continue
        values = jsons.read(path, top=dict)
        if part is not None:
            if values.get(part) is None:
                continue
            values = values[part]
            if not isinstance(values, dict):
                raise InputError("must be an object", file=path, field=part, value=values)
        try:
            spec = read_config(values)
        except ValueError as error:
            raise InputError(str(error), file=path, field=part or "") from error
        if spec.crop != size:
            raise InputError(f"crops images to {spec.crop} pixels, the image tower takes {size}", file=path)
        return spec
    return Preprocessing(size=size, crop=size)


def from_huggingface(values: Mapping[str, Any]) -> Preprocessing:
    """From the content of a preprocessor_config.json; defaults are those of transformers' CLIPImageProcessor.

    Raises:
      ValueError: the file switches a step off, pads, or crops to something that is not square.
    """
    steps = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "do_pad": False}
    for key, value in steps.items():
        given = values.get(key, value)
        if given is not value and (value or given is not None):
            raise ValueError(f"{key}={shown(given)} is not supported, only {value}")
    size, cut = values.get("size", 224), values.get("crop_size", 224)
    sides = {"shortest_edge": size} if isinstance(size, int) else size
    square = {"height": cut, "width": cut} if isinstance(cut, int) else cut
    if not isinstance(sides, Mapping) or sides.keys() not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"size {shown(size)} is not supported, only shortest_edge, or height and width")
    if not isinstance(square, Mapping) or square.keys() != {"height", "width"} or square["height"] != square["width"]:
        raise ValueError(f"crop_size {shown(cut)} is not supported, only height and width that are equal")
    return Preprocessing(
        size=sides["shortest_edge"] if "shortest_edge" in sides else (sides["height"], sides["width"]),
        crop=square["height"],
        mean=_three(values, "image_mean", CLIP_MEAN),
        std=_three(values, "image_std", CLIP_STD),
        resample=values.get("resample", 3),
        rescale=values.get("rescale_factor", 1 / 255),
    )


def to_huggingface(spec: Preprocessing) -> dict[str, Any]:
    """The content of preprocessor_config.json, as transformers' CLIPImageProcessor reads it."""
    if isinstance(spec.size, int):
        size = {"shortest_edge": spec.size}
    else:
        size = {"height": spec.size[0], "width": spec.size[1]}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": spec.resample,
        "do_center_crop": True,
        "crop_size": {"height": spec.crop, "width": spec.crop},
        "do_rescale": True,
        "rescale_factor": spec.rescale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_convert_rgb": True,
    }


def from_openclip(values: Mapping[str, Any], image_size: int) -> Preprocessing:
    """From the "preprocess_cfg" of an open_clip_config.json; defaults are OpenCLIP's.

    Raises:
      ValueError: an unknown interpolation or resize mode.
    """
    interpolation, mode = values.get("interpolation", "bicubic"), values.get("resize_mode", "shortest")
    if interpolation not in list(_FILTERS):
        names = ", ".join(map(repr, _FILTERS))
        raise ValueError(f"unknown interpolation {shown(interpolation)}; valid names: {names}")
    if mode not in ("shortest", "squash"):
        raise ValueError(f"unsupported resize_mode {shown(mode)}; valid names: 'shortest', 'squash'")
    return Preprocessing(
        size=image_size if mode == "shortest" else (image_size, image_size),
        crop=image_size,
        mean=_three(values, "mean", CLIP_MEAN),
        std=_three(values, "std", CLIP_STD),
        resample=_FILTERS[interpolation],
    )


def _three(values: Mapping[str, Any], name: str, default: tuple[float, ...]) -> Any:
    """The mean or standard deviation of a file, as a tuple."""
    given = values.get(name, default)
    if not isinstance(given, list | tuple):
        raise ValueError(f"{name} must be a list of three numbers, got {shown(given)}")
    return tuple(given)
