"""Data sets with a spurious attribute: what a layout means, and what is wrong with a damaged one."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from launch.data import Arrays, Stream, tfds_sets
from launch.reading import InputError
from launch.store import Store
from tests.tldr_jax.images import value_of, write
from tldr_jax import datasets, words
from tldr_jax.datasets import captions, coco, spuco, wilds
from tldr_jax.datasets.grouped import Grouped, Groups, Part
from tldr_jax.stages.images import ImageSplit

STREAMED = dict(image_size=32, flip=False, workers=0)


def load(name, path="", *, seed=0, correlation=0.95, **examples):
    return datasets.load(name, str(path), examples=examples, seed=seed, correlation=correlation)


# file, y, place, split
ROWS = [("a/1.png", 0, 0, 0), ("a/2.png", 1, 0, 0), ("b/3.png", 1, 1, 1), ("b/4.png", 0, 1, 2), ("b/5.png", 0, 0, 2)]


def waterbirds(folder, rows=ROWS, header="img_id,img_filename,y,split,place,place_filename"):
    for i, (file, *_) in enumerate(ROWS):
        write(folder / file, 10 * (i + 1))
    lines = [f"{i},{file},{y},{split},{place},x.jpg" for i, (file, y, place, split) in enumerate(rows)]
    (folder / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def test_waterbirds(tmp_path):
    found = load("waterbirds", waterbirds(tmp_path))
    assert {name: len(part) for name, part in found.parts.items()} == {"train": 2, "val": 1, "test": 2}
    assert found.groups == datasets.groups("waterbirds") == Groups(("landbird", "waterbird"), ("land", "water"))
    train, test = found.parts["train"], found.parts["test"]
    assert train.classes.tolist() == [0, 1] and train.spurious.tolist() == [0, 0]
    assert found.group_of("test").tolist() == [1, 0] and found.counts("train").tolist() == [1, 0, 1, 0]
    assert [value_of(image) for image in test.images] == [40, 50]
    assert found.groups.name(2) == "waterbird with land" and str(tmp_path) in found.note
    split = datasets.split(train, image_size=32, flip=True, workers=2)
    assert isinstance(split, Stream) and split.image_size == 32 and split.flip and split.workers == 2


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([*ROWS, ("a/9.png", 0, 0, 0)], FileNotFoundError, r"metadata.csv, line 7: no image .*a/9\.png"),
        (ROWS[:-1], ValueError, r"b/5\.png: has no row in"),
        ([*ROWS, ROWS[0]], ValueError, r"line 7: a/1\.png is on line 2 already"),
        ([("a/1.png", 2, 0, 0), *ROWS[1:]], ValueError, "line 2, 'y': must be one of '0', '1', got '2'"),
        ([*ROWS[:2], ("b/3.png", 1, 7, 1), *ROWS[3:]], ValueError, "line 4, 'place': must be one of '0', '1', got '7'"),
        ([*ROWS[:4], ("b/5.png", 0, 0, 3)], ValueError, "line 6, 'split': must be one of '0', '1', '2', got '3'"),
        ([*ROWS[:4], ("b/5.png", "", 0, 2)], ValueError, "line 6, 'y': must be one of '0', '1', got ''"),
        ([("a/1.png", 0, 0, 1), ("a/2.png", 0, 0, 1), *ROWS[2:]], ValueError, r"no row has split 0 \(train\)"),
        ([], ValueError, "has no rows"),
    ],
)
def test_rows_and_images_that_do_not_fit(tmp_path, rows, error, message):
    with pytest.raises(error, match=message):
        wilds.load("waterbirds", waterbirds(tmp_path, rows))


def test_metadata_without_a_column_or_at_all(tmp_path):
    waterbirds(tmp_path, header="img_id,img_filename,label,split,place,place_filename")
    with pytest.raises(ValueError, match="line 1: no column 'y' among 'img_id', 'img_filename', 'label'"):
        wilds.load("waterbirds", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no metadata\.csv in"):
        wilds.load("waterbirds", tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"set data\.path"):
        wilds.load("waterbirds", "")


def test_an_image_outside_the_folder_or_under_two_names(tmp_path):
    rows = [("../secret.png", 0, 0, 0), *ROWS[1:]]
    with pytest.raises(InputError, match=r"line 2, 'img_filename': is not below .*got '\.\./secret\.png'"):
        wilds.load("waterbirds", waterbirds(tmp_path, rows))
    with pytest.raises(InputError, match=r"line 7: a/1\.png is on line 2 already"):
        wilds.load("waterbirds", waterbirds(tmp_path, [*ROWS, ("b/../a/1.png", 0, 0, 0)]))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"img_filename,y,y,place,split\na/1.png,0,1,0,0\n", "line 1: .*'y' twice"),
        (b"img_filename,y,place,split\na/1.png,0,0\n", "line 2: 3 cells, the header has 4"),
        (b'img_filename,y,place,split\n"a/1.png,0,0,0\na/2.png,1,0,0\n', "line 2: .*not closed"),
        (b"img_filename,y,place,split\na/1\xe9.png,0,0,0\n", "line 2: .*0xe9, is not UTF-8"),
    ],
)
def test_metadata_that_cannot_be_taken_apart(tmp_path, content, message):
    (waterbirds(tmp_path) / "metadata.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        wilds.load("waterbirds", tmp_path)


def test_a_link_to_its_own_folder_lists_no_image_again(tmp_path):
    (waterbirds(tmp_path) / "a" / "loop").symlink_to(tmp_path / "a")
    assert len(wilds.load("waterbirds", tmp_path).parts["train"]) == 2


def test_training_images_of_one_class_are_refused(tmp_path):
    rows = [(file, 0 if split == 0 else y, place, split) for file, y, place, split in ROWS]
    with pytest.raises(ValueError, match="no train image of the class waterbird"):
        Store("").get(ImageSplit("waterbirds", "train", str(waterbirds(tmp_path, rows))))


def celeba(folder):
    rows = [("1.png", 1, -1, 0), ("2.png", -1, 1, 1), ("3.png", 1, 1, 2)]
    for i, (file, *_) in enumerate(rows):
        write(folder / "img_align_celeba" / file, i)
    attributes = ["image_id,Bald,Blond_Hair,Male", *(f"{f},-1,{blond},{male}" for f, blond, male, _ in rows)]
    (folder / "list_attr_celeba.csv").write_text("\n".join(attributes))
    splits = ["image_id,partition", *(f"{file},{split}" for file, _, _, split in rows)]
    (folder / "list_eval_partition.csv").write_text("\n".join(splits))
    return folder


def test_celeba_in_its_own_two_files(tmp_path):
    found = load("celeba", celeba(tmp_path))
    assert found.groups.classes == ("not blond", "blond") and found.groups.spurious == ("female", "male")
    assert [found.group_of(name).tolist() for name in ("train", "val", "test")] == [[2], [1], [3]]
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.png,0\n3.png,2\n")
    with pytest.raises(ValueError, match=r"no row for 2\.png, which is on line 3"):
        wilds.load("celeba", tmp_path)
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.png,0\n2.png,1\n3.png,2\n1.png,2\n")
    with pytest.raises(InputError, match=r"line 5, 'image_id': is on an earlier line already, got '1\.png'"):
        wilds.load("celeba", tmp_path)
    (tmp_path / "list_eval_partition.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list_eval_partition\.csv"):
        wilds.load("celeba", tmp_path)


def animals(folder):
    value = 0
    for split in ("train", "val", "test"):
        for kind, names, grounds in (
            ("spuco_birds", ("landbirds", "waterbirds"), ("land", "water")),
            ("spuco_dogs", ("small_dogs", "big_dogs"), ("indoor", "outdoor")),
        ):
            for name in names:
                for ground in grounds:
                    value += 1
                    write(folder / kind / split / name / ground / "x.png", value)
    return folder


def test_spuco_animals(tmp_path):
    found = load("spuco_animals", animals(tmp_path))
    allowed = found.groups.allowed
    assert allowed.sum() == 8 and allowed[1, 0] and not allowed[0, 2] and allowed[3, 3]
    test = found.parts["test"]
    assert test.classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and test.spurious.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert [value_of(image) for image in test.images] == list(range(17, 25))
    (tmp_path / "spuco_birds/test/seabirds").mkdir()
    with pytest.raises(
        ValueError, match=r"test: has the unknown folder 'seabirds'; valid names: landbirds, waterbirds"
    ):
        spuco.load(tmp_path)
    (tmp_path / "spuco_birds/test/seabirds").rmdir()
    (tmp_path / "spuco_dogs/val/big_dogs/garden").mkdir()
    with pytest.raises(ValueError, match=r"big_dogs: has the unknown folder 'garden'; valid names: indoor, outdoor"):
        spuco.load(tmp_path)
    (tmp_path / "spuco_birds/train/landbirds/water/x.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"landbirds/water: no images .*; Expected"):
        spuco.load(tmp_path)


def test_an_animal_that_a_link_puts_into_two_groups_is_refused(tmp_path):
    birds = animals(tmp_path) / "spuco_birds/train"
    (birds / "landbirds/land/loop").symlink_to(birds / "landbirds/land")
    assert len(spuco.load(tmp_path).parts["train"]) == 8
    (birds / "landbirds/land/y.png").symlink_to(tmp_path / "spuco_birds/test/waterbirds/water/x.png")
    with pytest.raises(InputError, match="spuco_birds/test/waterbirds/water"):
        spuco.load(tmp_path)


def test_the_packages_words_are_of_these_classes_and_values(tmp_path):
    for name, found in (
        ("waterbirds", wilds.load("waterbirds", waterbirds(tmp_path / "w"))),
        ("celeba", wilds.load("celeba", celeba(tmp_path / "c"))),
        ("spuco_animals", spuco.load(animals(tmp_path / "s"))),
        ("scenes", load("scenes", train=8, val=8, test=8)),
    ):
        own, groups = words.load(name), datasets.groups(name)
        assert found.groups == groups and (own.classes, own.values) == groups.names
        np.testing.assert_array_equal(own.allowed, groups.allowed)


def test_scenes():
    found = load("scenes", train=40, val=12, test=8, correlation=0.9)
    assert found.counts("train").tolist() == [18, 2, 2, 18]
    assert found.counts("val").tolist() == [3, 3, 3, 3] and found.counts("test").tolist() == [2, 2, 2, 2]
    assert isinstance(datasets.split(found.parts["train"], **STREAMED), Arrays)
    for name, part in found.parts.items():  # the splits are drawn apart
        (alone,) = datasets.load("scenes", splits=[name], examples={name: len(part)}, correlation=0.9).parts.values()
        np.testing.assert_array_equal(alone.images, part.images)
        np.testing.assert_array_equal(alone.spurious, part.spurious)
    with pytest.raises(ValueError, match="val_examples=0"):
        load("scenes")


def test_subsets_are_seeded(tmp_path):
    waterbirds(tmp_path)
    found = [load("waterbirds", tmp_path, test=1, seed=s) for s in (0, 0, 1, 2, 3)]
    files = [value_of(one.parts["test"].images[0]) for one in found]
    assert files[0] == files[1] and set(files) == {40, 50} and len(found[0].parts["test"]) == 1
    with pytest.raises(ValueError, match=r"data\.test_examples=3 of 2"):
        load("waterbirds", tmp_path, test=3)
    with pytest.raises(ValueError, match="unknown data set 'birds'; valid names: 'celeba', 'celeba_tfds'"):
        load("birds")


def test_a_label_out_of_range_or_a_pair_that_is_not_allowed_is_named():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    part = lambda classes, spurious: {"val": Part(images, np.array(classes, np.int32), np.array(spurious, np.int32))}
    rest = (Groups(("a", "b"), ("x", "y"), ((0, 0), (1, 0), (1, 1))), "")
    with pytest.raises(ValueError, match=r"val image 1: class 2 is outside 0 to 1 \(a, b\)"):
        Grouped(part([0, 2], [0, 0]), *rest)
    with pytest.raises(ValueError, match=r"val image 0: spurious value -1 is outside"):
        Grouped(part([0, 1], [-1, 0]), *rest)
    with pytest.raises(ValueError, match="val image 1: a with y is not a pair"):
        Grouped(part([1, 0], [1, 1]), *rest)
    with pytest.raises(ValueError, match=r"classes must be int32 of shape \(2,\)"):
        part([0], [0, 0])


# -- through TFDS ------------------------------------------------------------------------------


def prepare(folder, name, version, features, examples):
    """TFDS data of that name and version; examples by split."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: enumerate(rows) for split, rows in examples.items()}

        def _generate_examples(self):
            raise AssertionError("the splits are iterators already")

    Builder.name = name
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()


