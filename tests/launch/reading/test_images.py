"""The decoder: every colour mode and range, orientation, damaged files."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from launch.reading import InputError, MissingInput, images

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
SMOOTH = np.linspace(0, 255, 60).astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)


def encode(array_or_image, kind: str = "PNG", **options) -> bytes:
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(source, alpha: images.Alpha = "drop", **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
        found = images.pixels(source, alpha=alpha, **options)
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    return found


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_formats_without_loss(kind, tmp_path):
    data = encode(RGB, kind)
    assert (decode(data) == RGB).all()
    (tmp_path / "no_ending").write_bytes(data)
    assert (decode(tmp_path / "no_ending") == RGB).all() and (decode(str(tmp_path / "no_ending")) == RGB).all()
    assert (decode(Image.open(io.BytesIO(data))) == RGB).all()
    assert images.decode(data, alpha="white").mode == "RGB"


@pytest.mark.parametrize("kind, options", [("JPEG", {"quality": 98}), ("WEBP", {"quality": 98}), ("GIF", {})])
def test_formats_with_loss(kind, options):
    assert np.abs(decode(encode(SMOOTH, kind, **options)).astype(int) - SMOOTH).max() < 12


# -- Orientation ------------------------------------------------------------------------------


def exif(orientation: object, extra: bytes = b"", entries: int = 1) -> bytes:
    """A big-endian EXIF block with one entry, by hand."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, entries) + entry + extra + b"\0\0\0\0"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(orientation, kind):
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
              6: RGB[::-1].transpose(1, 0, 2), 7: RGB[::-1, ::-1].transpose(1, 0, 2),
              8: RGB[:, ::-1].transpose(1, 0, 2)}[orientation]  # fmt: skip
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = encode(RGB, kind, exif=tags, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "JPEG":
        plain = decode(encode(RGB, kind))
        assert decode(data).shape == turned.shape
        back = {1: plain, 6: np.rot90(plain, -1), 8: np.rot90(plain)}
        assert orientation not in back or (decode(data) == back[orientation]).all()
    else:
        assert (decode(data) == turned).all()


def test_a_rational_with_a_zero_denominator():
    """An SRATIONAL 0/0, as some phones write it, beside the orientation: a sound photo, upright."""
    rational = struct.pack(">HHII", 0x011A, 10, 1, 8 + 2 + 24 + 4)
    block = exif(6, rational, entries=2) + struct.pack(">ii", 0, 0)
    assert decode(encode(RGB, "JPEG", exif=block)).shape == (60, 40, 3)
    unsigned = exif(6, struct.pack(">HHII", 0x011A, 5, 1, 8 + 2 + 24 + 4), entries=2) + struct.pack(">II", 1, 0)
    assert decode(encode(RGB, "JPEG", exif=unsigned)).shape == (60, 40, 3)


@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0XX",
     exif(6)[:20], exif(9), exif(0), exif(6, entries=60_000),
     b"Exif\0\0MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, 2, 4) + b"six\0" + b"\0\0\0\0"],
)  # fmt: skip
def test_a_damaged_exif_block_refuses_no_photo(block):
    found = decode(encode(RGB, "JPEG", exif=block))
    assert found.shape in ((40, 60, 3), (60, 40, 3))


# -- Ranges -----------------------------------------------------------------------------------

GREY = np.linspace(0, 1, 2400).reshape(40, 60)


def grey(found: np.ndarray) -> np.ndarray:
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()
    return found[..., 0].astype(int)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits(kind):
    values = np.round(GREY * 65535).astype(np.uint16)
    expected = (values.astype(int) + 128) // 257
    assert (grey(decode(encode(values, kind))) == expected).all()
    assert (grey(decode(Image.fromarray(values))) == expected).all()
    big = Image.frombytes("I;16B", (60, 40), values.astype(">u2").tobytes())
    assert (grey(decode(big)) == expected).all()


