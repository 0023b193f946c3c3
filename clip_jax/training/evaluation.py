"""What a CLIP achieves on images with captions: the metrics that choose the best checkpoint, and those of the test."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax.embed import Embedder
from clip_jax.training import measures
from clip_jax.training.pairs import CaptionedImages, ZeroShot

VALIDATION = tuple(f"val/{name}" for name in ("recall", "image_to_text_recall_at_1", "text_to_image_recall_at_1"))


def validate(embedder: Embedder, pairs: CaptionedImages) -> dict[str, float]:
    """`VALIDATION`: recall at 1 in both directions, and their mean."""
    images, texts = embedder.images(pairs.images), embedder.texts(pairs.texts)
    values = measures.recall(images, texts, pairs.owner, ks=(1,))
    values["recall"] = float(np.mean(list(values.values())))
    return {f"val/{name}": value for name, value in values.items()}


def measure(embedder: Embedder, pairs: CaptionedImages, zero_shot: ZeroShot) -> dict[str, float]:
    """Retrieval, modality gap and zero-shot accuracies; see `clip_jax.training.measures`.

    Args:
      embedder: of the CLIP.
      pairs: the test set.
      zero_shot: classes of its images, by name of the task.
    """
    images, texts = embedder.images(pairs.images), embedder.texts(pairs.texts)
    result = measures.recall(images, texts, pairs.owner, ks=(1, 5))
    result |= measures.modality_gap(images, texts, pairs.owner)
    for name, (prompts, labels) in zero_shot.items():
        embeddings = embedder.texts([text for texts in prompts for text in texts])
        classes = np.split(embeddings, np.cumsum([len(texts) for texts in prompts])[:-1])
        result[f"zero_shot/{name}"] = measures.zero_shot(images, classes, labels)
    return {f"test/{name}": value for name, value in result.items()} | {"test/images": float(len(images))}


def local(params: Any) -> Any:
    """Parameters in a form with which this process can compute alone."""
    if jax.process_count() == 1:
        return params

    def whole(leaf: jax.Array) -> Any:
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, params)
