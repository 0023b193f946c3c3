"""How images are cut to the classifier's size where they are not augmented: by name, each data set's as published."""

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from launch.data import images

Cut = Callable[[Image.Image], np.ndarray]  # PIL image -> uint8 (size, size, 3)

_FACE = 178  # pixels, the width of an aligned image of CelebA


def squashed(image: Image.Image, size: int) -> np.ndarray:
    """Both sides resized to size * 256 / 224, whatever their ratio, and the centre of that."""
    larger = round(size * 256 / 224)
    start = round((larger - size) / 2)
    image = image.resize((larger, larger), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((start, start, start + size, start + size)))


def face(image: Image.Image, size: int) -> np.ndarray:
    """The central square of 178 pixels, resized; of CelebA's 178 x 218 it leaves out 20 rows above and below."""
    left, top = (round((side - _FACE) / 2) for side in image.size)
    image = image.crop((left, top, left + _FACE, top + _FACE))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


PREPARATIONS = {"squashed": squashed, "face": face, "center": images.center_crop}
# Those of the published code; Scenes' images have their size already.
PUBLISHED = {"celeba": "face", "celeba_tfds": "face", "spuco_animals": "squashed", "waterbirds": "squashed"}


def cut(name: str, size: int) -> Cut:
    """What cuts images to (size, size) by a preparation of that name: picklable, for worker processes."""
    return partial(PREPARATIONS[name], size=size)