def test_celeba_through_tfds(tmp_path):
    image = lambda value: str(_png(tmp_path, value))
    attributes = {"Blond_Hair": np.bool_, "Male": np.bool_, "Young": np.bool_}
    features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"), "attributes": attributes}
    row = lambda value, blond, male: {
        "image": image(value), "attributes": {"Blond_Hair": blond, "Male": male, "Young": True}
    }  # fmt: skip
    examples = {
        "train": [row(k, k % 2 == 0, k % 3 == 0) for k in range(7)],
        "validation": [row(50, True, False)],
        "test": [row(60, False, True)],
    }
    prepare(tmp_path / "tfds", "celeb_a", tfds_sets.VERSIONS["celeb_a"], features, examples)
    found = load("celeba_tfds", tmp_path / "tfds")
    train = found.parts["train"]
    values = [value_of(train.images[i]) for i in range(len(train))]
    assert sorted(values) == list(range(7))  # TFDS shuffles what it prepares
    assert train.classes.tolist() == [int(v % 2 == 0) for v in values]
    assert train.spurious.tolist() == [int(v % 3 == 0) for v in values]
    assert found.group_of("val").tolist() == [2] and found.group_of("test").tolist() == [1]
    with pytest.raises(FileNotFoundError, match=r"celeb_a 2\.1\.0 is not prepared in"):
        load("celeba_tfds", tmp_path / "nowhere")


