"""Folders of small images in memory: decoded once, cached by content, and when they are streamed after all."""

import logging
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from launch.data import Arrays, DataSet, Stream, feed, folder
from launch.stages import SettingError, describe

COUNTS = {"train/cat": 5, "train/dog": 4, "test/cat": 2, "test/dog": 3}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Random PNG images of 8 x 8 pixels, in two classes; the cache is beside them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    return tmp_path / "images"


def data_set(root, **fields):
    return DataSet("image_folder", path=str(root), **fields)


def pixels_in(root, part):
    names = sorted(path for path in (root / part).rglob("*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in names])


def evaluated(split, batch_size=4):
    """All images of a split, as an evaluation sees them."""
    batches = []
    for batch in feed.eval_batches(split, batch_size=batch_size):
        batch = feed.materialize(batch, feed.resident(split))
        batches.append((np.asarray(batch["image"])[batch["mask"]], np.asarray(batch["label"])[batch["mask"]]))
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


@pytest.fixture
def decodings(monkeypatch):
    """The files that were decoded, in a list."""
    paths, decode = [], folder.images.decode

    def counted(path, **options):
        paths.append(path)
        return decode(path, **options)

    monkeypatch.setattr(folder.images, "decode", counted)
    return paths


def caches(root):
    return sorted((root.parent / "cache/alignax").glob("images-*"))


def test_small_images_are_kept_in_memory_in_the_order_of_their_names(root):
    read = data_set(root, crop_padding=2, flip=True).load(0)
    assert isinstance(read.train, Arrays) and isinstance(read.test, Arrays)
    np.testing.assert_array_equal(read.train.images, pixels_in(root, "train"))
    np.testing.assert_array_equal(read.test.images, pixels_in(root, "test"))
    assert read.train.labels.tolist() == [0] * 5 + [1] * 4 and read.classes == ("cat", "dog")
    assert read.image_shape == (8, 8, 3) and read.mean == (0.485, 0.456, 0.406)
    assert set(feed.resident(read.train)) == {"images", "labels"}  # what a device keeps


def test_names_that_are_not_utf8(root, decodings):
    path = os.path.join(os.fsencode(root), b"train", b"cat", b"\xe9t\xe9.png")
    with open(path, "wb") as file:
        Image.new("RGB", (8, 8), (7, 7, 7)).save(file, "PNG")
    assert len(data_set(root).load(0).train) == 10
    assert len(data_set(root).load(0).train) == 10 and len(decodings) == sum(COUNTS.values()) + 1


def test_the_hold_out_is_drawn_by_seed(root):
    whole = data_set(root, val_examples=3)
    first, again, other = (whole.load(seed) for seed in (0, 0, 1))
    assert [len(part) for part in (first.train, first.val, first.test)] == [6, 3, 5]
    np.testing.assert_array_equal(first.val.images, again.val.images)
    assert not np.array_equal(first.val.images, other.val.images)
    rows = {image.tobytes() for part in (first.train, first.val) for image in part.images}
    assert rows == {image.tobytes() for image in pixels_in(root, "train")}
    streamed = data_set(root, val_examples=3, image_size=8, memory="no").load(0)
    np.testing.assert_array_equal(streamed.val.labels, first.val.labels)
    np.testing.assert_array_equal(evaluated(streamed.val)[0], first.val.images)


@pytest.mark.parametrize("image_size", [8, 6, 12])
def test_an_evaluation_sees_the_same_pixels_in_memory_and_streamed(root, image_size):
    kept, streamed = (data_set(root, image_size=image_size, memory=memory).load(0) for memory in ("yes", "no"))
    assert isinstance(kept.test, Arrays) and isinstance(streamed.test, Stream)
    for one, other in ((kept.train, streamed.train), (kept.test, streamed.test)):
        for mine, theirs in zip(evaluated(one), evaluated(other), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_images_are_decoded_once(root, decodings):
    first = data_set(root).load(0)
    assert len(decodings) == sum(COUNTS.values()) and len(caches(root)) == 1
    again = data_set(root).load(0)
    assert len(decodings) == sum(COUNTS.values())
    assert data_set(root).spec().in_memory
    for one, other in ((first.train, again.train), (first.test, again.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    moved = root.rename(root.parent / "elsewhere")  # the cache goes by content, not by place
    np.testing.assert_array_equal(data_set(moved).load(0).train.images, first.train.images)
    assert len(decodings) == sum(COUNTS.values())
    data_set(moved, cache=str(root.parent / "other")).load(0)
    assert len(decodings) == 2 * sum(COUNTS.values()) and len(list((root.parent / "other").iterdir())) == 1


def test_changed_files_and_sizes_are_decoded_again(root, decodings):
    data_set(root).load(0)
    changed = root / "train/cat/0.png"
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(changed)
    assert (data_set(root).load(0).train.images[0] == 9).all()
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    data_set(root).load(0)
    assert len(caches(root)) == 3
    assert data_set(root, image_size=4).load(0).image_shape == (4, 4, 3) and len(caches(root)) == 4
    (root / "train/dog/9.png").write_bytes(changed.read_bytes())
    assert len(data_set(root).load(0).train) == 10 and len(caches(root)) == 5
    assert len(decodings) == 4 * 14 + 15


def truncated(place):
    file = place / "0.npy"
    file.write_bytes(file.read_bytes()[:-100])


def flipped(place):
    file = place / "1.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def foreign(place):
    tree = place / "tree.json"
    tree.write_text(tree.read_text().replace(place.name, "images-0123456789abcdef"))


def without_arrays(place):
    for file in place.glob("*.npy"):
        file.unlink()


def not_json(place):
    (place / "tree.json").write_text("{")


def other_tree(place):
    (place / "tree.json").write_text("[1, 2]")


@pytest.mark.parametrize("damage", [truncated, flipped, foreign, without_arrays, not_json, other_tree])
def test_a_cache_that_is_damaged_or_of_other_files_is_made_again(root, decodings, caplog, damage):
    expected = data_set(root).load(0).train.images
    (place,) = caches(root)
    damage(place)
    with caplog.at_level(logging.WARNING, "absl"):
        np.testing.assert_array_equal(data_set(root).load(0).train.images, expected)
    assert re.search(rf"cached images in {place} cannot be used \(.*\): decoding again", caplog.text)
    assert len(decodings) == 28
    data_set(root).load(0)
    assert len(decodings) == 28 and caches(root) == [place]


def test_without_a_place_for_the_cache_images_are_decoded_all_the_same(root, caplog):
    blocked = root.parent / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING, "absl"):
        read = data_set(root, cache=str(blocked)).load(0)
    np.testing.assert_array_equal(read.train.images, pixels_in(root, "train"))
    assert "cannot cache the images" in caplog.text


def test_a_write_that_fails_leaves_no_cache(root, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        data_set(root).load(0)
    assert not list((root.parent / "cache/alignax").iterdir())


def test_images_of_different_sizes_are_streamed(root, caplog):
    odd = root / "test/dog/2.png"
    Image.new("RGB", (8, 9)).save(odd)
    with caplog.at_level(logging.INFO, "absl"):
        read = data_set(root, image_size=8).load(0)
    assert isinstance(read.train, Stream) and not caches(root)
    assert f"streamed: images differ in size: {root}/train/cat/0.png has 8x8 pixels, {odd} has another" in caplog.text
    spec = data_set(root, image_size=8).spec()
    assert not spec.in_memory and (spec.image_shape, spec.examples, spec.test_examples) == ((8, 8, 3), 9, 5)
    differ = rf"images differ in size: {root}/train/cat/0.png has 8x8 pixels, {odd} has another"
    for fields, problem in [
        (dict(memory="yes"), rf"data\.memory='yes': {differ}; set it to 'auto' or 'no'"),
        (dict(image_size=8, crop_padding=4), rf"data\.crop_padding=4: these images are streamed \({differ}"),
        (dict(), rf"data\.image_size=0: these images are streamed \({differ}.* set it, for example to 224"),
    ]:
        for ask in (lambda one: one.load(0), lambda one: one.spec()):
            with pytest.raises(SettingError, match=problem):
                ask(data_set(root, **fields))


def test_what_is_too_large_is_streamed_after_a_look_at_one_file(root, monkeypatch, caplog):
    sizes, size = [], folder.Files.size
    monkeypatch.setattr(folder.Files, "size", lambda self, index: sizes.append(index) or size(self, index))
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 14 * 8 * 8 * 3 - 1)
    with caplog.at_level(logging.INFO, "absl"):
        assert isinstance(data_set(root, image_size=8).load(0).train, Stream)
    assert sizes == [0] and "streamed: 14 images of 8x8 pixels take 0 MiB, more than" in caplog.text
    assert isinstance(data_set(root, image_size=7).load(0).train, Arrays)  # the size that is kept counts
    assert isinstance(data_set(root, memory="yes").load(0).train, Arrays)


def test_streaming_can_be_demanded(root):
    with pytest.raises(SettingError, match=r"^memory='maybe'; valid names: 'auto', 'yes', 'no'"):
        data_set(root, memory="maybe")
    with pytest.raises(SettingError, match=r"^image_size=0: images of image_folder are streamed"):
        data_set(root, memory="no")
    with pytest.raises(SettingError, match=r"^memory='no': only image_folder lets you choose, not digits"):
        DataSet("digits", memory="no")
    assert isinstance(data_set(root, memory="no", image_size=8).load(0).train, Stream)
    assert not data_set(root, memory="no", image_size=8).spec().in_memory
    assert describe(data_set(root, cache="a")) == describe(data_set(root)) != describe(data_set(root, memory="yes"))


def test_an_image_that_cannot_be_read_is_named(root):
    shutil.copy(root / "train/cat/0.png", root / "train/cat/5.png")
    damaged = root / "train/dog/1.png"
    damaged.write_bytes(damaged.read_bytes()[:80])
    with pytest.raises(ValueError, match=f"{damaged}: cannot be decoded"):
        data_set(root).load(0)
    assert not caches(root)
    damaged.write_text("not an image")
    with pytest.raises(ValueError, match=f"{damaged}: is not an image in a supported format"):
        data_set(root).load(0)


def test_two_sets_that_agree_in_names_sizes_and_times(root, tmp_path):
    """As raw images from archives that give all files one time."""
    other = tmp_path / "other"
    for k, path in enumerate(sorted(root.rglob("*.png"))):
        for place, level in (
            (path.with_suffix(".bmp"), k),
            (other / path.relative_to(root).with_suffix(".bmp"), 100 + k),
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (level, level, level)).save(place)
            os.utime(place, ns=(0, 0))
        path.unlink()
    first, second = (data_set(path).load(0).train.images for path in (root, other))
    assert first.max() < 100 <= second.min()


def test_photos_stand_upright_and_floats_are_not_black(root):
    photo = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[274] = 6  # taken with the camera turned
    photo.save(root / "train/cat/0.png", exif=exif)
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(root / "train/cat/1.tiff")
    Image.fromarray(np.full((8, 8), 128 << 8, np.uint16)).save(root / "train/cat/1.png")
    (root / "train/cat/2.png").unlink()
    train = data_set(root).load(0).train
    np.testing.assert_array_equal(train.images[0, :, :, 0], np.rot90(np.asarray(photo), -1))
    assert (train.images[1:3] == 128).all()


def test_each_image_of_a_class_counts_once(root, caplog):
    (root / "train/cat/all").symlink_to(root / "train/cat")
    (root / "train/cat/again.png").symlink_to(root / "train/cat/0.png")
    assert len(data_set(root).load(0).train) == 9
    assert "all is skipped: it leads to a folder that contains it" in caplog.text
    (root / "train/cat/again.png").unlink()
    (root / "train/dog/cat.png").symlink_to(root / "train/cat/0.png")
    with pytest.raises(ValueError, match="is in class 'dog' and, through a link, in class 'cat'"):
        data_set(root).load(0)


def test_splits_that_share_images_are_refused(root):
    (root / "val").symlink_to(root / "train")
    with pytest.raises(ValueError, match=r"val/cat: is, through a link, a folder of .*/train too; give each split"):
        data_set(root).spec()
    (root / "val").unlink()
    shutil.rmtree(root / "test/dog")
    (root / "test/dog").symlink_to(root / "train/dog")
    with pytest.raises(ValueError, match=r"(test|train)/dog: is, through a link, a folder of"):
        data_set(root).spec()


def test_one_class_is_refused_unless_it_is_named(root):
    for part in ("train", "test"):
        shutil.rmtree(root / part / "dog")
    with pytest.raises(ValueError, match="train: has one class folder, 'cat'; at least two are needed"):
        data_set(root).spec()
    listed = root.parent / "classes.txt"
    listed.write_text("\ufeffcat\n")  # with a byte order mark
    assert data_set(root, classes=str(listed)).load(0).classes == ("cat",)
    listed.write_bytes("katzenbär\n".encode("latin1"))
    with pytest.raises(ValueError, match=r"classes.txt, line 1: byte 8 of the line, 0xe4, is not UTF-8"):
        data_set(root, classes=str(listed)).spec()
