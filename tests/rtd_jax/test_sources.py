"""Where texts and images come from: files as well as Scenes, split by the seed."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from launch.data import scenes
from rtd_jax import sources
from rtd_jax.text import triplets
from tests.commands import finish, start
from tests.rtd_jax import tiny


def test_captions_of_a_file_are_split_by_the_seed(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(f"a dog number {i}" for i in range(20)))
    config = ConfigDict(dict(source="file", path=str(path), column="caption", matcher="lexicon", val_examples=5))
    found, matcher = sources.texts(config, seed=0)
    assert len(found.train) == 15 and len(found.val) == 5 and not set(found.train) & set(found.val)
    assert "lexicon" in matcher.note
    again, other = (sources.texts(config, seed=seed)[0].val for seed in (0, 1))
    assert again == found.val != other
    config.val_examples = 20
    with pytest.raises(ValueError, match="val_examples=20 of 20 captions leave none"):
        sources.texts(config, seed=0)


def test_images_of_a_folder(tmp_path):
    for i in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    config = ConfigDict(dict(source="folder", path=str(tmp_path), val_examples=2))
    train, val = sources.images(config, seed=0)
    assert sorted(path.name for path in (*train, *val)) == [f"{i}.png" for i in range(6)] and len(val) == 2
    config.source = "web"
    with pytest.raises(ValueError, match=r"images.source='web': there are folder, scenes"):
        sources.images(config, seed=0)


def test_triplets_of_a_file(tmp_path):
    path = tmp_path / "triplets.jsonl"
    made = triplets.Triplets([f"a {i}" for i in range(9)], ["is x"] * 9, [f"b {i}" for i in range(9)])
    triplets.write(path, made)
    config = ConfigDict(dict(source="file", path=str(path), val_examples=3, skip_faulty=False))
    train, val = sources.triplets(config, seed=0)
    assert sorted([*train.references, *val.references]) == sorted(made.references) and len(val) == 3


def test_scenes_train_on_nothing_that_is_held_out():
    """Texts for training name no held-out composition; the sets of two seeds differ."""
    config = tiny.config()
    texts, _ = sources.texts(config.captions, seed=0)
    assert len(texts.train) == 64 and len(texts.val) == 16
    assert texts.train != sources.texts(config.captions, seed=1)[0].train
    train, val = sources.triplets(config.triplets, seed=0)
    assert len(val) == 16 and not set(zip(train.references, train.targets, strict=True)) & set(
        zip(val.references, val.targets, strict=True)
    )
    words = {word for text in (*train.references, *train.targets, *texts.train) for word in text.split()}
    assert len(words & scenes.KEYWORDS) > 60
    images, others = sources.images(config.images, seed=0)
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
