"""Galleries of the benchmarks as stages, and the recall in one that chooses a training's best state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import clip_jax
from clip_jax.training.clips import image_pass
from launch.results import FieldsStage
from launch.stages import free
from launch.store import Store
from launch.training.program import Pass
from launch.training.sharding import Layout
from rtd_jax.benchmarks import evaluation
from rtd_jax.phi import Network
from rtd_jax.phi.validation import RECALL
from rtd_jax.stages.data import ClipSource, DataStage

Recall = Callable[[clip_jax.Clip, Network], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class GalleryEmbeddings(FieldsStage):
    """The images of one benchmark task, embedded once for all ways of making queries."""

    RESULT: ClassVar[Any] = evaluation.TaskImages

    clip: ClipSource
    task: DataStage
    target_pad: bool = False
    batch_size: int = free(256)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        return [image_pass(self.clip.outline(), self.batch_size, layout)]

    def make(self, store: Store) -> evaluation.TaskImages:
        clip, task = store.get(self.clip), store.get(self.task)
        return evaluation.embed(clip, task, target_pad=self.target_pad, batch_size=self.batch_size)


def recall(store: Store, gallery: GalleryEmbeddings) -> Recall:
    """How well a CLIP's text encoder and φ answer a task: "val/recall", its recall@1, and "val/METRIC", all metrics.

    What it needs of the store is read here, since what evaluates may run on one of several processes.
    """
    task, images = store.get(gallery.task), store.get(gallery)
    if task.score is None:
        raise ValueError(f"{task.name} has no ground truth to choose a state by")

    def measure(clip: clip_jax.Clip, network: Network) -> dict[str, float]:
        inputs = evaluation.QueryInputs(task, images, clip, network)
        found = task.score(evaluation.pseudo_token(inputs, ""), inputs.gallery)
        return {RECALL: found["recall_at_1"]} | {f"val/{metric}": value for metric, value in found.items()}

    return measure
