"""Data prepared with TFDS, read without TensorFlow: small stand-ins of the same name and version."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import FrozenConfigDict
from PIL import Image

from launch import data
from launch.data import DataSet, Spec, feed, tfds_sets
from launch.data.folder import class_list
from launch.stages import settings
from tests.sections import read

WNIDS = class_list("imagenet100")
CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def prepare(folder, name, version, examples, labels, shape, encoding="png"):
    """Prepares `examples`, split -> [(PIL image or file, label)], as TFDS data of that name and version."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            image = tfds.features.Image(shape=shape, encoding_format=encoding)
            features = {"image": image, "label": tfds.features.ClassLabel(names=labels)}
            if encoding == "jpeg":
                features["file_name"] = tfds.features.Text()
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: self._generate_examples(rows) for split, rows in examples.items()}

        def _generate_examples(self, rows):
            for i, (image, label) in enumerate(rows):
                extra = {"file_name": f"image_{i}.JPEG"} if encoding == "jpeg" else {}
                yield i, {"image": image, "label": label, **extra}

    Builder.name = name
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / name / version


def config(name, path, **fields):
    base = dict(
        name=name, path=str(path), val_examples=0, train_examples=0, test_examples=0, image_size=0,
        crop_padding=0, flip=True, workers=0,
    )  # fmt: skip
    return FrozenConfigDict({**base, **fields})


def small_images(counts, shape, classes):
    rng = np.random.default_rng(0)
    pixels = {split: rng.integers(0, 256, (n, *shape), np.uint8) for split, n in counts.items()}
    return {
        split: [(Image.fromarray(image.squeeze()), i % classes) for i, image in enumerate(values)]
        for split, values in pixels.items()
    }


