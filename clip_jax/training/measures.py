"""The quality of embeddings: zero-shot accuracy, retrieval, the gap between the modalities; for arrays, and for a CLIP.

The measures are pure, on NumPy arrays. Embeddings need not be normalised; similarity is the cosine. Ties count against
the model, so a model that gives everything the same embedding scores zero.
"""

from collections.abc import Sequence

import numpy as np

from clip_jax.embed import Embedder
from clip_jax.training.pairs import CaptionedImages, ZeroShot

VALIDATION = tuple(f"val/{name}" for name in ("recall", "image_to_text_recall_at_1", "text_to_image_recall_at_1"))

_CHUNK = 2**24  # similarities held at a time


def normalize(x: np.ndarray) -> np.ndarray:
    """x (..., d) on the unit sphere, float32."""
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def zero_shot(images: np.ndarray, prompts: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Fraction of images whose class is the nearest; a class is the mean direction of its prompts.

    Radford et al. 2021, section 3.1.4.

    Args:
      images: (n, d).
      prompts: for each class the embeddings of its texts, (k, d).
      labels: int (n,).
    """
    classes = normalize(np.stack([normalize(texts).mean(0) for texts in prompts]))
    similarity = normalize(images) @ classes.T
    correct = np.take_along_axis(similarity, np.asarray(labels)[:, None], axis=1)
    return float(((similarity >= correct).sum(1) == 1).mean())


def recall(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Recall at k in both directions.

    `image_to_text_recall_at_k`: one of the image's texts is among its k nearest. `text_to_image_recall_at_k`: the
    text's image is among its k nearest.

    Args:
      images: (n, d).
      texts: (m, d).
      owner: int (m,), the image of each text; every image has one.
      ks: positive.
    """
    images, texts, owner = normalize(images), normalize(texts), np.asarray(owner)
    n, m = len(images), len(texts)
    to_image = np.empty(m, np.int64)  # how many other images are at least as near as the text's image
    step = max(1, _CHUNK // n)
    for start in range(0, m, step):
        part, image = texts[start : start + step], owner[start : start + step]
        similarity = part @ images.T
        to_image[start : start + step] = (similarity >= similarity[np.arange(len(part)), image][:, None]).sum(1) - 1
    to_text = np.empty(n, np.int64)  # how many texts of other images are at least as near as the nearest of the image
    step = max(1, _CHUNK // m)
    for start in range(0, n, step):
        similarity = images[start : start + step] @ texts.T
        matches = owner == np.arange(start, start + len(similarity))[:, None]
        best = np.where(matches, similarity, -np.inf).max(1, keepdims=True)
        to_text[start : start + step] = ((similarity >= best) & ~matches).sum(1)
    directions = {"image_to_text": to_text, "text_to_image": to_image}
    return {f"{name}_recall_at_{k}": float((ahead < k).mean()) for name, ahead in directions.items() for k in ks}


def modality_gap(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """The distance between images and texts on the unit sphere (Liang et al. 2022, https://arxiv.org/abs/2203.02053).

    Args:
      images: (n, d).
      texts: (m, d).
      owner: int (m,), the image of each text.

    Returns:
      `gap_norm`: length of the difference of the means; `paired_cosine`: mean similarity of a text and its image;
      `modality_accuracy`: of a linear classifier of the modality, fitted on the even rows and tested on the odd ones.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import, and scipy looks for torch then

    images, texts = normalize(images), normalize(texts)
    both = np.concatenate([images, texts])
    is_text = np.repeat([0, 1], [len(images), len(texts)])
    odd = np.concatenate([np.arange(len(images)), np.arange(len(texts))]) % 2 == 1
    classifier = LogisticRegression(C=100.0, max_iter=1000).fit(both[~odd], is_text[~odd])
    return {
        "gap_norm": float(np.linalg.norm(images.mean(0) - texts.mean(0))),
        "paired_cosine": float((images[owner] * texts).sum(1).mean()),
        "modality_accuracy": float(classifier.score(both[odd], is_text[odd])),
    }


def validate(embedder: Embedder, pairs: CaptionedImages) -> dict[str, float]:
    """`VALIDATION`: recall at 1 in both directions, and their mean."""
    images, texts = embedder.images(pairs.images), embedder.texts(pairs.texts)
    values = recall(images, texts, pairs.owner, ks=(1,))
    values["recall"] = float(np.mean(list(values.values())))
    return {f"val/{name}": value for name, value in values.items()}


def measure(embedder: Embedder, pairs: CaptionedImages, tasks: ZeroShot) -> dict[str, float]:
    """Retrieval, modality gap and zero-shot accuracies.

    Args:
      embedder: of the CLIP.
      pairs: the test set.
      tasks: classes of its images, by name of the task.
    """
    images, texts = embedder.images(pairs.images), embedder.texts(pairs.texts)
    result = recall(images, texts, pairs.owner, ks=(1, 5))
    result |= modality_gap(images, texts, pairs.owner)
    for name, (prompts, labels) in tasks.items():
        embeddings = embedder.texts([text for texts in prompts for text in texts])
        classes = np.split(embeddings, np.cumsum([len(texts) for texts in prompts])[:-1])
        result[f"zero_shot/{name}"] = zero_shot(images, classes, labels)
    return {f"test/{name}": value for name, value in result.items()} | {"test/images": float(len(images))}
