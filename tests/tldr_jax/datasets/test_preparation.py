"""What part of an image each preparation leaves, in numbers worked out by hand, and where it reaches a run."""

import pickle

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image

from configs.tldr import celeba_resnet50, spuco_animals_resnet50, waterbirds_resnet50
from launch.data import Stream, stream
from launch.stages import SettingError
from tests.tldr_jax.small import CONFIG, changed
from tldr_jax import datasets, experiment
from tldr_jax.datasets import preparation


def seen(name, width, height):
    """The part of the image that is left: left, right, top and bottom edges as shares of its width and height."""
    y, x = np.mgrid[:height, :width]
    shades = [255 * (a + 0.5) / side for a, side in ((x, width), (y, height))]
    image = Image.fromarray(np.stack([*shades, 0 * x], -1).round().astype(np.uint8))
    found = preparation.cut(name, 224)(image)
    assert found.shape == (224, 224, 3) and found.dtype == np.uint8
    # of a ramp, the first and last pixel lie half a pixel inside the edges
    lines = found[112, :, 0].astype(float), found[:, 112, 1].astype(float)
    return [edge for line in lines for edge in np.polyval(np.polyfit(np.arange(224) + 0.5, line, 1), (0, 224)) / 255]


@pytest.mark.parametrize(
    ("name", "size", "edges"),
    [
        # 178 x 218: all 178 columns, rows 20 to 198
        ("face", (178, 218), (0, 1, 20 / 218, 198 / 218)),
        # 256 x 256 whatever the ratio, 16 of 256 cut off at each side
        ("squashed", (500, 375), (16 / 256, 240 / 256, 16 / 256, 240 / 256)),
        ("squashed", (333, 500), (16 / 256, 240 / 256, 16 / 256, 240 / 256)),
        # the short side to 256, the long one to 341: 58.5 of 341 cut off at each side of it
        ("center", (500, 375), (58 / 341, 282 / 341, 16 / 256, 240 / 256)),
    ],
)
def test_the_part_that_is_seen(name, size, edges):
    np.testing.assert_allclose(seen(name, *size), edges, atol=0.006)


def test_the_published_preparation_is_the_default_of_each_data_set():
    found = {}
    for module in (waterbirds_resnet50, celeba_resnet50, spuco_animals_resnet50):
        plan = experiment.plan(FrozenConfigDict(module.get_config()))
        found[module.get_config().data.name] = plan.train.erm.preparation
    assert found == {"waterbirds": "squashed", "celeba": "face", "spuco_animals": "squashed"}
    assert set(preparation.PUBLISHED) == set(datasets.NAMES) - {"scenes"}


def test_another_preparation_makes_other_features_and_the_same_embeddings_of_clip():
    config = FrozenConfigDict(waterbirds_resnet50.get_config())
    plan, other = (experiment.plan(changed(config, {"data.preparation": name})) for name in ("squashed", "center"))
    assert experiment.plan(config).key == plan.key  # the default by its name
    assert plan.train.key != other.train.key and plan.test.key != other.test.key
    assert plan.diagnostics.images.key == other.diagnostics.images.key


def test_what_cannot_be_prepared_is_refused():
    with pytest.raises(SettingError, match=r"data\.preparation='squared'; valid names: 'squashed', 'face', 'center'"):
        experiment.plan(changed(FrozenConfigDict(waterbirds_resnet50.get_config()), {"data.preparation": "squared"}))
    with pytest.raises(SettingError, match="Scenes' images have their size already"):
        experiment.plan(changed(CONFIG, {"data.preparation": "face"}))


class Ramps:
    def __len__(self):
        return 6

    def __getitem__(self, row):
        pixels = np.random.default_rng(row).integers(0, 256, (40, 60, 3), np.uint8)
        return Image.fromarray(pixels)


@pytest.mark.parametrize("flip", [False, True])
def test_without_random_crops_training_sees_what_evaluation_sees(flip):
    cut = pickle.loads(pickle.dumps(preparation.cut("squashed", 14)))
    split = Stream(Ramps(), np.arange(6, dtype=np.int32), 14, flip=flip, crop=False, view=cut)
    (held,) = stream.eval_batches(split, batch_size=6, first=0, size=6)
    for row in range(6):
        np.testing.assert_array_equal(held["image"][row], cut(Ramps()[row]))
    batches = stream.train_batches(split, seed=0, batch_size=6, start=0, first=0, size=6)
    mirrored = set()
    for _, batch in zip(range(4), batches, strict=False):
        for image, row in zip(batch["image"], batch["label"], strict=True):
            same, flipped = (np.array_equal(image, held["image"][row][:, ::step]) for step in (1, -1))
            assert same or flipped
            mirrored.add(flipped)
    assert mirrored == ({False, True} if flip else {False})
