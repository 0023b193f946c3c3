"""How well a task's images are found: by the image alone, the text alone, their sum, φ, and φ with RTD's text encoder.

Every way of making queries is a row of a task's table, and a function in `FROZEN` or `TUNED`. All are scored on one
gallery, which is embedded once: no method here changes the image encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

import clip_jax
from rtd_jax import retrieval
from rtd_jax.benchmarks.genecis import Crops
from rtd_jax.benchmarks.task import RetrievalTask
from rtd_jax.losses import unit_rows
from rtd_jax.phi import Network
from rtd_jax.text import compose

MISSING = "missing"  # in place of a row: counts of what is left out


@dataclass(frozen=True, eq=False)
class TaskImages:
    """Embeddings of a task's images.

    Attributes:
      gallery: float32 (g, d), not normalised.
      references: float32 (q, d), not normalised.
    """

    gallery: np.ndarray
    references: np.ndarray


def embed(clip: clip_jax.Clip, task: RetrievalTask, *, target_pad: bool = False, batch_size: int = 64) -> TaskImages:
    """The embeddings of a task's gallery and reference images; see `clip_jax.embed_images` for the options."""
    options: dict[str, Any] = dict(target_pad=target_pad, batch_size=batch_size, progress=False)
    gallery = clip_jax.embed_images(clip, task.images, **options)
    if task.query_images is None:
        return TaskImages(gallery, gallery[task.reference])
    return TaskImages(gallery, clip_jax.embed_images(clip, task.query_images, **options))


@dataclass(frozen=True, eq=False)
class QueryInputs:
    """What the queries of a task are made from.

    Attributes:
      task: whose queries.
      images: the embeddings of its images.
      clip: embeds the texts.
      network: φ.
      dtype: that gallery and queries are held and multiplied in, see `retrieval.top_k`.
    """

    task: RetrievalTask
    images: TaskImages
    clip: clip_jax.Clip
    network: Network
    dtype: str = "float32"

    @cached_property
    def gallery(self) -> np.ndarray:
        """The gallery on the unit sphere."""
        return self.held(unit_rows(self.images.gallery))

    def held(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors in `dtype`."""
        return vectors.astype(self.dtype, copy=False)

    @cached_property
    def texts(self) -> dict[str, np.ndarray]:
        """The modifications alone, unit embeddings (q, d) by set of phrasings."""
        template = self.task.text_only
        return {
            key: compose.modifications(self.clip, texts, template=template) for key, texts in self.task.texts.items()
        }


class Query(Protocol):
    """Unit query embeddings (q, d) in one set of phrasings; None where a task has no such queries."""

    def __call__(self, inputs: QueryInputs, phrasing: str) -> np.ndarray | None: ...


def image(inputs: QueryInputs, phrasing: str) -> np.ndarray | None:
    """The reference image alone, whatever the phrasing."""
    return None if phrasing else unit_rows(inputs.images.references)


def text(inputs: QueryInputs, phrasing: str) -> np.ndarray:
    """The modification alone."""
    return inputs.texts[phrasing]


def image_text(inputs: QueryInputs, phrasing: str) -> np.ndarray:
    """The sum of image and modification."""
    return unit_rows(unit_rows(inputs.images.references) + inputs.texts[phrasing])


def pseudo_token(inputs: QueryInputs, phrasing: str) -> np.ndarray:
    """φ's pseudo token in a sentence with the modification."""
    return compose.queries(inputs.clip, inputs.network, inputs.images.references, inputs.task.texts[phrasing])


def oracle(inputs: QueryInputs, phrasing: str) -> np.ndarray | None:
    """The target's caption: an upper bound, whatever the phrasing."""
    if phrasing or not inputs.task.oracle:
        return None
    return unit_rows(clip_jax.embed_texts(inputs.clip, list(inputs.task.oracle), progress=False))


FROZEN: dict[str, Query] = {
    "image": image,
    "text": text,
    "image_text": image_text,
    "phi": pseudo_token,
    "oracle": oracle,
}
TUNED: dict[str, Query] = {"rtd": pseudo_token}  # with RTD's text encoder


def measure(inputs: QueryInputs, rows: Mapping[str, Query]) -> dict[str, float]:
    """All metrics of some rows, in percent: "TASK/ROW/METRIC", unseen phrasings as "TASK/ROW/unseen_METRIC".

    Without ground truth there are none. Where images are missing, "TASK/missing/images" and "TASK/missing/queries"
    count what is left out.
    """
    result: dict[str, float] = {}
    if inputs.task.score is None:
        return result
    for phrasing in inputs.task.texts:
        prefix = f"{phrasing}_" if phrasing else ""
        for row, query in rows.items():
            queries = query(inputs, phrasing)
            if queries is None:
                continue
            metrics = inputs.task.score(inputs.held(queries), inputs.gallery)
            result |= {f"{inputs.task.name}/{row}/{prefix}{metric}": value for metric, value in metrics.items()}
    if inputs.task.missing:
        counts = {"images": len(inputs.task.missing), "queries": inputs.task.dropped}
        result |= {f"{inputs.task.name}/{MISSING}/{what}": float(count) for what, count in counts.items()}
    return result


def submit(inputs: QueryInputs) -> dict[str, Any]:
    """φ's answers for a task's test server, JSON values by file name; {} where there is ground truth, or no server."""
    if inputs.task.submission is None or inputs.task.score is not None:
        return {}
    return inputs.task.submission(inputs.held(pseudo_token(inputs, "")), inputs.gallery)


def first_rankings(inputs: QueryInputs, *, count: int = 6, k: int = 6) -> np.ndarray:
    """What φ's first queries find in the whole gallery but the reference: int32 (count, k) rows, for pictures.

    Empty, (0, 0), for GeneCIS, whose queries have their own galleries.
    """
    task = inputs.task
    if isinstance(task.images, Crops):
        return np.empty((0, 0), np.int32)
    count = min(count, len(task))
    queries = compose.queries(inputs.clip, inputs.network, inputs.images.references[:count], task.texts[""][:count])
    k = min(k, len(task.ids) - 1)
    return retrieval.top_k(inputs.held(queries), inputs.gallery, k, exclude=task.reference[:count]).rows


def means(result: Mapping[str, float]) -> dict[str, float]:
    """Means over the parts of a benchmark: of "fashioniq/dress/phi/recall_at_10" and the like "fashioniq/phi/…".

    What is missing is summed up.
    """
    parts: dict[str, list[float]] = {}
    for key, value in result.items():
        names: Sequence[str] = key.split("/")
        if len(names) == 4:
            parts.setdefault("/".join((names[0], *names[2:])), []).append(value)
    total = lambda key: np.sum if key.split("/")[1] == MISSING else np.mean
    return {key: float(total(key)(values)) for key, values in parts.items()}
