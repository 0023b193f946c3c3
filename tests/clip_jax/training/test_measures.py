"""Zero-shot accuracy, recall and modality gap against matrices ranked by hand and by brute force."""

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from clip_jax.training import measures


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_sorting(images, texts, owner, k):
    """Recall by sorting every row of the whole similarity matrix."""
    similarity = unit(images) @ unit(texts).T
    to_text = [i in owner[np.argsort(-row)[:k]] for i, row in enumerate(similarity)]
    to_image = [owner[j] in np.argsort(-column)[:k] for j, column in enumerate(similarity.T)]
    return np.mean(to_text), np.mean(to_image)


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_recall_is_that_of_the_sorted_matrix(chunk, monkeypatch):
    monkeypatch.setattr(measures, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 8))
    owner = np.sort(np.concatenate([np.arange(40), rng.integers(0, 40, 35)]))
    texts = images[owner] + rng.normal(size=(75, 8))
    found = measures.recall(images, 3 * texts, owner, ks=(1, 5))
    for k in (1, 5):
        to_text, to_image = by_sorting(images, texts, owner, k)
        assert 0.1 < to_text < 1 and 0.1 < to_image < 1
        assert found[f"image_to_text_recall_at_{k}"] == pytest.approx(to_text)
        assert found[f"text_to_image_recall_at_{k}"] == pytest.approx(to_image)


def test_recall_by_hand():
    images = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts = np.array([[0.8, 0.6], [0.1, 1.0], [0.0, 1.0]])  # nearest images: 2, 1, 1
    assert measures.recall(images, texts, np.arange(3), ks=(1, 2)) == pytest.approx(
        {
            "image_to_text_recall_at_1": 1 / 3,  # image 0 finds its own; 1 finds text 2, image 2 text 0
            "image_to_text_recall_at_2": 2 / 3,
            "text_to_image_recall_at_1": 1 / 3,
            "text_to_image_recall_at_2": 1.0,
        }
    )


def test_a_model_that_tells_nothing_apart_recalls_nothing():
    same = np.ones((6, 4))
    assert set(measures.recall(same, same, np.arange(6), ks=(1, 5)).values()) == {0.0}
    assert measures.zero_shot(same, [same[:2], same[:1]], np.zeros(6, int)) == 0.0


def test_zero_shot_averages_a_class_s_prompts():
    rng = np.random.default_rng(1)
    prompts = [rng.normal(size=(count, 6)) * rng.uniform(0.5, 2, (count, 1)) for count in (1, 2, 3, 2)]
    labels = rng.integers(0, 4, 200)
    classes = np.stack([unit(unit(p).mean(0)) for p in prompts])
    images = classes[labels] + 0.5 * rng.normal(size=(200, 6))
    wanted = top_k_accuracy_score(labels, unit(images) @ classes.T, k=1)
    assert 0.3 < wanted < 0.95
    assert measures.zero_shot(images, prompts, labels) == pytest.approx(wanted)


def test_modality_gap():
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(100, 16))
    apart = measures.modality_gap(shared + 2 * np.eye(16)[0], shared - 2 * np.eye(16)[0], np.arange(100))
    images, texts = unit(shared + 2 * np.eye(16)[0]), unit(shared - 2 * np.eye(16)[0])
    assert apart["gap_norm"] == pytest.approx(np.sqrt(((images.mean(0) - texts.mean(0)) ** 2).sum()), rel=1e-5)
    cosines = [a @ b for a, b in zip(images, texts, strict=True)]
    assert apart["paired_cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
    assert apart["modality_accuracy"] > 0.9
    together = measures.modality_gap(shared, rng.permutation(shared), np.arange(100))
    assert together["gap_norm"] < 1e-6 and together["modality_accuracy"] < 0.65


def test_a_pair_is_a_text_and_its_image():
    """Two texts of one image, none of them in its image's row."""
    images, texts = np.eye(4)[:2], np.eye(4)[[0, 0, 1]]
    found = measures.modality_gap(images, texts, np.array([0, 0, 1]))
    assert found["paired_cosine"] == pytest.approx(1.0)
