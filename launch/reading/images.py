"""The one decoder of images: RGB of 8 bits, upright, whatever the file's format and colours.

The rotation that EXIF notes is applied. 16-bit grey, integers and floats are scaled by the range that they have: 16
bits, what the file declares, what the caller says, or for floats [0, 1]; nothing is guessed. Of animated images the
first frame is taken. Transparent images are laid on white, as CLIP's preprocessing has it, or alpha is dropped, as
torchvision does in training.
"""

import functools
import io
import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from launch.reading import paths
from launch.reading.errors import InputError

Alpha = Literal["white", "drop"]
# Raster formats only: Pillow would pass PostScript to Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
_LARGE, _DENSEST = 1 << 25, 2000  # pixels; more are taken only from files with fewer pixels per byte
_SHOWN = "JPEG, PNG, BMP, GIF, WebP, TIFF, PPM, AVIF, JPEG 2000, QOI"
_ORIENTATION, _PHOTOMETRIC = 274, 262  # tags of EXIF and TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF in which a file declares the range of its values, signed or float first.
_LEAST, _MOST = (340, 280), (341, 281)


def decode(
    source: bytes | str | Path | Image.Image,
    *,
    alpha: Alpha,
    name: str = "",
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """An image in RGB of 8 bits a channel, upright.

    Args:
      source: a file's path or its bytes, or an open image.
      alpha: "white" lays transparent images on white; "drop" takes the colours as they are.
      name: what errors call it; by default its path.
      value_range: (black, white) of grey images of more than 8 bits; by default what the file declares, else 16 bits,
        else [0, 1] for floats.

    Returns:
      A Pillow image of mode RGB.

    Raises:
      MissingInput: no such file.
      InputError: no image of a known format, truncated, too large (see `PIL.Image.MAX_IMAGE_PIXELS`), or values of a
        range that nothing declares; it is named.
    """
    if alpha not in ("white", "drop"):
        raise ValueError(f"unknown alpha {alpha!r}; valid names: 'white', 'drop'")
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "")) or "image"
        return _decode(source, alpha, name, value_range)
    name = name or ("image" if isinstance(source, bytes) else os.fspath(source))
    stream = io.BytesIO(source) if isinstance(source, bytes) else paths.open_regular(source)
    with stream:
        try:
            image = Image.open(stream, formats=_formats())
        except UnidentifiedImageError as error:
            empty = not stream.seek(0, os.SEEK_END)
            reason = "is empty" if empty else f"is not an image in a supported format ({_SHOWN})"
            raise InputError(reason, file=name, remedy="replace the file or remove it") from error
        except Exception as error:  # Pillow's plugins raise whatever their parsers raise
            raise _undecodable(name, error) from error
        with image:
            _check_size(image, stream.seek(0, os.SEEK_END), name)
            return _decode(image, alpha, name, value_range)


def pixels(source: bytes | str | Path | Image.Image, **options: Any) -> np.ndarray:
    """As `decode`: uint8 (h, w, 3)."""
    return np.asarray(decode(source, **options))


def _decode(image: Image.Image, alpha: Alpha, name: str, value_range: tuple[float, float] | None) -> Image.Image:
    try:
        image.load()
        turned = _UPRIGHT.get(_orientation(image))
        image = _to_rgb(image, alpha, name, value_range)
        return image if turned is None else image.transpose(turned)
    except InputError:
        raise
    except Exception as error:  # as above
        raise _undecodable(name, error) from error


def _check_size(image: Image.Image, size: int, name: str) -> None:
    """Refuse a few bytes that declare a huge image, and a TIFF file that leaves out parts, which would be black."""
    width, height = image.size
    if width * height > max(_LARGE, _DENSEST * size):
        raise InputError(
            f"declares {width} x {height} pixels in {size:,} bytes: it is damaged or a decompression bomb",
            file=name,
            remedy="replace the file or remove it",
        )
    tiles = getattr(image, "tile", None)
    if image.format == "TIFF" and tiles:  # strips or tiles; before an orientation is applied, if there is one
        right, bottom = (max(tile[1][side] for tile in tiles) for side in (2, 3))
        if right * bottom < width * height:
            raise InputError(
                f"is truncated: {int(right * bottom):,} of {int(width * height):,} pixels are there",
                file=name,
                remedy="replace the file or remove it",
            )


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where nothing says it, or a damaged EXIF block cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # whatever a damaged block makes of Pillow: the pixels are sound all the same
        return 1


def _to_rgb(image: Image.Image, alpha: Alpha, name: str, value_range: tuple[float, float] | None) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        grey = _scaled(values, *_range(image, values, name, value_range), name)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            grey = 255 - grey  # TIFF's "white is zero", which Pillow sees to for 8 bits only
        if alpha == "white" and isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("La", "RGBa"):  # colours that are multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if alpha == "white" and ("A" in image.getbands() or transparent is not None):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "P" and transparent is not None:
        # Pillow warns of palettes with transparency unless they pass through RGBA.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _range(
    image: Image.Image, values: np.ndarray, name: str, value_range: tuple[float, float] | None
) -> tuple[float, float]:
    """(black, white) of grey values beyond 8 bits."""
    bounds = value_range or _declared(image)
    if bounds is not None:
        return bounds
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 0, 65535
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if image.mode == "F" and least >= 0 and most <= 1:
        return 0, 1
    kind = "floats" if image.mode == "F" else "32-bit integers"
    raise InputError(
        f"contains {kind} from {least:g} to {most:g} and declares no range"
        + ("; floats without one must lie in [0, 1]" if image.mode == "F" else ""),
        file=name,
        remedy="convert it to 8 or 16 bits, or store its range in SMinSampleValue and SMaxSampleValue",
    )


def _declared(image: Image.Image) -> tuple[float, float] | None:
    """The range that a TIFF file's tags give, if they give a whole one."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    for low, high in zip(_LEAST, _MOST, strict=True):
        bounds = [_number(tags.get(tag)) for tag in (low, high)]
        if bounds[0] is not None and bounds[1] is not None and bounds[0] < bounds[1]:
            return bounds[0], bounds[1]
    return None


def _number(value: Any) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None


def _scaled(values: np.ndarray, black: float, white: float, name: str) -> np.ndarray:
    """Values from black to white as uint8, rounded."""
    if not np.isfinite(values).all():
        raise InputError("contains NaN or infinite values", file=name, remedy="replace the file or remove it")
    if values.size and (values.min() < black or values.max() > white):
        raise InputError(
            f"contains values from {values.min():g} to {values.max():g}, outside its range from {black:g} to {white:g}",
            file=name,
            remedy="convert it to 8 or 16 bits",
        )
    scaled = values.astype(np.float64 if values.dtype.itemsize > 2 and values.dtype.kind != "f" else np.float32)
    scaled -= black
    scaled *= 255 / (white - black)
    scaled += 0.5
    return scaled.astype(np.uint8)  # rounds down


def _undecodable(name: str, error: Exception) -> InputError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        reason = f"is too large to be decoded ({error})"
        return InputError(reason, file=name, remedy="scale it down, or remove it")
    reason = f"cannot be decoded ({type(error).__name__}: {error})"
    return InputError(reason, file=name, remedy="replace the file or remove it")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