def _png(folder, value):
    write(folder / "raw" / f"{value}.png", value)
    return folder / "raw" / f"{value}.png"


def test_coco_through_tfds(tmp_path):
    captions = tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64})
    features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"), "captions": captions}
    rows = [
        {"image": str(_png(tmp_path, k)), "captions": [{"text": f"{k} {n}", "id": n} for n in range(1 + k % 3)]}
        for k in range(9)
    ]
    version = tfds_sets.VERSIONS["coco_captions/2014"]
    prepare(tmp_path / "plain", "coco_captions", version, features, {"val": rows})
    (tmp_path / "tfds/coco_captions/2014").mkdir(parents=True)
    (tmp_path / "plain/coco_captions" / version).rename(tmp_path / "tfds/coco_captions/2014" / version)
    found = coco.from_tfds(str(tmp_path / "tfds"), "val", n=6, seed=3)
    assert len(found.captions) == len(found.images) == 6
    for image, caption in zip(found.images, found.captions, strict=True):
        number, which = map(int, caption.split())
        assert value_of(image) == number and which <= number % 3
    again = coco.from_tfds(str(tmp_path / "tfds"), "val", n=6, seed=3)
    assert again.captions == found.captions
    with pytest.raises(ValueError, match=r"gap\.pairs=10: .* has 9 pairs; take at most 9"):
        coco.from_tfds(str(tmp_path / "tfds"), "val", n=10, seed=0)


