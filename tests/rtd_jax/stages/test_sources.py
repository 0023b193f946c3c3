"""Where texts and images come from: files as well as Scenes, split by the seed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from launch.data import scenes
from launch.stages import File, SettingError
from rtd_jax.stages import data
from rtd_jax.text import triplets
from tests.commands import finish, start


def test_captions_of_a_file_are_split_by_the_seed(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(f"a dog number {i}" for i in range(20)))
    stage = data.CaptionsOfFile(path=File(str(path)), matcher="lexicon", val_examples=5)
    train, val, matcher = stage.make()
    assert len(train) == 15 and len(val) == 5 and not set(train) & set(val)
    assert "lexicon" in matcher.note
    again, other = (replace(stage, seed=seed).make()[1] for seed in (0, 1))
    assert again == val != other
    with pytest.raises(SettingError, match="val_examples=20 of 20 captions leave none"):
        replace(stage, val_examples=20).make()


def test_a_file_counts_by_its_content(tmp_path):
    one, two = (tmp_path / name for name in ("a.txt", "b.txt"))
    one.write_text("a dog\na cat\n")
    two.write_text("a dog\na cat\n")
    key = lambda path: data.CaptionsOfFile(path=File(str(path)), val_examples=1).key
    assert key(one) == key(two)
    two.write_text("a dog\na bird\n")
    assert key(one) != key(two)


def test_images_of_a_folder(tmp_path):
    for i in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    stage = data.ImagesOfFolder(path=str(tmp_path), val_examples=2)
    train, val = stage.make()
    assert sorted(path.name for path in (*train, *val)) == [f"{i}.png" for i in range(6)] and len(val) == 2
    assert len(train) == 4 and "dog" in stage.words()
    (tmp_path / "again").symlink_to(tmp_path)  # no image twice
    assert [sorted(part) for part in stage.make()] == [sorted(part) for part in (train, val)]
    for path in ("/none", ""):
        with pytest.raises(SettingError, match=f"path='{path}': no such folder"):
            data.ImagesOfFolder(path=path)


def test_triplets_of_a_file(tmp_path):
    path = tmp_path / "triplets.jsonl"
    made = triplets.Triplets([f"a {i}" for i in range(9)], ["is x"] * 9, [f"b {i}" for i in range(9)])
    triplets.write(path, made)
    train, val = data.TripletsOfFile(path=File(str(path)), val_examples=3).make()
    assert sorted([*train.references, *val.references]) == sorted(made.references) and len(val) == 3


def test_scenes_train_on_nothing_that_is_held_out():
    """Texts for training name no held-out composition; the sets of two seeds differ."""
    sizes = dict(train_examples=64, val_examples=16)
    texts, texts_val, _ = data.CaptionsOfScenes(**sizes).make()
    assert len(texts) == 64 and len(texts_val) == 16
    assert texts != data.CaptionsOfScenes(**sizes, seed=1).make()[0]
    train, val = data.TripletsOfScenes(**sizes).make()
    assert len(val) == 16 and not set(zip(train.references, train.targets, strict=True)) & set(
        zip(val.references, val.targets, strict=True)
    )
    words = {word for text in (*train.references, *train.targets, *texts) for word in text.split()}
    assert len(words & scenes.KEYWORDS) > 60
    images, others = data.ImagesOfScenes(train_examples=32, val_examples=8).make()
    assert images.shape == (32, 32, 32, 3) and len(others) == 8 and not np.array_equal(images[:8], others)


def test_the_generation_command(tmp_path):
    (tmp_path / "captions.txt").write_text("a red circle on the grass\na blue star\nan orange heart\n")
    out = tmp_path / "triplets.jsonl"
    command = (
        "-m",
        "rtd_jax.text.generation",
        f"--captions={tmp_path}/captions.txt",
        f"--out={out}",
        "--matcher=lexicon",
    )
    output = finish(start(*command, "--per_caption=2"))
    made = triplets.read(out)
    assert f"{len(made)} triplets in {out}" in output and len(made) >= 3
    assert set(json.loads(out.read_text().splitlines()[0])) == set(triplets.KEYS)
    output = finish(start(*command[:3], f"--out={tmp_path}/x.csv"), code=None)
    assert "--out has to end in .jsonl" in output
