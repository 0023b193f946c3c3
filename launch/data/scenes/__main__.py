"""Draw the contact sheet: `python -m launch.data.scenes --out docs/scenes.png [--seed 0]`."""

import argparse
import io
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launch.data.scenes import world
from launch.data.scenes.rendering import IMAGE_SIZE, render
from launch.data.scenes.tasks import pairs, retrieval
from launch.files import write_atomically
from launch.processes import commands
from launch.reading import InputError, paths

_SCALE = 3
_TILE = _SCALE * IMAGE_SIZE
_GAP = 4
_STEP = _TILE + _GAP
_MARGIN = 10
_WIDTH = 12 * _STEP - _GAP + 2 * _MARGIN
_HEADING, _LABEL = 24, 20  # heights in pixels
_INK, _FAINT = (20, 20, 20), (110, 110, 110)


def sheet(seed: int = 0) -> Image.Image:
    """Draw every value of every attribute, a composed-retrieval query, and scenes with their captions."""
    parts = [_values(seed), _query(seed), _captioned(seed)]
    page = Image.new("RGB", (_WIDTH, sum(part.height for part in parts) + 2 * _MARGIN), "white")
    top = _MARGIN
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _values(seed: int) -> Image.Image:
    """Draw three rows of tiles; each shows one attribute or two, the others fixed."""
    rows = (
        (("curved shapes", "shape", world.CURVED, 0), ("angular shapes", "shape", world.ANGULAR, 6)),
        (("colours", "colour", world.COLOURS, 0), ("sizes", "size", world.SIZES, 9)),
        (("land", "background", world.LAND, 0), ("water", "background", world.WATER, 5)),
    )
    height = _HEADING + _TILE + _LABEL + 6
    part, draw = _canvas(len(rows) * height)
    for row, sections in enumerate(rows):
        top = row * height
        for heading, attribute, values, column in sections:
            left = _MARGIN + column * _STEP
            draw.text((left, top + 4), heading, _FAINT, _font(14))
            for i, (value, tile) in enumerate(zip(values, _vary(attribute, values, seed), strict=True)):
                _paste(part, draw, tile, left + i * _STEP, top + _HEADING, value)
    return part


def _query(seed: int) -> Image.Image:
    """Draw the patterns and, beside them, a reference, its modification in both phrasings, and the target."""
    part, draw = _canvas(_HEADING + _TILE + _LABEL + 6)
    draw.text((_MARGIN, 4), "patterns", _FAINT, _font(14))
    for i, (value, tile) in enumerate(zip(world.PATTERNS, _vary("pattern", world.PATTERNS, seed), strict=True)):
        _paste(part, draw, tile, _MARGIN + i * _STEP, _HEADING, value)
    data = retrieval(seed, queries=20)
    query = int(np.flatnonzero(data.edits == 2)[0])
    left = _MARGIN + 4 * _STEP
    draw.text((left, 4), "composed retrieval", _FAINT, _font(14))
    _paste(part, draw, data.query_images[query], left, _HEADING, "reference")
    _paste(part, draw, data.gallery_images[data.target[query]], left + 6 * _STEP, _HEADING, "target")
    for line, (phrasing, texts) in enumerate(data.modifications.items()):
        _lines(draw, left + _STEP + 12, _HEADING + 4 + 46 * line, f"{phrasing}: {texts[query]}", 58)
    return part


def _captioned(seed: int, *, across: int = 4, down: int = 3) -> Image.Image:
    part, draw = _canvas(_HEADING + down * _STEP)
    draw.text((_MARGIN, 4), "captions", _FAINT, _font(14))
    data = pairs(seed, across * down, held_out=False)
    for i, (image, (caption,)) in enumerate(zip(data.images, data.captions, strict=True)):
        left, top = _MARGIN + i % across * 3 * _STEP, _HEADING + i // across * _STEP
        part.paste(_enlarge(image), (left, top))
        _lines(draw, left + _TILE + 8, top + 4, caption, 25)
    return part


def _vary(attribute: str, values: tuple[str, ...], seed: int) -> np.ndarray:
    """Render an image of each value; the other attributes are chosen to look good."""
    names = list(world.ATTRIBUTES)
    fixed = dict(shape="star", colour="red", size="medium", pattern="plain", background="sand")
    if attribute == "shape":
        fixed |= dict(size="large", colour="blue")
    if attribute == "pattern":
        fixed |= dict(size="large", shape="heart", colour="purple")
    base = [world.ATTRIBUTES[name].index(value) for name, value in fixed.items()]
    attributes = np.tile(np.asarray(base, np.int32), (len(values), 1))
    attributes[:, names.index(attribute)] = [world.ATTRIBUTES[attribute].index(value) for value in values]
    return render(attributes, seed=seed)


def _canvas(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    part = Image.new("RGB", (_WIDTH, height), "white")
    return part, ImageDraw.Draw(part)


def _paste(part: Image.Image, draw: ImageDraw.ImageDraw, tile: np.ndarray, left: int, top: int, label: str):
    part.paste(_enlarge(tile), (left, top))
    draw.text((left + _TILE / 2, top + _TILE + 2), label, _INK, _font(14), anchor="ma")


def _lines(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, width: int):
    draw.multiline_text((left, top), "\n".join(textwrap.wrap(text, width)), _INK, _font(15), spacing=4)


def _enlarge(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.NEAREST)


def _font(size: int):
    return ImageFont.load_default(size)


@commands.ending()
def main():
    parser = argparse.ArgumentParser(prog="python -m launch.data.scenes", description="Draw the contact sheet.")
    parser.add_argument("--out", required=True, help="the PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.seed < 0:
        raise InputError("must be at least 0", field="--seed", value=options.seed)
    out = paths.path(options.out, "--out")
    buffer = io.BytesIO()
    # Rounding to 5 bits is below the pixel noise and makes the file a third smaller.
    levels = [min(255, round(value / 8) * 8) for value in range(256)]
    sheet(options.seed).point(3 * levels).save(buffer, "PNG", optimize=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, buffer.getvalue())
    print(f"{out}: {len(buffer.getvalue()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