def as_set(images, labels):
    """Examples as a set: TFDS shuffles them when it prepares them."""
    return {(np.asarray(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize(
    ("name", "version", "shape", "mean"),
    [
        ("cifar10", "3.0.2", (32, 32, 3), (0.4914, 0.4822, 0.4465)),
        ("fashion_mnist", "3.0.1", (28, 28, 1), (0.2860,)),
    ],
)
def test_small_sets_are_decoded_into_memory(tmp_path, name, version, shape, mean):
    examples = small_images({"train": 300, "test": 11}, shape, 10)
    prepare(tmp_path, name, version, examples, CIFAR_NAMES, shape)
    found = read(data.DataSet, config(name, tmp_path), "data").load(0)
    assert found.classes == CIFAR_NAMES and found.mean == mean and found.image_shape == shape
    for split, part in (("train", found.train), ("test", found.test)):
        assert isinstance(part, data.Arrays) and len(part) == len(examples[split])
        assert as_set(part.images, part.labels) == as_set(*zip(*examples[split], strict=True))
    assert str(tmp_path) in found.note and version in found.note
    one = DataSet(name, path=str(tmp_path), val_examples=20)
    assert one.spec() == Spec(shape, CIFAR_NAMES, examples=280, val_examples=20, test_examples=11, in_memory=True)
    assert one.statistics() == (found.mean, found.std)
    assert "tensorflow" not in sys.modules


def test_the_default_place_is_the_one_of_tfds(tmp_path, monkeypatch):
    prepare(
        tmp_path,
        "cifar10",
        "3.0.2",
        small_images({"train": 4, "test": 2}, (32, 32, 3), 10),
        CIFAR_NAMES,
        (32, 32, 3),
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = read(data.DataSet, config("cifar10", "", val_examples=1), "data").load(0)
    assert [len(part) for part in (found.train, found.val, found.test)] == [3, 1, 2]


def jpeg(level, size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, "JPEG", quality=95)
    return io.BytesIO(file.getvalue())


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Label names backwards, strangers between; grey level is twice the label, 250 for strangers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [name for wnid in reversed(WNIDS) for name in (wnid, "x" + wnid)]

    def rows(wanted):
        return [(jpeg(2 * k), names.index(WNIDS[k])) for k in wanted] + [(jpeg(250), 1), (jpeg(250), 3)]

    examples = {"train": rows([0, 1, 2, 50, 98, 99, 99]), "validation": rows([0, 3, 99])}
    prepare(tmp_path, "imagenet2012", "5.1.0", examples, names, (None, None, 3), "jpeg")
    return tmp_path


def test_imagenet100_is_restricted_and_relabelled(imagenet):
    found = read(data.DataSet, config("imagenet100", imagenet, image_size=16), "data").load(0)
    assert found.classes == WNIDS and found.image_shape == (16, 16, 3) and found.val is None
    assert sorted(found.train.labels) == [0, 1, 2, 50, 98, 99, 99] and sorted(found.test.labels) == [0, 3, 99]
    batch = next(feed.eval_batches(found.train, batch_size=7))
    np.testing.assert_allclose(batch["image"].mean((1, 2, 3)), 2 * batch["label"], atol=1)
    held = settings(
        data.DataSet, {"data": config("imagenet100", imagenet, image_size=16, val_examples=2, test_examples=1)}, "data"
    ).load(0)
    assert [len(part) for part in (held.train, held.val, held.test)] == [5, 2, 1]
    spec = DataSet("imagenet100", path=str(imagenet), image_size=16, val_examples=2, test_examples=1).spec()
    assert spec == Spec((16, 16, 3), WNIDS, examples=5, val_examples=2, test_examples=1, in_memory=False)
    batch = next(feed.train_batches(held.train, seed=0, batch_size=5))
    np.testing.assert_allclose(batch["image"].mean((1, 2, 3)), 2 * batch["label"], atol=1)
    assert read(data.DataSet, config("imagenet100", imagenet), "data").load(0).image_shape == (
        224,
        224,
        3,
    )


def test_imagenet100_in_worker_processes(imagenet):
    found = read(data.DataSet, config("imagenet100", imagenet, image_size=16, workers=1), "data").load(0)
    batch = next(feed.eval_batches(found.train, batch_size=7))
    np.testing.assert_allclose(batch["image"].mean((1, 2, 3)), 2 * batch["label"], atol=1)


def test_labels_are_read_once_and_a_damaged_cache_is_replaced(imagenet, monkeypatch, caplog):
    records = tfds_sets.Records(tfds_sets.prepared("imagenet2012", str(imagenet)), "train")
    labels = tfds_sets.label_index(records)
    (file,) = (imagenet / "cache/alignax").iterdir()
    assert file.name.startswith("labels-imagenet2012-5.1.0-train-9-") and file.suffix == ".npy"

    def refuse(*args):
        raise AssertionError("the records were read again")

    with monkeypatch.context() as patched:
        patched.setattr(tfds_sets, "_scan", refuse)
        np.testing.assert_array_equal(tfds_sets.label_index(records), labels)
    file.write_bytes(file.read_bytes()[:90])
    np.testing.assert_array_equal(tfds_sets.label_index(records), labels)
    assert "reading the labels again" in caplog.text
    np.testing.assert_array_equal(np.load(file), labels)
    flipped = bytearray(file.read_bytes())
    flipped[128] ^= 1  # the first label
    file.write_bytes(flipped)
    np.testing.assert_array_equal(tfds_sets.label_index(records), labels)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    for part in Path(records.directory).glob("*train.array_record*"):  # prepared again, perhaps in another order
        os.utime(part, ns=(0, 0))
    monkeypatch.setattr(tfds_sets, "_scan", refuse)
    with pytest.raises(AssertionError, match="read again"):
        tfds_sets.label_index(records)


def test_a_corrupt_record_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cut = io.BytesIO(jpeg(9).getvalue()[:300])
    examples = {"train": [(cut, 0)], "validation": [(jpeg(1), 0)]}
    place = prepare(tmp_path, "imagenet2012", "5.1.0", examples, WNIDS, (None, None, 3), "jpeg")
    found = read(data.DataSet, config("imagenet100", tmp_path), "data").load(0)
    message = rf"record 0 \(image_0.JPEG\) of split 'train' in {place}: cannot be decoded"
    with pytest.raises(ValueError, match=message):
        next(feed.train_batches(found.train, seed=0, batch_size=1))


def test_a_truncated_record_file_is_named(tmp_path):
    examples = small_images({"train": 40, "test": 2}, (32, 32, 3), 10)
    place = prepare(tmp_path, "cifar10", "3.0.2", examples, CIFAR_NAMES, (32, 32, 3))
    (file,) = place.glob("*train.array_record*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cannot read .*train.* in {place}.*[Cc]opy or prepare it again"):
        read(data.DataSet, config("cifar10", tmp_path), "data").load(0)


def test_labels_of_no_class_and_damaged_metadata(tmp_path):
    (tmp_path / "cifar10" / "3.0.2.old").mkdir(parents=True)  # a copy that somebody keeps
    (tmp_path / "cifar10" / "3.0.2.old" / "dataset_info.json").write_text("{}")
    examples = small_images({"train": 6, "test": 2}, (32, 32, 3), 10)
    examples["train"][3] = (examples["train"][3][0], -1)  # TFDS' sign of an example without a label
    place = prepare(tmp_path, "cifar10", "3.0.2", examples, CIFAR_NAMES, (32, 32, 3))
    with pytest.raises(ValueError, match=rf"{place}, record \d of split 'train': label -1 is of no class; .* 0 to 9"):
        read(data.DataSet, config("cifar10", tmp_path), "data").load(0)
    (place / "features.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{place}: its metadata cannot be read .*; copy or prepare it again"):
        read(data.DataSet, config("cifar10", tmp_path), "data").load(0)


def test_data_that_are_not_prepared(tmp_path):
    how = r"Prepare it once on a machine with TensorFlow.*cifar10:3\.0\.2.*array_record"
    with pytest.raises(FileNotFoundError, match=rf"cifar10 3\.0\.2 is not prepared in {tmp_path}/cifar10 .*{how}"):
        read(data.DataSet, config("cifar10", tmp_path), "data").load(0)
    with pytest.raises(FileNotFoundError, match=r"imagenet2012 5\.1\.0 is not prepared .*downloads/manual"):
        read(data.DataSet, config("imagenet100", tmp_path), "data").load(0)
    examples = small_images({"train": 2, "test": 2}, (32, 32, 3), 10)
    prepare(tmp_path, "cifar10", "2.9.0", examples, CIFAR_NAMES, (32, 32, 3))
    with pytest.raises(FileNotFoundError, match=r"versions found: 2\.9\.0"):
        read(data.DataSet, config("cifar10", tmp_path), "data").load(0)
    place = prepare(tmp_path, "cifar10", "3.0.0", examples, CIFAR_NAMES, (32, 32, 3))
    assert (
        len(read(data.DataSet, config("cifar10", tmp_path), "data").load(0).train) == 2
    )  # same major version: same examples
    for file in place.glob("*.array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    with pytest.raises(FileNotFoundError, match=rf"{place} has no array_record files.*{how}"):
        read(data.DataSet, config("cifar10", tmp_path), "data").load(0)
