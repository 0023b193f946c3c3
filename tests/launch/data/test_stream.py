"""Streamed splits: crops and order through Grain, and folders of images."""

import dataclasses
import itertools

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image

from launch import data
from launch.data import feed, images
from launch.data.folder import Files, class_list
from launch.data.splits import Stream
from launch.stages import SettingError
from tests.sections import read


class Flat:
    """Image k is k everywhere, so that a crop of it tells which row it is."""

    def __init__(self, n, size=(20, 16)):
        self.n, self.size = n, size

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        return Image.new("RGB", self.size, (int(row), int(row), int(row)))


class Ramp(Flat):
    """As Flat, and brightness grows along both sides: crops differ."""

    def __getitem__(self, row):
        y, x = np.mgrid[: self.size[1], : self.size[0]]
        return Image.fromarray(np.stack([0 * x + int(row), 10 * x, 10 * y], -1).astype(np.uint8))


def stream(n, source=Flat, **fields):
    return Stream(source(n), np.arange(n, dtype=np.int32) % 5, image_size=8, **fields)


def take(split, count, **options):
    return list(itertools.islice(feed.train_batches(split, seed=4, batch_size=8, **options), count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_every_row_once_an_epoch_with_its_label():
    found = take(stream(13), 8)
    rows = np.concatenate([batch["image"][:, 0, 0, 0] for batch in found])
    for epoch in range(4):
        assert sorted(rows[13 * epoch : 13 * (epoch + 1)]) == list(range(13))
    assert list(rows[:13]) != list(rows[13:26])
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in found]), rows % 5)
    first = found[0]
    assert first["image"].shape == (8, 8, 8, 3) and first["image"].dtype == np.uint8
    assert first["label"].dtype == first["slot"].dtype == np.int32
    assert len(take(stream(3), 2)[1]["label"]) == 8  # a batch larger than the split


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_shares_join_to_the_same_global_batches(process_count):
    split = stream(13, Ramp)
    expected = take(split, 5)
    shares = [take(split, 5, process_index=k, process_count=process_count) for k in range(process_count)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(joined, expected)
    assert len({image.tobytes() for batch in expected for image in batch["image"]}) > 30  # the crops do differ


def test_restart_at_any_step_is_continuing():
    split = stream(13, Ramp)
    expected = take(split, 6)
    for start in (1, 4):
        assert_same(take(split, 2, start=start), expected[start : start + 2])
    other = next(feed.train_batches(split, seed=5, batch_size=8))
    assert not np.array_equal(other["image"], expected[0]["image"])


def test_a_late_start_reads_nothing_of_what_lies_before():
    reads = []

    class Counting(Flat):
        def __getitem__(self, row):
            reads.append(row)
            return super().__getitem__(row)

    take(stream(200, Counting), 1, start=10_000)
    assert 8 <= len(reads) < 8 * 40  # the batch and what is read ahead of it, not 80,000 images


def test_worker_processes_change_nothing():
    expected = take(stream(13, Ramp), 5)
    assert_same(take(stream(13, Ramp, workers=2), 5), expected)


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_is_in_order_padded_and_masked(process_count):
    split = stream(11)
    shares = [
        list(feed.eval_batches(split, batch_size=4, process_index=k, process_count=process_count))
        for k in range(process_count)
    ]
    assert {len(share) for share in shares} == {3}
    joined = {
        name: np.concatenate([part[name] for parts in zip(*shares, strict=True) for part in parts])
        for name in shares[0][0]
    }
    np.testing.assert_array_equal(joined["slot"], np.arange(12))
    np.testing.assert_array_equal(joined["mask"], np.arange(12) < 11)
    np.testing.assert_array_equal(joined["image"][:, 3, 3, 0], [*range(11), 10])
    np.testing.assert_array_equal(joined["label"][:11], np.arange(11) % 5)


def test_crop_boxes_lie_inside_with_area_and_ratio_in_bounds():
    rng = np.random.default_rng(0)
    boxes = np.array([images.crop_box(300, 200, rng) for _ in range(2000)])
    left, top, width, height = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and (left + width).max() <= 300 and (top + height).max() <= 200
    area, ratio = width * height / 60000, width / height
    assert 0.075 < area.min() < 0.1 and area.max() > 0.85
    assert 0.73 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.37
    assert abs(np.log(ratio[area < 0.4]).mean()) < 0.03  # symmetric in the logarithm where nothing is rejected
    assert images.crop_box(1000, 10, rng) == (493, 0, 13, 10)  # nothing fits: the centre, at ratio 4/3
    assert images.crop_box(1, 1, rng) == (0, 0, 1, 1)


def test_training_crop_resizes_the_box_it_drew_and_flips_half_the_time():
    image = Ramp(1, size=(24, 20))[0]
    seen = set()
    for seed in range(40):
        left, top, width, height = images.crop_box(24, 20, np.random.default_rng(seed))
        box = image.crop((left, top, left + width, top + height)).resize((8, 8), Image.Resampling.BILINEAR)
        plain = np.asarray(box)
        assert np.array_equal(images.random_resized_crop(image, 8, np.random.default_rng(seed), flip=False), plain)
        found = images.random_resized_crop(image, 8, np.random.default_rng(seed), flip=True)
        mirrored = np.array_equal(found, plain[:, ::-1])
        assert mirrored or np.array_equal(found, plain)
        seen.add(mirrored)
    assert seen == {True, False}


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (50, 50)])
def test_evaluation_crop_is_the_centre(size):
    width, height = size
    y, x = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([4 * x, 4 * y, 0 * x], -1).clip(0, 255).astype(np.uint8))
    found = images.center_crop(image, 28).astype(float)
    scale = min(size) / 32  # 28 * 256 / 224 = 32 pixels for the short side
    centre = (np.arange(28) - 13.5) * scale
    np.testing.assert_allclose(found[14, :, 0], 4 * (centre + (width - 1) / 2), atol=3.5)
    np.testing.assert_allclose(found[:, 14, 1], 4 * (centre + (height - 1) / 2), atol=3.5)


