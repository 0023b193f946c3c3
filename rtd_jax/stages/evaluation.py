"""The evaluation as stages: galleries, one table per benchmark task, and the result of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clip_jax.training.clips import text_pass
from launch.networks.dtypes import DTYPES
from launch.results import FieldsStage
from launch.stages import Stage, require_known
from launch.store import Store
from launch.training.program import Pass
from launch.training.sharding import Layout, of_one_process
from rtd_jax import retrieval
from rtd_jax.benchmarks import evaluation
from rtd_jax.stages.galleries import GalleryEmbeddings
from rtd_jax.stages.phi import PhiFile, PhiTraining
from rtd_jax.stages.tuning import TunedClip
from rtd_jax.text import compose
from rtd_jax.tuning import trained

_QUERIES, _BEST = 1024, 50  # of a search that is compiled ahead of time; only files tell how many there are


@dataclass(frozen=True, eq=False)
class EvaluatedTask:
    """The results of one task for some ways of making queries.

    Attributes:
      metrics: "TASK/ROW/METRIC", in percent.
      rankings: int (n, k), gallery rows that φ's first n queries find, for pictures.
      submission: JSON content by file name, for a test server; {} where there is ground truth.
    """

    metrics: Mapping[str, float]
    rankings: np.ndarray
    submission: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation(FieldsStage):
    """One task, with queries by the published text encoder or by RTD's.

    Attributes:
      gallery: the task's images.
      phi: makes pseudo tokens.
      encoder: the CLIP with RTD's text encoder: row "rtd" alone; None for all rows of the published one.
      dtype: that gallery and queries are held and multiplied in, "float32" or "bfloat16"; sums are float32.
    """

    RESULT: ClassVar[Any] = EvaluatedTask

    gallery: GalleryEmbeddings
    phi: PhiTraining | PhiFile
    encoder: TunedClip | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_known(self, "dtype", DTYPES)

    def passes(self, layout: Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`: φ's queries; the search of a whole chunk of a gallery per device.

        RTD's encoder has the shapes of the published one.
        """
        devices, clip = of_one_process(list(layout.mesh.devices.flat)), self.gallery.clip.outline()
        rows, dim = retrieval.CHUNK * len(devices), clip.config.projection
        found = retrieval.program(rows, dim, _QUERIES, _BEST, devices, self.dtype)
        queries = text_pass(clip, compose.BATCH, layout, pseudo_tokens=True)
        return [queries, *(Pass(name, one.jitted, one.arguments) for name, one in found.items())]

    def make(self, store: Store) -> EvaluatedTask:
        task, images = store.get(self.gallery.task), store.get(self.gallery)
        clip = store.get(self.gallery.clip)
        if self.encoder:
            clip = trained.with_text(clip, store.get(self.encoder).params["text"])
        inputs = evaluation.QueryInputs(task, images, clip, store.get(self.phi).network, self.dtype)
        metrics = evaluation.measure(inputs, evaluation.TUNED if self.encoder else evaluation.FROZEN)
        return EvaluatedTask(metrics, evaluation.first_rankings(inputs), evaluation.submit(inputs))


@dataclass(frozen=True, kw_only=True)
class ComposedRetrieval(Stage):
    """The result of a run: how φ and RTD did on validation, and all metrics of all tasks.

    Attributes:
      phi: trained, or from a file.
      tuned: the CLIP with RTD's text encoder; None where only φ is measured.
      evaluations: of the published text encoder, by task.
      tuned_evaluations: of RTD's text encoder, by task.
    """

    KEPT = False  # assembled from results that are kept

    phi: PhiTraining | PhiFile
    tuned: TunedClip | None
    evaluations: tuple[TaskEvaluation, ...]
    tuned_evaluations: tuple[TaskEvaluation, ...] = ()

    def make(self, store: Store) -> dict[str, float]:
        # What is read from files comes first: a benchmark or a triplet with a fault ends the run before it trains.
        for task in self.evaluations:
            store.get(task.gallery.task)
        for task in self.evaluations:
            store.get(task.gallery)
        if self.tuned is not None:
            store.get(self.tuned.tuning.embeddings)
        trained = {f"phi/{name}": value for name, value in store.get(self.phi).metrics.items()}
        if self.tuned is not None:
            trained |= {f"rtd/{name}": value for name, value in store.get(self.tuned.tuning).metrics.items()}
        measured: dict[str, float] = {}
        for task in (*self.evaluations, *self.tuned_evaluations):
            measured |= store.get(task).metrics
        last = ("/oracle/", f"/{evaluation.MISSING}/")  # of a table's rows
        ordered = sorted(measured, key=lambda key: [part in key for part in reversed(last)])
        return {key: measured[key] for key in ordered} | evaluation.means(measured) | trained

    @property
    def final(self) -> tuple[TaskEvaluation, ...]:
        """The evaluations of the encoder that the run leaves."""
        return self.tuned_evaluations or self.evaluations