@pytest.mark.parametrize("texts", [[], [b"a dog", b" "], [b"caf\xe9"]])
def test_records_without_a_caption_are_named(tmp_path, monkeypatch, texts):
    monkeypatch.setattr(coco.tfds_sets, "prepared", lambda *_: tmp_path)
    monkeypatch.setattr(coco.tfds_sets.Records, "__len__", lambda _: 3)
    scan = lambda records, pick, rows: [pick({"captions": {"text": texts}}) for _ in rows]
    monkeypatch.setattr(coco.tfds_sets, "scan", scan)
    with pytest.raises(ValueError, match=r"record \d of split 'val': has no caption, or one that is blank or not"):
        coco.from_tfds("", "val", n=2, seed=0)


def test_coco_from_its_annotations(tmp_path):
    for k in range(5):
        write(tmp_path / "val" / f"{k}.png", k)
    content = {
        "images": [{"id": 100 + k, "file_name": f"{k}.png"} for k in range(5)],
        "annotations": [{"image_id": 100 + k, "caption": f" {k} {n}\n"} for n in range(2) for k in range(4)],
    }  # image 4 has no caption
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(content))
    drawn = captions.load("coco", path=str(file), images=str(tmp_path / "val"), pairs=3, seed=1)
    assert len(drawn.captions) == 3
    for image, caption in zip(drawn.images, drawn.captions, strict=True):
        assert caption in (f"{value_of(image)} 0", f"{value_of(image)} 1")
    every = coco.from_json(file, tmp_path / "val", n=8, seed=0)  # captions are drawn: an image may come twice
    pairs = [(value_of(image), caption) for image, caption in zip(every.images, every.captions, strict=True)]
    assert sorted(pairs) == [(k, f"{k} {n}") for k in range(4) for n in range(2)]
    draws = [coco.from_json(file, tmp_path / "val", n=2, seed=seed).captions for seed in range(200)]
    same = np.mean([one.split()[0] == other.split()[0] for one, other in draws])
    assert same == pytest.approx(1 / 7, abs=0.08)  # of the seven other captions one is of the same image
    with pytest.raises(ValueError, match=r"gap\.pairs=9: .* has 8 pairs; take at most 8"):
        coco.from_json(file, tmp_path / "val", n=9, seed=0)
    (tmp_path / "val" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions\.json: 1 of 4 .* missing, the first is .*2\.png"):
        coco.from_json(file, tmp_path / "val", n=8, seed=0)
    file.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match=r"captions\.json: no 'annotations' among 'images'"):
        coco.from_json(file, tmp_path / "val", n=1, seed=0)
    with pytest.raises(FileNotFoundError, match="the annotations' JSON file"):
        coco.from_json("", "", n=1, seed=0)