def test_floats():
    expected = np.floor(GREY * 255 + 0.5).astype(int)
    assert np.abs(grey(decode(encode(GREY.astype(np.float32), "TIFF"))) - expected).max() <= 1
    half = (GREY / 2).astype(np.float32)
    assert grey(decode(encode(half, "TIFF"))).max() == 128
    assert grey(decode(encode(half, "TIFF"), value_range=(0, 0.5))).max() == 255
    hundred = encode((GREY * 200 - 100).astype(np.float32), "TIFF", tiffinfo=declared(-100.0, 100.0))
    assert np.abs(grey(decode(hundred)) - expected).max() <= 1


def declared(least: float, most: float, kind: int = 12) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((340, least), (341, most)):
        tags.tagtype[tag] = kind
        tags[tag] = value
    return tags


def test_integers():
    values = np.round(GREY * 4095).astype(np.int32)
    expected = np.floor(values * (255 / 4095) + 0.5).astype(int)
    assert (grey(decode(encode(values, "TIFF", tiffinfo=declared(0.0, 4095.0)))) == expected).all()
    assert (grey(decode(encode(values, "TIFF"), value_range=(0, 4095))) == expected).all()
    assert (grey(decode(Image.fromarray(values.astype(np.uint16)), value_range=(0, 4095))) == expected).all()


@pytest.mark.parametrize(
    "values, says",
    [
        (GREY * 255, "contains floats from 0 to 255 and declares no range; floats without one must lie in [0, 1]"),
        (GREY - 0.5, "contains floats from -0.5 to 0.5"),
        (np.full((4, 4), np.nan), "contains floats from nan to nan"),
        (np.round(GREY * 4095).astype(np.int32), "contains 32-bit integers from 0 to 4095 and declares no range"),
    ],
)  # fmt: skip
def test_values_without_a_range(values, says):
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    with pytest.raises(InputError) as caught:
        decode(encode(values, "TIFF"), name="x.tif")
    assert str(caught.value).startswith(f"x.tif: {says}")


def test_values_that_contradict_the_range():
    with pytest.raises(InputError, match=r"contains values from 0 to 1, outside its range from 0 to 0\.5"):
        decode(encode(GREY.astype(np.float32), "TIFF"), value_range=(0, 0.5))
    with pytest.raises(InputError, match="contains NaN or infinite values"):
        decode(encode(np.full((4, 4), np.nan, np.float32), "TIFF"), value_range=(0, 1))


