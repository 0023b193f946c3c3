"""What embeddings are worth: zero-shot accuracy, retrieval, the gap between the modalities. Pure, on numpy arrays.

Embeddings need not be normalised; similarity is the cosine. Ties count against the model, so that one that gives the
same embedding to everything scores nothing.
"""

from collections.abc import Sequence

import numpy as np

_CHUNK = 2**24  # similarities held at a time


def normalise(x: np.ndarray) -> np.ndarray:
    """x (..., d) on the unit sphere, float32."""
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def zero_shot(images: np.ndarray, prompts: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Share of images whose class is the nearest; a class is the mean direction of its prompts.

    Radford et al. 2021, section 3.1.4.

    Args:
      images: (n, d).
      prompts: for each class the embeddings of its texts, (k, d).
      labels: int (n,).
    """
    classes = normalise(np.stack([normalise(texts).mean(0) for texts in prompts]))
    similarity = normalise(images) @ classes.T
    own = np.take_along_axis(similarity, np.asarray(labels)[:, None], axis=1)
    return float(((similarity >= own).sum(1) == 1).mean())


def recall(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Recall at k in both directions.

    `image_to_text_recall_at_k`: one of the image's own texts is among its k nearest. `text_to_image_recall_at_k`: the
    text's image is among its k nearest.

    Args:
      images: (n, d).
      texts: (m, d).
      owner: int (m,), the image of each text; every image has one.
      ks: positive.
    """
    images, texts, owner = normalise(images), normalise(texts), np.asarray(owner)
    n, m = len(images), len(texts)
    to_image = np.empty(m, np.int64)  # how many other images are at least as near as the own one
    step = max(1, _CHUNK // n)
    for start in range(0, m, step):
        part, own = texts[start : start + step], owner[start : start + step]
        similarity = part @ images.T
        to_image[start : start + step] = (similarity >= similarity[np.arange(len(part)), own][:, None]).sum(1) - 1
    to_text = np.empty(n, np.int64)  # how many texts of other images are at least as near as the nearest own one
    step = max(1, _CHUNK // m)
    for start in range(0, n, step):
        similarity = images[start : start + step] @ texts.T
        is_own = owner == np.arange(start, start + len(similarity))[:, None]
        best = np.where(is_own, similarity, -np.inf).max(1, keepdims=True)
        to_text[start : start + step] = ((similarity >= best) & ~is_own).sum(1)
    directions = {"image_to_text": to_text, "text_to_image": to_image}
    return {f"{name}_recall_at_{k}": float((ahead < k).mean()) for name, ahead in directions.items() for k in ks}


def modality_gap(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """How far images and texts lie apart on the unit sphere (Liang et al. 2022, https://arxiv.org/abs/2203.02053).

    Args:
      images: (n, d).
      texts: (m, d).
      owner: int (m,), the image of each text.

    Returns:
      `gap_norm`: length of the difference of the means; `paired_cosine`: mean similarity of a text and its image;
      `modality_accuracy`: of a linear classifier of the modality, fitted on the even rows and tested on the odd ones.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import, and scipy looks for torch with it

    images, texts = normalise(images), normalise(texts)
    both = np.concatenate([images, texts])
    is_text = np.repeat([0, 1], [len(images), len(texts)])
    odd = np.concatenate([np.arange(len(images)), np.arange(len(texts))]) % 2 == 1
    classifier = LogisticRegression(C=100.0, max_iter=1000).fit(both[~odd], is_text[~odd])
    return {
        "gap_norm": float(np.linalg.norm(images.mean(0) - texts.mean(0))),
        "paired_cosine": float((images[owner] * texts).sum(1).mean()),
        "modality_accuracy": float(classifier.score(both[odd], is_text[odd])),
    }
