"""The CLIP that comes with the package is worth what its model card says, on images that it has never seen."""

import json
import re

import numpy as np
import pytest

import clip_jax
from clip_jax import embed_images, embed_texts
from clip_jax.training import measures, pairs, sources
from launch.data import scenes
from launch.data.scenes import world

FOLDER = clip_jax.embedded("scenes")
# A little below the card's figures, as 300 images allow.
FLOORS = {
    "shape": 0.96,
    "colour": 0.98,
    "size": 0.97,
    "pattern": 0.96,
    "background": 0.98,
    "family": 0.96,
    "ground": 0.98,
}


@pytest.fixture(scope="module")
def clip():
    return clip_jax.load(FOLDER)


@pytest.fixture(scope="module")
def held_out():
    """300 held-out compositions of another seed than any that was trained or reported."""
    found = scenes.pairs(world.derive(0, "checkpoint test"), 300, held_out=True, full=True, distinct=True)
    return pairs.CaptionedImages(found.images, found.captions, found.attributes)


@pytest.fixture(scope="module")
def embeddings(clip, held_out):
    return embed_images(clip, held_out.images, progress=False), embed_texts(clip, held_out.texts, progress=False)


@pytest.mark.parametrize("name", FLOORS)
def test_zero_shot(clip, held_out, embeddings, name):
    prompts, labels = sources.scenes_zero_shot(held_out.attributes)[name]
    classes = [embed_texts(clip, texts, progress=False) for texts in prompts]
    assert measures.zero_shot(embeddings[0], classes, labels) >= FLOORS[name]


def test_retrieval(held_out, embeddings):
    """Among 300: every full caption describes one of the images."""
    found = measures.recall(*embeddings, held_out.owner)
    assert found["image_to_text_recall_at_1"] >= 0.97 and found["text_to_image_recall_at_1"] >= 0.97


def test_the_modalities_lie_apart(held_out, embeddings):
    found = measures.modality_gap(*embeddings, held_out.owner)
    assert 0.4 < found["gap_norm"] < 1.0 and found["modality_accuracy"] > 0.99


def test_it_is_small_and_has_the_architecture_of_the_config(clip):
    from configs.clip import scenes as config

    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert 1e6 < size < 2e6
    asked = config.get_config().model
    assert clip.config.projection == asked.projection and clip.config.image.image_size == scenes.IMAGE_SIZE
    for tower, wanted in ((clip.config.image, asked.image), (clip.config.text, asked.text)):
        assert {name: getattr(tower, name) for name in wanted} == dict(wanted)
    stored = json.loads((FOLDER / "config.json").read_text())
    assert stored["dtype"] == "float16" and clip.params["text"]["tokens"].dtype == np.float32


def test_it_knows_every_word_of_scenes_as_one_token(clip):
    words = scenes.vocabulary()
    ids = clip.tokenize(list(words))
    assert (ids[:, 2] == clip.tokenizer.end_id).all()
    assert len(set(ids[:, 1].tolist())) == len(words)
    assert clip.marker_id == 259


def test_its_card_says_how_it_was_made_and_what_it_is_worth():
    card = (FOLDER / "README.md").read_text()
    assert "python -m launch.train --config=configs/clip/scenes.py --workdir=runs/clip_scenes" in card
    for name in (*FLOORS, "image to text, R@1"):
        row = re.search(rf"^\| {name} \|(.+)\|$", card, re.MULTILINE)
        assert row, name
        *seeds, mean = (cell.strip() for cell in row[1].split("|"))
        values = [float(seed) for seed in seeds]
        assert len(values) == 3
        average, spread = map(float, mean.split(" ± "))
        assert average == pytest.approx(np.mean(values), abs=6e-4)
        assert spread == pytest.approx(np.std(values, ddof=1), abs=6e-4)
        assert min(values) >= FLOORS.get(name, 0)
