"""Sets in memory: IDX files, digits, the seeded hold-out, and what is said of bad input."""

import gzip
import re
import struct

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from launch import data
from launch.data import DataSet, idx, splits
from launch.stages import SettingError, describe, settings
from tests.sections import read


def config(name, **fields):
    base = dict(
        name=name, path="", val_examples=0, train_examples=0, test_examples=0, image_size=0, crop_padding=0,
        flip=False, workers=0,
    )  # fmt: skip
    return FrozenConfigDict({**base, **fields})


def idx_bytes(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Twenty training images in plain files, six test images in gzipped ones; both image sets by part."""
    rng = np.random.default_rng(0)
    images = {part: rng.integers(0, 256, (n, 6, 6), np.uint8) for part, n in (("train", 20), ("t10k", 6))}
    for part, values in images.items():
        pairs = (("images-idx3", values), ("labels-idx1", np.arange(len(values), dtype=np.uint8) % 4))
        for kind, array in pairs:
            content, name = idx_bytes(array), f"{part}-{kind}-ubyte"
            if part == "t10k":
                content, name = gzip.compress(content), name + ".gz"
            (tmp_path / name).write_bytes(content)
    return tmp_path, images


def test_idx_files_plain_and_gzipped(folder):
    path, images = folder
    found = read(data.DataSet, config("idx", path=str(path)), "data").load(0)
    np.testing.assert_array_equal(found.train.images[..., 0], images["train"])
    np.testing.assert_array_equal(found.test.images[..., 0], images["t10k"])
    np.testing.assert_array_equal(found.train.labels, np.arange(20) % 4)
    assert found.val is None and found.classes == ("0", "1", "2", "3") and found.image_shape == (6, 6, 1)
    assert found.mean == (round(float(images["train"].mean() / 255), 4),)
    assert found.std == (round(float((images["train"] / 255).std()), 4),)
    assert str(path) in found.note and "20 train of 20" in found.note
    given = read(data.DataSet, config("idx", path=str(path), mean=(0.5,), std=(0.25,)), "data").load(0)
    assert (given.mean, given.std) == ((0.5,), (0.25,))
    assert idx.available(path) and not idx.available(path / "nothing")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            "train",
            "train-labels-idx1-ubyte, record 7: label 255 is of no class: the classes are 0 to 3, 4 has no example",
        ),
        ("t10k", "t10k-labels-idx1-ubyte, record 7: label 255 is of no class: the training labels are 0 to 3"),
    ],
)
def test_an_idx_label_beyond_the_classes_is_refused(tmp_path, part, said):
    for name, values in (("images-idx3", np.zeros((20, 6, 6), np.uint8)), ("labels-idx1", np.arange(20) % 4)):
        for each in ("train", "t10k"):
            values = values.astype(np.uint8)
            if values.ndim == 1 and each == part:
                values[7] = 255
            (tmp_path / f"{each}-{name}-ubyte").write_bytes(idx_bytes(values))
            values = np.arange(20) % 4 if values.ndim == 1 else values
    for reads in (idx.load, idx.outline):
        with pytest.raises(ValueError, match=said):
            reads(tmp_path)


def test_fashion_mnist_of_the_debian_package():
    if not idx.available():
        pytest.skip(f"no Fashion-MNIST in {idx.DEFAULT_FOLDER}: apt-get install dataset-fashion-mnist")
    found = read(data.DataSet, config("idx", val_examples=5000), "data").load(0)
    assert [len(part) for part in (found.train, found.val, found.test)] == [55000, 5000, 10000]
    assert found.classes[9] == "Ankle boot" and found.train.image_shape == (28, 28, 1)
    assert np.bincount(found.test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose((found.mean, found.std), ((0.2860,), (0.3530,)), atol=1e-4)


def test_idx_images_without_pixels_are_refused(tmp_path):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((8, 6, 0), np.uint8)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(8, dtype=np.uint8) % 4))
    for reads in (idx.load, idx.outline):
        with pytest.raises(ValueError, match=rf"{tmp_path}: training images are \(6, 0, 1\).* above 0 is needed"):
            reads(tmp_path)


def test_idx_files_that_are_damaged_are_named(folder):
    path, _ = folder
    name = path / "train-images-idx3-ubyte"
    good = name.read_bytes()
    name.write_bytes(good[:-5])
    with pytest.raises(ValueError, match=rf"{name} is truncated: .*\(20, 6, 6\), 736 bytes, found 731"):
        idx.load(path)
    name.write_bytes(good[:7])
    with pytest.raises(ValueError, match=rf"{name} is truncated: 7 bytes"):
        idx.load(path)
    name.write_bytes(b"\x00\x00\x0d\x03" + good[4:])
    with pytest.raises(ValueError, match=rf"{name} is not an IDX file .* begins 00 00 0d 03, expected 00 00 08 03"):
        idx.load(path)
    name.write_bytes(idx_bytes(np.zeros((19, 6, 6), np.uint8)))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte has 19 images, .*has 20 labels"):
        idx.load(path)
    name.write_bytes(good)
    zipped = path / "t10k-images-idx3-ubyte.gz"
    zipped.write_bytes(zipped.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{zipped} is truncated or not a gzip file"):
        idx.load(path)
    zipped.write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match=rf"{zipped} is truncated or not a gzip file"):
        idx.load(path)


def test_idx_files_that_are_missing_are_named(folder, tmp_path):
    path, _ = folder
    (path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.*apt-get install dataset-fashion-mnist"):
        idx.load(path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*/nothing with IDX files.*apt-get install"):
        read(data.DataSet, config("idx", path=str(tmp_path / "nothing")), "data").load(0)


def test_digits_are_cut_the_same_way_every_time():
    found = read(data.DataSet, config("digits", val_examples=137), "data").load(0)
    assert [len(part) for part in (found.train, found.val, found.test)] == [1300, 137, 360]
    assert found.image_shape == (16, 16, 1) and len(found.classes) == 10
    assert found.train.images.min() == 0 and found.train.images.max() == 255
    again, other = (read(data.DataSet, config("digits", val_examples=137), "data").load(seed) for seed in (0, 1))
    np.testing.assert_array_equal(found.val.images, again.val.images)
    np.testing.assert_array_equal(found.test.images, other.test.images)
    assert not np.array_equal(found.val.images, other.val.images)
    whole = np.concatenate([found.train.images, found.val.images])
    np.testing.assert_allclose(found.mean[0], whole.mean() / 255, atol=1e-4)
    np.testing.assert_allclose(found.std[0], (whole / 255).std(), atol=1e-4)


def test_digits_are_the_eight_by_eight_images():
    from sklearn.datasets import load_digits

    source = load_digits()
    found = read(data.DataSet, config("digits", image_size=8), "data").load(0)
    scaled = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): k
        for image, k in zip(source.images, source.target, strict=True)
    }
    pairs = zip(found.test.images[..., 0], found.test.labels, strict=True)
    assert all(scaled[image.tobytes()] == label for image, label in pairs)


def test_hold_out_is_disjoint_and_nested():
    whole = splits.Arrays(np.zeros((50, 1, 1, 1), np.uint8), np.arange(50, dtype=np.int32))
    train, val = splits.hold_out(whole, seed=3, val_examples=10, train_examples=0)
    assert sorted([*train.labels, *val.labels]) == list(range(50)) and len(val) == 10
    fewer, same = splits.hold_out(whole, seed=3, val_examples=10, train_examples=12)
    assert set(fewer.labels) < set(train.labels) and len(fewer) == 12
    np.testing.assert_array_equal(val.labels, same.labels)


def test_sizes_that_do_not_fit_are_refused(folder):
    path = str(folder[0])
    with pytest.raises(ValueError, match=r"data\.val_examples=20 leaves nothing of the 20 training examples"):
        read(data.DataSet, config("idx", path=path, val_examples=20), "data").load(0)
    with pytest.raises(ValueError, match=r"data\.train_examples=16 of 20 .* at most 15"):
        read(data.DataSet, config("idx", path=path, val_examples=5, train_examples=16), "data").load(0)
    with pytest.raises(ValueError, match=r"data\.test_examples=7 of 6 examples"):
        read(data.DataSet, config("idx", path=path, test_examples=7), "data").load(0)
    with pytest.raises(ValueError, match=r"data\.mean=\(0.1, 0.2\): the images have 1 channels"):
        read(data.DataSet, config("idx", path=path, mean=(0.1, 0.2)), "data").load(0)
    with pytest.raises(ValueError, match=r"data\.std=\(0.0,\): must be a number, above 0"):
        read(data.DataSet, config("idx", path=path, std=(0.0,)), "data").load(0)
    few = settings(
        data.DataSet, {"data": config("idx", path=path, val_examples=5, train_examples=8, test_examples=3)}, "data"
    ).load(0)
    assert [len(part) for part in (few.train, few.val, few.test)] == [8, 5, 3]


def test_a_data_set_has_settings_that_fit_it():
    with pytest.raises(
        SettingError, match=r"data\.name='cifar'; valid names: 'cifar10', 'digits', 'fashion_mnist', 'idx'"
    ):
        read(data.DataSet, ConfigDict(dict(name="cifar")), "data").load(0)
    for given, problem in [
        (
            dict(name="imagenet100", crop_padding=4),
            r"data.crop_padding=4: images of imagenet100 are streamed with random",
        ),
        (dict(name="image_folder", path="x", memory="no"), r"data.image_size=0: .* set it, for example to 224"),
        (dict(name="image_folder"), r"data.path='': .* set it to a folder. Expected layout: ROOT/train/CLASS"),
        (dict(name="digits", val_examples=-1), r"data.val_examples=-1: must be a number, at least 0"),
        (dict(name="digits", workers=-1), r"data.workers=-1: must be a number, at least 0"),
        (dict(name="scenes", correlation=1.5), r"data.correlation=1.5: must be a number, at least 0 and at most 1"),
        (dict(name="digits", classes="imagenet100"), r"data.classes='imagenet100': only image_folder"),
        (dict(name="digits", colour=1), r"data.colour: no such setting; data has name, path, val_examples"),
    ]:
        with pytest.raises(SettingError, match=problem):
            settings(DataSet, {"data": given}, "data")


def test_the_spec_is_what_is_loaded(folder, monkeypatch):
    path = str(folder[0])
    sets = [
        DataSet("digits", val_examples=100, image_size=8),
        DataSet("digits", train_examples=50, test_examples=20),
        DataSet("scenes", val_examples=300, image_size=16),
        DataSet("idx", path=path, val_examples=5, mean=(0.5,)),
        DataSet("idx", path=path, image_size=3, train_examples=7, val_examples=1, test_examples=2),
    ]
    for one in sets:
        read = one.load(3)
        with monkeypatch.context() as patched:
            patched.setattr(splits, "Arrays", None)  # no pixels
            spec = one.spec()
        assert (spec.image_shape, spec.classes) == (read.image_shape, read.classes)
        sizes = (len(read.train), len(read.val) if read.val else 0, len(read.test))
        assert (spec.examples, spec.val_examples, spec.test_examples) == sizes
        assert spec.in_memory and one.statistics() == (read.mean, read.std)
    for one in (DataSet("digits", val_examples=1437), DataSet("idx", path=path, val_examples=5, train_examples=16)):
        with pytest.raises(SettingError) as refused:
            one.spec()
        with pytest.raises(SettingError, match=re.escape(str(refused.value))):
            one.load(0)


def test_a_data_set_counts_by_its_fields(tmp_path):
    listed = tmp_path / "classes.txt"
    listed.write_text("dog\n")
    fields = dict(name="image_folder", path="nowhere", image_size=8)
    one = describe(DataSet(**fields))
    assert one == describe(DataSet(**fields, workers=3))
    assert one["fields"]["path"] == "nowhere"
    for other in (dict(flip=True), dict(val_examples=3), dict(classes="imagenet100"), dict(classes=str(listed))):
        assert describe(DataSet(**fields, **other)) != one
    before = describe(DataSet(**fields, classes=str(listed)))
    listed.rename(tmp_path / "moved.txt")
    assert describe(DataSet(**fields, classes=str(tmp_path / "moved.txt"))) == before
    listed.write_text("cat\n")
    assert describe(DataSet(**fields, classes=str(listed))) != before


def test_resizing_keeps_what_it_averages():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, :, 4:, 1] = 200
    half = splits.resize_all(images, 4)
    assert half.shape == (2, 4, 4, 3) and not half[1].any()
    assert half[0, 0, 0].tolist() == [0, 0, 0] and half[0, 0, 3].tolist() == [0, 200, 0]
    assert splits.resize_all(images, 8) is images
    with pytest.raises(ValueError, match="not square"):
        splits.resize_all(images[:, :4], 0)
