"""Small image files for the tests of data sets."""

from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, value: int, size: tuple[int, int] = (12, 8)) -> None:
    """A PNG of one grey value, whose folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def value_of(image) -> int:
    """The grey value of an image that `write` wrote."""
    array = np.asarray(image)
    assert array.shape[-1] == 3 and (array == array.flat[0]).all()
    return int(array.flat[0])
