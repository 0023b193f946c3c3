"""Scenes as data sets: pairs, classification with its groups, composed retrieval, text triplets, and by name."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image

from launch import data
from launch.data import scenes
from launch.data.scenes import world
from tests.commands import ROOT


def equal(a, b):
    """Two results of a task, field by field; arrays, lists and nested dicts."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if dataclasses.is_dataclass(a):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: scenes.pairs(seed, 40, held_out=False, captions_per_image=2),
        lambda seed: scenes.classification(seed, train=40, val=20, test=20),
        lambda seed: scenes.retrieval(seed, gallery=600, queries=40),
        lambda seed: scenes.triplets(seed, 40),
    ],
    ids=["pairs", "classification", "retrieval", "triplets"],
)
def test_tasks_are_a_function_of_the_seed(make):
    assert equal(make(0), make(0)) and not equal(make(0), make(1))


def test_pairs():
    found = scenes.pairs(0, 500, held_out=False, captions_per_image=3)
    assert found.images.shape == (500, 32, 32, 3) and found.images.dtype == np.uint8
    assert found.attributes.shape == (500, 5) and found.attributes.dtype == np.int32
    assert not scenes.held_out(found.attributes).any()
    assert len(found.captions) == 500 and all(len(texts) == 3 for texts in found.captions)
    assert np.mean([len(set(texts)) == 3 for texts in found.captions]) > 0.7
    tested = scenes.pairs(0, 500, held_out=True, full=True, distinct=True)
    assert scenes.held_out(tested.attributes).all() and len(np.unique(tested.attributes, axis=0)) == 500
    assert len({text for texts in tested.captions for text in texts}) == 500
    silent = scenes.pairs(0, 500, held_out=False, captions_per_image=0)
    np.testing.assert_array_equal(silent.images, found.images)
    assert silent.captions == [[]] * 500
    with pytest.raises(ValueError, match="n=-1 and captions_per_image=1 must not be negative"):
        scenes.pairs(0, -1, held_out=False)


def test_classification_groups():
    found = scenes.classification(0, train=1000, val=100, test=400, correlation=0.95, val_correlation=0.8)
    counts = {part: np.bincount(groups, minlength=4).tolist() for part, groups in found.groups.items()}
    assert counts == {"train": [475, 25, 25, 475], "val": [40, 10, 10, 40], "test": [100] * 4}
    for part in ("train", "val", "test"):
        attributes, split = found.attributes[part], getattr(found.splits, part)
        np.testing.assert_array_equal(split.labels, world.family(attributes))
        np.testing.assert_array_equal(found.groups[part], 2 * world.family(attributes) + world.ground(attributes))
        assert set(attributes[:, world.SIZE]) == {1, 2}
        assert (scenes.held_out(attributes) == (part == "test")).all()
        assert (np.diff(found.groups[part]) != 0).mean() > 0.05, "in random order"
    assert found.splits.classes == ("curved", "angular") and found.splits.image_shape == (32, 32, 3)
    np.testing.assert_allclose(found.splits.mean, found.splits.train.images.mean((0, 1, 2)) / 255, atol=1e-4)
    np.testing.assert_allclose(found.splits.std, found.splits.train.images.std((0, 1, 2)) / 255, atol=1e-4)


def test_classification_defaults_and_extremes():
    found = scenes.classification(1, correlation=1.0, sizes=("small",))
    assert (len(found.splits.train), found.splits.val, len(found.splits.test)) == (3000, None, 2000)
    assert np.bincount(found.groups["train"], minlength=4).tolist() == [1500, 0, 0, 1500]
    assert set(found.attributes["test"][:, world.SIZE]) == {0} and len(found.groups["val"]) == 0
    for shape, colour in ((world.SHAPE, 12), (world.COLOUR, 8)):
        assert len(np.unique(found.attributes["train"][:, shape])) == colour


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(correlation=1.5), r"a correlation of 1.5 is outside \[0, 1\]"),
        (dict(train=0), "train=0 and test=2000 must be positive"),
        (dict(sizes=("tiny",)), r"sizes=\('tiny',\); take one or more of small, medium, large"),
    ],
)
def test_classification_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        scenes.classification(0, **fields)


@pytest.fixture(scope="module")
def benchmark():
    return scenes.retrieval(0)


def test_retrieval_is_what_it_says(benchmark):
    gallery, before = benchmark.gallery_attributes, benchmark.gallery_attributes[benchmark.reference]
    after = gallery[benchmark.target]
    assert gallery.shape == (1500, 5) and len(np.unique(gallery, axis=0)) == 1500
    assert benchmark.gallery_images.shape == (1500, 32, 32, 3) and benchmark.query_images.shape == (1000, 32, 32, 3)
    assert scenes.held_out(after).all()
    np.testing.assert_array_equal((before != after).sum(1), benchmark.edits)
    assert np.bincount(benchmark.edits).tolist() == [0, 500, 500]
    assert (benchmark.reference != benchmark.target).all()
    assert len(set(zip(benchmark.reference.tolist(), benchmark.target.tolist(), strict=True))) == 1000
    one = (before != after)[benchmark.edits == 1]
    assert one.sum(0).tolist() == [100] * 5
    two = (before != after)[benchmark.edits == 2]
    assert sorted((two.T.astype(int) @ two)[np.triu_indices(5, 1)].tolist()) == [50] * 10
    assert set(benchmark.modifications) == {"seen", "unseen"}
    for text, old, new in zip(benchmark.modifications["unseen"], before, after, strict=True):
        for (name, values), a, b in zip(world.ATTRIBUTES.items(), old, new, strict=True):
            assert (a != b) == bool(set(world.SYNONYMS[values[b]]) & set(text.split())), (name, text)
    for text, new in zip(benchmark.target_captions, after, strict=True):
        for values, b in zip(world.ATTRIBUTES.values(), new, strict=True):
            assert set(world.SYNONYMS[values[b]]) & set(text.split())