@pytest.mark.parametrize(
    "images, annotations, message",
    [
        ([{"id": 1, "file_name": "0.png"}] * 2, [], r"'images'\[1\], 'id': occurs twice, got 1"),
        ([{"id": 1.7, "file_name": "0.png"}], [], r"'images'\[0\], 'id': must be an integer, got 1\.7"),
        ([{"id": 1}], [{"image_id": 1, "caption": "x"}], r"'images'\[0\]: no 'file_name'"),
        ([{"id": 1, "file_name": "../0.png"}], [{"image_id": 1, "caption": "x"}], "'file_name': is not below"),
        (
            [{"id": 1, "file_name": "0.png"}],
            [{"image_id": 2, "caption": "x"}],
            "'image_id': no image has this id, got 2",
        ),
        ([{"id": 1, "file_name": "0.png"}], [{"image_id": 1, "caption": " "}], "'caption': must be .*not blank"),
        ([{"id": 1, "file_name": "0.png"}], [[1]], r"'annotations': item 0 must be an object, got \[1\]"),
        ({}, [], "'images': must be a list"),
    ],
)
def test_annotations_that_are_not_as_cocos(tmp_path, images, annotations, message):
    write(tmp_path / "val" / "0.png", 0)
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(InputError, match=message) as error:
        coco.from_json(file, tmp_path / "val", n=1, seed=0)
    assert str(file) in str(error.value)


def test_annotations_that_are_no_json(tmp_path):
    write(tmp_path / "val" / "0.png", 0)
    file = tmp_path / "captions.json"
    for content, message in (
        (b"\xff\xfe{", "UTF-16"),
        (b"[" * 100_000, "nested"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            coco.from_json(file, tmp_path / "val", n=1, seed=0)
