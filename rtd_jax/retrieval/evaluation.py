"""How well a task's images are found: by the image alone, the text alone, their sum, φ, and φ with RTD's text encoder.

The gallery is embedded once by the image encoder, which no method here changes, and every way of making queries is
scored on it. Kept on disk and mapped from there, where a cache folder is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import clip_jax
from clip_jax.losses import normalise
from rtd_jax import figures, retrieval
from rtd_jax.benchmarks.genecis import Crops
from rtd_jax.benchmarks.task import Task
from rtd_jax.phi import Network
from rtd_jax.text import compose

ROWS = ("image", "text", "image_text", "phi", "rtd", "oracle")
_CROPS = 1024  # cropped images in memory


@dataclass(frozen=True, eq=False)
class Embedded:
    """A task's images.

    Attributes:
      gallery: float32 (g, d), as the encoder gives them.
      references: float32 (q, d).
    """

    gallery: np.ndarray
    references: np.ndarray


def embed(
    clip: clip_jax.Clip, task: Task, *, target_pad: bool = False, batch_size: int = 64, cache: str | Path | None = None
) -> Embedded:
    """The embeddings of a task's gallery and reference images; see `clip_jax.embed_images` for the options."""
    options = dict(target_pad=target_pad, batch_size=batch_size, progress=False)
    if isinstance(task.images, Crops):  # made when they are asked for, too many to hold at once
        parts = [task.images[start : start + _CROPS] for start in range(0, len(task.images), _CROPS)]
        gallery = np.concatenate([clip_jax.embed_images(clip, list(part), cache=cache, **options) for part in parts])
        return Embedded(gallery, gallery[task.reference])
    options["cache"] = cache
    gallery = clip_jax.embed_images(clip, task.images, **options)
    if task.query_images is None:
        return Embedded(gallery, gallery[task.reference])
    return Embedded(gallery, clip_jax.embed_images(clip, task.query_images, **options))


def queries(
    clip: clip_jax.Clip,
    task: Task,
    embedded: Embedded,
    phrasing: str,
    *,
    network: Network | None = None,
    tuned: clip_jax.Clip | None = None,
) -> dict[str, np.ndarray]:
    """Every row's unit query embeddings (q, d) in one set of phrasings, as far as there is what they need.

    Args:
      clip: as it was published.
      task: of the queries.
      embedded: its images.
      phrasing: a key of `task.texts`.
      network: φ; without it, no row "phi".
      tuned: the CLIP with RTD's text encoder; without it (or φ), no row "rtd".
    """
    texts = task.texts[phrasing]
    image = _unit(embedded.references)
    text = compose.modifications(clip, texts, template=task.text_only)
    found = {"image": image, "text": text, "image_text": _unit(image + text)}
    if network is not None:
        found["phi"] = compose.queries(clip, network, embedded.references, texts)
        if tuned is not None:
            found["rtd"] = compose.queries(tuned, network, embedded.references, texts)
    if task.oracle:
        found["oracle"] = _unit(clip_jax.embed_texts(clip, list(task.oracle), progress=False))
    return found


def measure(
    clip: clip_jax.Clip,
    tasks: Sequence[Task],
    *,
    network: Network | None = None,
    tuned: clip_jax.Clip | None = None,
    target_pad: bool = False,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> dict[str, float]:
    """All metrics of all rows, in percent: "TASK/ROW/METRIC", unseen phrasings as "TASK/ROW/unseen_METRIC".

    A benchmark of several tasks, such as FashionIQ's categories, also gets their mean: "fashioniq/ROW/METRIC".
    """
    result: dict[str, float] = {}
    for task in tasks:
        if task.score is None:
            continue
        embedded = embed(clip, task, target_pad=target_pad, batch_size=batch_size, cache=cache)
        gallery = _unit(embedded.gallery)
        for phrasing in task.texts:
            for row, found in queries(clip, task, embedded, phrasing, network=network, tuned=tuned).items():
                if phrasing and row in ("image", "oracle"):
                    continue  # no phrasing in them
                for metric, value in task.score(found, gallery).items():
                    result[f"{task.name}/{row}/{phrasing + '_' if phrasing else ''}{metric}"] = value
    return result | _means(result)


def submit(
    clip: clip_jax.Clip, task: Task, network: Network, *, target_pad: bool = False, batch_size: int = 64, cache=None
) -> dict[str, object]:
    """The files for a task's test server, by name, as JSON values; {} for one that has ground truth, or no server."""
    if task.submission is None or task.score is not None:
        return {}
    embedded = embed(clip, task, target_pad=target_pad, batch_size=batch_size, cache=cache)
    found = compose.queries(clip, network, embedded.references, task.texts[""])
    return task.submission(found, _unit(embedded.gallery))


def examples(
    clip: clip_jax.Clip,
    task: Task,
    network: Network,
    *,
    count: int = 6,
    k: int = 6,
    target_pad: bool = False,
    batch_size: int = 64,
    cache=None,
) -> list[figures.Found]:
    """What the first queries of a task find in its whole gallery, the reference left out, for `figures.grid`."""
    count = min(count, len(task))
    embedded = embed(clip, task, target_pad=target_pad, batch_size=batch_size, cache=cache)
    texts = task.texts[""][:count]
    found = compose.queries(clip, network, embedded.references[:count], texts)
    own = task.reference[:count]
    rows = retrieval.top_k(found, embedded.gallery, min(k, len(task.ids) - 1), exclude=own, cosine=True).rows
    queries = task.query_images if task.query_images is not None else [task.images[row] for row in own]
    shown = []
    for i, (text, ranking) in enumerate(zip(texts, rows, strict=True)):
        right = None if task.target is None else np.flatnonzero(ranking == task.target[i])
        place = int(right[0]) if right is not None and len(right) else None
        pictures = [figures.thumbnail(task.images[row]) for row in ranking]
        shown.append(figures.Found(" and ".join(text), figures.thumbnail(queries[i]), pictures, right=place))
    return shown


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(normalise(np.asarray(x)))


def _means(result: Mapping[str, float]) -> dict[str, float]:
    """Means over the parts of a benchmark: of "fashioniq/dress/phi/recall_at_10" and its like "fashioniq/phi/…"."""
    parts: dict[str, list[float]] = {}
    for key, value in result.items():
        names = key.split("/")
        if len(names) == 4:
            parts.setdefault("/".join((names[0], *names[2:])), []).append(value)
    return {key: float(np.mean(values)) for key, values in parts.items()}