def test_retrieval_queries_are_rendered_afresh(benchmark):
    before = benchmark.gallery_images[benchmark.reference].astype(int)
    difference = np.abs(benchmark.query_images - before).mean((1, 2, 3))
    assert difference.min() > 3
    stranger = np.abs(benchmark.query_images - np.roll(before, 1, axis=0)).mean((1, 2, 3))
    assert difference.mean() < stranger.mean() / 2


def test_retrieval_refuses_more_queries_than_pairs():
    with pytest.raises(ValueError, match=r"900 queries need 90 pairs that differ in .*; this gallery of 200 has"):
        scenes.retrieval(0, gallery=200, queries=900)


def test_triplets():
    found = scenes.triplets(0, 2000)
    before, after = found.reference_attributes, found.target_attributes
    assert not scenes.held_out(before).any() and not scenes.held_out(after).any()
    edits = (before != after).sum(1)
    assert set(edits) == {1, 2} and abs((edits == 2).mean() - 0.4) < 0.04
    changed = (before != after).mean(0) / edits.mean()
    assert changed.min() > 0.17 and changed.max() < 0.23
    full = 0
    for row in range(2000):
        texts = found.references[row], found.targets[row]
        named = []
        for text, scene in zip(texts, (before[row], after[row]), strict=True):
            found_words = set(text.split()) & scenes.KEYWORDS
            words = [set(world.SYNONYMS[v[i]]) for v, i in zip(world.ATTRIBUTES.values(), scene, strict=True)]
            assert found_words <= set.union(*words)
            named.append([bool(found_words & own) for own in words])
        assert named[0] == named[1], "both captions name the same attributes"
        assert all(n for n, a, b in zip(named[1], before[row], after[row], strict=True) if a != b)
        full += all(named[0])
    assert 0.7 < full / 2000 < 0.95
    again = scenes.modifications(
        before, after, seed=world.derive(world.derive(0, "scenes.triplets"), "modifications"), phrasing="seen"
    )
    assert found.modifications == again
    with pytest.raises(ValueError, match=r"two_edits=0.4 and full=2 must be in \[0, 1\]"):
        scenes.triplets(0, 10, full=2)


def test_shares_of_triplets_can_be_chosen():
    found = scenes.triplets(0, 300, two_edits=1.0, full=1.0)
    assert ((found.reference_attributes != found.target_attributes).sum(1) == 2).all()
    assert all(len(set(text.split()) & scenes.KEYWORDS) == 5 for text in found.references + found.targets)


def config(**fields):
    base = dict(
        name="scenes", path="", val_examples=0, train_examples=0, test_examples=0, image_size=0, crop_padding=0,
        flip=False, workers=0,
    )  # fmt: skip
    return FrozenConfigDict({**base, **fields})


def test_scenes_by_name_as_any_other_data_set():
    found = data.load(config(val_examples=300), seed=0)
    assert [len(part) for part in (found.train, found.val, found.test)] == [2700, 300, 2000]
    assert found.classes == ("curved", "angular") and found.image_shape == (32, 32, 3)
    whole = np.concatenate([found.train.images, found.val.images])
    np.testing.assert_allclose(found.mean, whole.mean((0, 1, 2)) / 255, atol=1e-4)
    assert "Scenes" in found.note and "2700 train of 3000" in found.note
    other = data.load(config(val_examples=300), seed=1)
    np.testing.assert_array_equal(found.test.images, other.test.images)
    assert not np.array_equal(found.val.images, other.val.images)
    small = data.load(config(image_size=16, train_examples=100, test_examples=50), seed=0)
    assert small.train.images.shape == (100, 16, 16, 3) and len(small.test) == 50
    assert set(data.load(config(train_examples=200), seed=0).train.labels) == {0, 1}


def test_the_correlation_can_be_chosen_by_config():
    """A ridge on the mean colours, which tell land from water, is right as often as the correlation says."""
    from sklearn.linear_model import RidgeClassifier

    for correlation, low, high in ((0.5, 0.4, 0.62), (1.0, 0.8, 1.0)):
        train = data.load(config(correlation=correlation), seed=0).train
        edges = train.images[:, [0, 1, -2, -1]].mean((1, 2)) / 255.0
        accuracy = RidgeClassifier().fit(edges[:2000], train.labels[:2000]).score(edges[2000:], train.labels[2000:])
        assert low < accuracy <= high


def test_contact_sheet(tmp_path):
    out = tmp_path / "folder" / "sheet.png"
    command = [sys.executable, "-m", "launch.data.scenes", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size < 200_000
    with Image.open(out) as page, Image.open(ROOT / "docs" / "scenes.png") as shipped:
        assert page.format == "PNG" and page.mode == "RGB" and 1100 < page.width < 1300
        assert page.size == shipped.size, "docs/scenes.png: make it anew"
        drawn, kept = (np.asarray(image.convert("RGB"), int) for image in (page, shipped))
    # Versions of Pillow may set the text a little differently; another jitter or tone changes more than that.
    assert np.abs(drawn - kept).mean() < 3 and drawn.std() > 30, "docs/scenes.png: make it anew"
