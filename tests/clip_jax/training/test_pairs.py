"""Pairs from files and in memory, and the batches made of them: contents, order, refusals."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax import preprocess
from clip_jax.config import ClipConfig, ImageTower, TextTower
from clip_jax.tokenizer import build
from clip_jax.training import composition, experiment, pairs, sources
from configs.clip import base
from launch.data import scenes
from launch.data.scenes import world
from launch.stages import settings
from launch.store import Store

WORDS = build(scenes.vocabulary(), context_length=32)
TOWER = dict(width=8, layers=1, heads=2, mlp_width=8, activation="gelu", norm_eps=1e-5)
CONFIG = ClipConfig(
    image=ImageTower(**TOWER, image_size=16, patch_size=8),
    text=TextTower(
        **TOWER,
        vocab_size=WORDS.vocab_size,
        context_length=32,
        end_rule="eos_token_id",
        eos_token_id=WORDS.end_id,
    ),
    projection=4,
)
CLIP = clip_jax.Clip(CONFIG, {}, WORDS, preprocess.Preprocessing(size=16, crop=16))
CAPTIONS = [["a red star", "a star"], ["the sea"], ["a small ring", "a ring on the grass", "the grass"], ["a cross"]]


def sets(config, seed: int) -> list[pairs.CaptionedImages]:
    """Training, validation and test set of a config."""
    store = Store("")  # data sets are kept in memory only
    return [store.get(part) for part in settings(experiment.DataSettings, config, "data").splits(seed)]


def in_memory() -> pairs.CaptionedImages:
    return pairs.CaptionedImages(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8), CAPTIONS)


@pytest.fixture
def folder(tmp_path):
    """Four images of different sizes and a .jsonl file of their captions, one a line."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(1)
    rows = []
    for i, texts in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (20 + i, 16 + 3 * i, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
        rows += [{"image": f"images/{i}.png", "caption": text, "id": 7} for text in texts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


# -- captions files ---------------------------------------------------------------------------


def test_the_forms_of_a_captions_file_say_the_same(folder):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    (folder / "a.csv").write_text("id,image,caption\n" + "".join(f'7,{r["image"]},"{r["caption"]}"\n' for r in rows))
    (folder / "a.tsv").write_text("caption\timage\n" + "".join(f"{r['caption']}\t{r['image']}\n" for r in rows))
    lists = [{"file": f"{i}.png", "texts": texts} for i, texts in enumerate(CAPTIONS)]
    (folder / "lists.jsonl").write_text("\n".join(map(json.dumps, lists)) + "\n\n")
    found = [sources.read_captions(folder / name) for name in ("pairs.jsonl", "a.csv", "a.tsv")]
    names = dict(image_column="file", caption_column="texts")
    found.append(sources.read_captions(folder / "lists.jsonl", folder / "images", **names))
    for one in found:
        assert one.images == [folder / "images" / f"{i}.png" for i in range(4)]
        assert one.captions == CAPTIONS
    assert found[0].owner.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert found[0].texts[3] == "a small ring"


@pytest.mark.parametrize(
    "name, content, error, expected",
    [
        ("a.jsonl", "", ValueError, "a.jsonl: is empty"),
        ("a.csv", "image,caption\n", ValueError, "a.csv: is empty"),
        ("a.jsonl", '{"image": "images/0.png", "text": "x"}', ValueError, "line 1: no 'caption' among 'image', 'text'"),
        ("a.csv", "file,caption\nimages/0.png,x\n", ValueError, "line 1: no column 'image' among 'file', 'caption'"),
        ("a.jsonl", '{"image": "no.png", "caption": "x"}', FileNotFoundError, "1 of 1 .* missing, .*no.png; set data"),
        ("a.jsonl", '{"image": "images/0.png", "caption": " "}', ValueError, "line 1, 'caption': .*not blank, got ' '"),
        ("a.jsonl", '{"image": "images/0.png", "caption": []}', ValueError, "line 1, 'caption': .*at least 1"),
        ("a.jsonl", '{"image": "images/0.png", "caption": ["x", 3]}', ValueError, "'caption': item 1 must be a text"),
        ("a.jsonl", '{"image": "", "caption": "x"}', ValueError, "line 1, 'image': must be the name.*got ''"),
        ("a.jsonl", '{"image": ["0.png"], "caption": "x"}', ValueError, "line 1, 'image': must be the name"),
        ("a.jsonl", '{"image": "../0.png", "caption": "x"}', ValueError, "line 1, 'image': is not below"),
        ("a.csv", "image,caption\n/etc/passwd,x\n", ValueError, "line 2, 'image': is not below"),
        ("a.jsonl", '{"image": "images/0.png", "caption": "x", "caption": "y"}', ValueError, "'caption' occurs twice"),
        ("a.jsonl", '{"image": "images/0.png", "caption": "\\ud800"}', ValueError, "line 1: .*surrogate"),
        ("a.jsonl", "[" * 100_000, ValueError, "line 1: .*nested deeper"),
        ("a.jsonl", '\n{"image": "images/0.png"', ValueError, "line 2, .*: invalid JSON"),
        ("a.jsonl", "[1]", ValueError, r"line 1: an object is needed, got \[1\]"),
        ("a.csv", "image,caption\nimages/0.png,a red, small star\n", ValueError, "line 2: 3 cells, the header has 2"),
        ("a.csv", "image,caption\nimages/0.png\n", ValueError, "line 2: 1 cell, the header has 2"),
        ("a.csv", "image,caption,caption\nimages/0.png,x,y\n", ValueError, "line 1: .*'caption' twice"),
        ("a.csv", 'image,caption\nimages/0.png,"red" star\n', ValueError, "line 2: text comes after the quote"),
        ("a.csv", 'image,caption\nimages/0.png,"a star\nimages/1.png,b"\n', ValueError, "line 2: .*not closed"),
        ("a.csv", b"image,caption\nimages/0.png,caf\xe9\n", ValueError, "line 2: .*0xe9, is not UTF-8; save"),
        ("a.tsv", "image\tcaption\nimages/0.png\tx\0y\n", ValueError, "line 2: .*NUL"),
        ("a.txt", "x", ValueError, "ends in .jsonl, .csv, .tsv, got '.*a.txt'"),
        ("", "", ValueError, "'data.path': is empty"),
    ],
)
def test_a_captions_file_that_cannot_be_used(folder, name, content, error, expected):
    if name:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=expected):
        sources.read_captions(folder / name if name else "")


def test_a_quote_in_a_tab_separated_caption_is_a_character(folder):
    """Python's csv module takes it for the beginning of a quoted cell, which ends rows later."""
    texts = [f"a star {i}" for i in range(60)]
    texts[7] = '"stop'
    rows = "".join(f"images/{i % 4}.png\t{text}\n" for i, text in enumerate(texts))
    (folder / "quote.tsv").write_text("image\tcaption\n" + rows)
    assert sorted(sources.read_captions(folder / "quote.tsv").texts) == sorted(texts)


def test_a_byte_order_mark_and_two_spellings_of_one_file(folder):
    rows = [{"image": name, "caption": name} for name in ("images/0.png", "./images/0.png", "images/../images/0.png")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "mark.jsonl").write_text(text, encoding="utf-8-sig")
    found = sources.read_captions(folder / "mark.jsonl")
    assert found.images == [folder / "images/0.png"] and found.captions == [[row["caption"] for row in rows]]


def test_files_and_folders_that_are_not_there(folder):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv, 'data\.path': no such file"):
        sources.read_captions(folder / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"/no/folder, 'data\.images': no such"):
        sources.read_captions(folder / "pairs.jsonl", "/no/folder")


def test_held_out_images_are_trained_in_no_caption(folder):
    rows = [{"image": f"images/{i % 4}.png", "caption": f"text {i}"} for i in range(20)]
    for i, row in enumerate(rows):
        row["image"] = f"{i % 10}.png"
        Image.new("RGB", (8, 8)).save(folder / row["image"])
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = base.get_config()
    config.data.update(dict(name="captions", path=str(folder / "all.jsonl"), val_examples=2, test_examples=3))
    whole = sets(config, 0)
    parts = [set(part.images) for part in whole]
    assert [len(part) for part in parts] == [5, 2, 3] and len(set.union(*parts)) == 10
    assert all(len(texts) == 2 for part in whole for texts in part.captions)
    again, other = sets(config, 0), sets(config, 1)
    assert again[1].images == whole[1].images and set(other[1].images) != parts[1]
    config.data.test_path = str(folder / "pairs.jsonl")
    train, _, test = sets(config, 0)
    assert len(train) == 8 and len(test) == 3 and test.captions[0] in CAPTIONS
    config.data.val_examples = 10
    with pytest.raises(ValueError, match=r"data\.val_examples=10: there are 10 images"):
        sets(config, 0)


# -- Scenes -----------------------------------------------------------------------------------


def test_scenes_trains_on_no_composition_that_it_is_tested_on():
    config = base.get_config()
    config.data.update(dict(train_examples=300, val_examples=50, test_examples=60, captions_per_image=3))
    (train, val, test), other = sets(config, 0), sets(config, 1)
    assert [len(part) for part in (train, val, test)] == [300, 50, 60]
    assert [world.held_out(part.attributes).mean() for part in (train, val, test)] == [0, 0, 1]
    assert np.array_equal(test.images, other[2].images) and np.array_equal(val.images, other[1].images)
    assert not np.array_equal(train.images, other[0].images)
    assert len(train.texts) == 900 and len(test.texts) == 60
    assert len(np.unique(test.attributes, axis=0)) == 60
    zero_shot = sources.scenes_zero_shot(test.attributes)
    labels = {name: labels for name, (_, labels) in zero_shot.items()}
    classes = {name: len(prompts) for name, (prompts, _) in zero_shot.items()}
    assert classes == dict(shape=12, colour=8, size=3, pattern=3, background=10, family=2, ground=2)
    assert np.array_equal(np.stack([labels[name] for name in scenes.ATTRIBUTES], 1), test.attributes)
    assert np.array_equal(labels["family"], test.attributes[:, 0] >= 6)
    assert np.array_equal(labels["ground"], test.attributes[:, 4] >= 5)
    assert "a photo of a pentagram" in zero_shot["shape"][0][list(scenes.ATTRIBUTES["shape"]).index("star")]


# -- batches ----------------------------------------------------------------------------------


def batches(prepared, count, *, start=0, seed=0, index=0, processes=1, batch_size=8, workers=2):
    rows_at = composition.composer(4, seed=seed, batch_size=batch_size)
    options = dict(seed=seed, start=start, process_index=index, process_count=processes, workers=workers)
    feed = pairs.train_batches(CLIP, prepared, rows_at, **options)
    found = list(itertools.islice(feed, count))
    if hasattr(feed, "close"):
        feed.close()
    return found


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_captions_are_tokenized_once_and_cut_once():
    prepared = pairs.prepare(CLIP, in_memory())
    assert prepared.ids.shape == (7, 16) and prepared.ids.dtype == np.int32  # 16: the shortest static length
    assert np.array_equal(prepared.ids, WORDS.encode(in_memory().texts)[:, :16])
    assert prepared.first.tolist() == [0, 2, 3, 6] and prepared.count.tolist() == [2, 1, 3, 1]


def test_a_batch_pairs_an_image_with_one_of_its_captions():
    prepared = pairs.prepare(CLIP, in_memory())
    owner, seen = in_memory().owner, set()
    for batch in batches(prepared, 20):
        assert np.array_equal(owner[batch["text"]], batch["row"])
        assert sorted(batch["row"]) == [0, 0, 1, 1, 2, 2, 3, 3]
        seen |= set(batch["text"].tolist())
        images, ids = jax.jit(pairs.materialize)(batch, prepared.resident)
        assert np.array_equal(images, in_memory().images[batch["row"]])
        assert np.array_equal(ids, prepared.ids[batch["text"]])
    assert seen == set(range(7))


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_batch_follows_from_seed_and_step(kind, folder):
    prepared = pairs.prepare(CLIP, in_memory() if kind == "memory" else sources.read_captions(folder / "pairs.jsonl"))
    assert prepared.in_memory == (kind == "memory")
    whole = batches(prepared, 6)
    for at in (1, 4):
        assert all(same(a, b) for a, b in zip(whole[at:], batches(prepared, 6 - at, start=at, workers=1), strict=True))
    shares = [batches(prepared, 6, index=index, processes=2) for index in range(2)]
    assert all(same(a, joined(parts)) for a, parts in zip(whole, zip(*shares, strict=True), strict=True))
    assert not any(same(a, b) for a, b in zip(whole, batches(prepared, 6, seed=1), strict=True))


def test_images_in_files_are_prepared_as_for_encoding(folder):
    read = sources.read_captions(folder / "pairs.jsonl")
    prepared = pairs.prepare(CLIP, read)
    assert prepared.resident == {}
    for batch in batches(prepared, 3):
        assert batch["image"].dtype == np.uint8 and batch["image"].shape == (8, 16, 16, 3)
        images, ids = pairs.materialize(batch, {})
        rows = [np.flatnonzero((prepared.ids == row).all(1))[0] for row in ids]
        wanted = CLIP.preprocess([read.images[read.owner[row]] for row in rows])
        np.testing.assert_allclose(preprocess.normalize(CLIP.preprocessing, np.asarray(images)), wanted, atol=1e-6)


def test_an_unreadable_image_is_named(folder):
    prepared = pairs.prepare(CLIP, sources.read_captions(folder / "pairs.jsonl"))
    (folder / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png"):
        batches(prepared, 3)


def test_images_in_memory_take_the_size_of_the_tower():
    larger = dataclasses.replace(in_memory(), images=np.full((4, 24, 24, 3), 9, np.uint8))
    assert pairs.prepare(CLIP, larger).images.shape == (4, 16, 16, 3)