def red(mode):
    """A red square in a colour mode of Pillow, 12 x 10."""
    image = Image.new("RGB", (12, 10), (255, 0, 0))
    if mode == "RGBA":
        image.putalpha(128)
    return image if mode in ("RGB", "RGBA") else image.convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes, cat and dog, one colour mode an image."""
    files = {
        "train/cat/a.jpg": red("RGB"),
        "train/cat/b.png": red("RGBA"),
        "train/cat/deep/c.png": red("P"),
        "train/dog/d.JPEG": red("CMYK"),
        "train/dog/e.png": red("L"),
        "train/dog/f.png": Image.fromarray(np.full((10, 12), 200 * 257, np.uint16)),
        "val/cat/g.jpg": red("RGB"),
        "val/dog/h.jpg": red("RGB"),
    }
    for name, image in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG")
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    return tmp_path


def config(path, **fields):
    base = dict(
        name="image_folder", path=str(path), val_examples=0, train_examples=0, test_examples=0, image_size=8,
        crop_padding=0, flip=True, workers=0, memory="no",
    )  # fmt: skip
    return FrozenConfigDict({**base, **fields})


def test_image_folder_in_every_colour_mode(folder):
    found = read(data.DataSet, config(folder), "data").load(0)
    assert found.classes == ("cat", "dog") and found.image_shape == (8, 8, 3) and found.val is None
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(found.test) == 2
    assert found.mean == (0.485, 0.456, 0.406)
    batch = next(feed.eval_batches(found.train, batch_size=6))
    grey = round(0.299 * 255)
    expected = [(255, 0, 0)] * 4 + [(grey,) * 3, (200,) * 3]
    np.testing.assert_allclose(batch["image"].mean((1, 2)), expected, atol=2)
    assert batch["image"].std((1, 2)).max() < 1


def test_image_folder_with_val_and_test(folder):
    (folder / "test/dog").mkdir(parents=True)
    (folder / "test/cat").mkdir()
    for name in ("dog/i.png", "dog/j.png", "cat/k.png"):
        red("RGB").save(folder / "test" / name)
    found = read(data.DataSet, config(folder), "data").load(0)
    assert [len(part) for part in (found.train, found.val, found.test)] == [6, 2, 3]
    with pytest.raises(ValueError, match=r"data\.val_examples=2: image_folder has a validation split with 2 examples"):
        read(data.DataSet, config(folder, val_examples=2), "data").load(0)


def test_image_folder_of_listed_classes(folder):
    listed = folder / "classes.txt"
    listed.write_text("dog\n")
    found = read(data.DataSet, config(folder, classes=str(listed), val_examples=1), "data").load(0)
    assert found.classes == ("dog",) and found.train.labels.tolist() == [0, 0] and len(found.val) == 1
    listed.write_text("dog\ncat\n")
    found = read(data.DataSet, config(folder, classes=str(listed)), "data").load(0)
    assert found.classes == ("dog", "cat") and found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(FileNotFoundError, match=r"train lacks 100 of 100 class folders: n01440764, .* and 95 more"):
        read(data.DataSet, config(folder, classes="imagenet100"), "data").load(0)
    with pytest.raises(SettingError, match=r"data\.classes='imagenet1000': take 'imagenet100' or a text file"):
        read(data.DataSet, config(folder, classes="imagenet1000"), "data").load(0)
    listed.write_text("dog\ndog\n")
    with pytest.raises(ValueError, match=r"classes.txt, line 2: 'dog' is on line 1 already"):
        read(data.DataSet, config(folder, classes=str(listed)), "data").load(0)


def test_image_folders_that_are_incomplete_are_refused(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=r"no such folder.*Expected layout: ROOT/train/CLASS"):
        read(data.DataSet, config(folder / "nothing"), "data").load(0)
    with pytest.raises(SettingError, match=r"data\.path='': .*set it to a folder\. Expected layout"):
        read(data.DataSet, config(""), "data").load(0)
    with pytest.raises(FileNotFoundError, match=r"none of these folders.*Expected layout"):
        read(data.DataSet, config(tmp_path_factory.mktemp("empty")), "data").load(0)
    (folder / "train/emu").mkdir()
    with pytest.raises(FileNotFoundError, match="val lacks 1 of 3 class folders: emu"):
        read(data.DataSet, config(folder), "data").load(0)
    (folder / "val/emu").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/emu: no images"):
        read(data.DataSet, config(folder), "data").load(0)
    (folder / "train/emu").rmdir()
    with pytest.raises(FileNotFoundError, match=r"val has class folders that the training images lack: emu"):
        read(data.DataSet, config(folder), "data").load(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(folder, workers):
    path = folder / "train/cat/a.jpg"
    path.write_bytes(path.read_bytes()[:200])
    found = read(data.DataSet, config(folder), "data").load(0)
    with pytest.raises(ValueError, match=rf"{path}: cannot be decoded"):
        next(feed.train_batches(dataclasses.replace(found.train, workers=workers), seed=0, batch_size=6))
    path.write_text("not an image")
    with pytest.raises(ValueError, match=rf"{path}: is not an image in a supported format"):
        Files(folder / "train", ["cat/a.jpg"])[0]


def test_the_hundred_classes_ship_with_the_package():
    names = class_list("imagenet100")
    assert len(set(names)) == 100 and names[0] == "n01440764" and names[-1] == "n02077923"