def test_white_is_zero():
    values = np.round(GREY * 65535).astype(np.uint16)
    data = bytearray(encode(values, "TIFF"))
    at = data.index(struct.pack("<HHI", 262, 3, 1))
    assert struct.unpack_from("<H", data, at + 8) == (1,)
    struct.pack_into("<H", data, at + 8, 0)
    assert (grey(decode(bytes(data))) == 255 - (values.astype(int) + 128) // 257).all()


# -- Colours ----------------------------------------------------------------------------------


def with_alpha(mode: str) -> Image.Image:
    alpha = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    return Image.fromarray(np.dstack([RGB if mode == "RGBA" else RGB[..., 0], alpha]), mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha(mode):
    colour = RGB if mode == "RGBA" else RGB[..., :1].repeat(3, 2)
    share = np.linspace(0, 255, 60).astype(np.uint8)[None, :, None] / 255
    found = decode(encode(with_alpha(mode)), "white")
    assert np.abs(found - (colour * share + 255 * (1 - share))).max() <= 1
    assert (found[:, 0] == 255).all() and (found[:, -1] == colour[:, -1]).all()
    assert (decode(encode(with_alpha(mode)), "drop") == colour).all()
    with pytest.raises(ValueError, match="unknown alpha 'black'; valid names: 'white', 'drop'"):
        decode(encode(RGB), "black")


def test_palettes():
    image = Image.fromarray(RGB).quantize(16)
    colours = np.asarray(image.convert("RGB"))
    for alpha in ("white", "drop"):
        assert (decode(encode(image), alpha) == colours).all()
        assert (decode(encode(image, "GIF"), alpha) == colours).all()
    data = encode(image, transparency=3)
    clear = np.asarray(image) == 3
    assert clear.any() and (decode(data, "drop") == colours).all()
    assert (decode(data, "white")[clear] == 255).all() and (decode(data, "white")[~clear] == colours[~clear]).all()


def test_one_transparent_colour():
    values = np.round(GREY * 65535).astype(np.uint16)
    values[0, 0] = 7
    for array, clear in ((RGB, tuple(RGB[3, 4].tolist())), (RGB[..., 0], int(RGB[3, 4, 0])), (values, 7)):
        data = encode(array, transparency=clear)
        white, drop = decode(data, "white"), decode(data, "drop")
        place = (0, 0) if array is values else (3, 4)
        assert (white[place] == 255).all() and (drop[place] != 255).any()


def test_other_modes():
    cmyk = decode(encode(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=98))
    assert np.abs(cmyk.astype(int) - SMOOTH).max() < 12
    assert (grey(decode(encode(Image.fromarray(RGB[..., 0])))) == RGB[..., 0]).all()
    bits = RGB[..., 0] > 127
    assert (grey(decode(encode(Image.fromarray(bits)))) == bits * 255).all()
    premultiplied = with_alpha("RGBA").convert("RGBa")
    assert (decode(premultiplied, "drop")[:, -1] == RGB[:, -1]).all()
    assert (decode(premultiplied, "white")[:, 0] == 255).all()


def test_the_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert (decode(data) == (255, 0, 0)).all(), kind


# -- Damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP"])
def test_truncated(kind, tmp_path):
    data = encode(RGB, kind)
    for share in (0, 0.1, 0.5, 0.9):
        path = tmp_path / "a photo.jpg"
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError, match=r"^/.*a photo\.jpg: .*; replace the file or remove it$"):
            decode(path)


def test_rows_that_are_not_there():
    data = bytearray(encode(GREY.astype(np.float32), "TIFF"))
    at = data.index(struct.pack("<HHI", 257, 4, 1))
    struct.pack_into("<I", data, at + 8, 4000)
    with pytest.raises(InputError, match=r"x: is truncated: 2,400 of 240,000 pixels are there"):
        decode(bytes(data), name="x")


@pytest.mark.parametrize("tag", [256, 257, 278])
def test_sizes_that_are_fractions(tag):
    """Of a TIFF: width, height, rows of a strip."""
    data = bytearray(encode(GREY.astype(np.float32), "TIFF"))
    at = next(at for kind in (3, 4) if (at := data.find(struct.pack("<HHI", tag, kind, 1))) > 0)
    value = int.from_bytes(data[at + 8 : at + 10], "little")
    struct.pack_into("<HHII", data, at, tag, 5, 1, len(data))  # one half less, behind the image
    data += struct.pack("<II", 2 * value - 1, 2)
    with pytest.raises(InputError, match=r"^x: .*; replace the file or remove it$"):
        decode(bytes(data), name="x")


def test_bombs():
    """Large images in few bytes, by the limit of Pillow and by ours."""
    bomb = b"P5 20000 20000 255\n"
    with pytest.raises(InputError, match=r"bomb\.pgm: is too large to be decoded"):
        decode(bomb, name="bomb.pgm")
    header = b"GIF89a" + struct.pack("<HH", 10_000, 8_000) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    header += b"," + struct.pack("<HHHH", 0, 0, 10_000, 8_000) + b"\0\2\2\x44\1\0;"
    with pytest.raises(InputError, match=r"bomb\.gif: declares 10000 x 8000 pixels in .* a decompression bomb"):
        decode(header, name="bomb.gif")


def test_what_is_no_image(tmp_path):
    with pytest.raises(MissingInput, match=r"a\.jpg: no such file"):
        decode(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="is a folder"):
        decode(tmp_path)
    with pytest.raises(InputError, match=r"^image: is empty; replace"):
        decode(b"")
    with pytest.raises(InputError, match=r"^x: is not an image in a supported format"):
        decode(b"hello" * 100, name="x")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(InputError, match="is not an image in a supported format"):  # nothing is run
        decode(script)
    with pytest.raises(InputError, match=r"caf\\xe9\.jpg: is not an image"):
        path = str(tmp_path / "caf\udce9.jpg")
        with open(path, "wb") as file:
            file.write(b"x")
        decode(path)
