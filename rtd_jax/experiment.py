"""Composed image retrieval without images to train on: φ, then a text encoder that suits its task, then benchmarks.

Three parts: a φ network (trained here, or read from a file); RTD's fine-tuning of a copy of the text encoder on text
triplets; evaluation. Configs: `configs/rtd/`. Method: Byun et al., "Reducing Task Discrepancy of Text Encoders for
Zero-Shot Composed Image Retrieval", ICCV 2025 (arXiv 2406.09188). A run leaves `phi.safetensors` and `clip/`, a CLIP
with RTD's text encoder, in its directory, and pictures and answers for test servers in `artifacts/`.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import clip_jax
from clip_jax.training.options import Computation, Devices
from launch.files import write_atomically
from launch.networks.dtypes import DTYPES
from launch.processes import compiling
from launch.reading.values import types_of
from launch.stages import File, SettingError, about, section, setting, settings
from launch.store import Store
from rtd_jax import figures, phi
from rtd_jax.benchmarks import genecis
from rtd_jax.benchmarks.task import RetrievalTask
from rtd_jax.results import describe
from rtd_jax.stages import data
from rtd_jax.stages.evaluation import ComposedRetrieval, TaskEvaluation
from rtd_jax.stages.galleries import GalleryEmbeddings
from rtd_jax.stages.phi import (
    METHODS,
    CaptionTable,
    ImageEmbeddings,
    PhiFile,
    PhiTraining,
    SearleConcepts,
    SearleTokens,
)
from rtd_jax.stages.tuning import TripletEmbeddings, TunedClip, Tuning

__all__ = ["MOVED", "describe", "leave", "plan"]

MOVED = {
    "cache": "give --store=FOLDER, which keeps embeddings, φ and encoders for all runs that name it",
    "comparison": "write a sweep(), as configs/rtd/scenes_comparison.py has",
}


# -- the plan -------------------------------------------------------------------------------------------------------


def plan(config: Any) -> ComposedRetrieval:
    """The run of a config as a stage; nothing is computed.

    Raises:
      SettingError: a setting that cannot be used; the error names it.
    """
    seed = setting(config, "seed", int, least=0)
    dtype = setting(config, "embedding.dtype", str, known=DTYPES)
    with about("clip"):
        clip = data.ClipSource.named(setting(config, "clip", str), compiling.precision_of(config), dtype)
    frozen: dict[str, Any] = dict(clip=clip, batch_size=setting(config, "evaluation.batch_size", int, least=1))
    _check_types(config)
    shared = dict(seed=seed, sharding=settings(Devices, config, "sharding"), cirr=_cirr(config, frozen))
    network = _phi(config, frozen, shared)
    names = setting(config, "evaluation.benchmarks", tuple[str, ...], known=(*data.RELEASES, "scenes"))
    tasks = [task for name in names for task in _tasks(config, name, seed)]
    tuned = _tuned(config, network, frozen, shared)
    tuned = tuned if setting(config, "rtd.train", bool) else None
    pad = _pads(config, "evaluation.target_pad")
    galleries = [GalleryEmbeddings(task=task, target_pad=pad, **frozen) for task in tasks]
    scored: dict[str, Any] = dict(phi=network, dtype=setting(config, "evaluation.dtype", str, known=DTYPES))
    evaluate = lambda encoder: tuple(TaskEvaluation(gallery=g, encoder=encoder, **scored) for g in galleries)
    return ComposedRetrieval(
        phi=network, tuned=tuned, evaluations=evaluate(None), tuned_evaluations=evaluate(tuned) if tuned else ()
    )


def _phi(config: Any, frozen: Mapping[str, Any], shared: Mapping[str, Any]) -> PhiTraining | PhiFile:
    """φ of the file `phi.load`, or trained by `phi.method` on what the method's fields ask for."""
    clip, seed = frozen["clip"], shared["seed"]
    if load := setting(config, "phi.load", str):
        with section("phi"):
            return PhiFile(clip=clip, load=data.file_setting(load))

    def table() -> CaptionTable:
        return CaptionTable(captions=_choose(data.CAPTIONS, config, "captions", seed=seed), **frozen)

    def images() -> ImageEmbeddings:
        source = _choose(data.IMAGES, config, "images", skip=("target_pad",), seed=seed)
        return ImageEmbeddings(images=source, target_pad=_pads(config, "images.target_pad"), **frozen)

    phrases = setting(config, "phi.phrases", tuple[str, ...])
    steps = setting(config, "phi.inversion_steps", int, least=1)

    def tokens() -> SearleTokens:
        embeddings = images()
        with section("phi"):
            concepts = SearleConcepts(clip=clip, images=embeddings.images, phrases=phrases)
            return SearleTokens(images=embeddings, concepts=concepts, inversion_steps=steps, seed=seed)

    fields = {field.name for field in dataclasses.fields(METHODS[setting(config, "phi.method", str, known=METHODS)])}
    inputs = {make.__name__: make() for make in (table, images, tokens) if make.__name__ in fields}
    skip = ("load", "inversion_steps", "phrases")
    return _choose(METHODS, config, "phi", choice="method", skip=skip, clip=clip, **inputs, **shared)


def _cirr(config: Any, frozen: Mapping[str, Any]) -> GalleryEmbeddings | None:
    """CIRR's val split where `best_by` has it choose the best states: "auto" is "cirr" where its folder is given."""
    chosen = setting(config, "best_by", str, known=("auto", "cirr", "held_back"))
    root = setting(config, "evaluation.roots.cirr", str)
    if chosen == "held_back" or (chosen == "auto" and not root):
        return None
    with _renamed(root="evaluation.roots.cirr"):
        skip = setting(config, "evaluation.skip_missing", bool)
        task = data.ReleasedTask(benchmark="cirr", root=root, skip_missing=skip)
    return GalleryEmbeddings(task=task, target_pad=_pads(config, "evaluation.target_pad"), **frozen)


def _pads(config: Any, name: str) -> bool:
    """Whether elongated images are padded by a setting: "auto" is SEARLE's, for its φ alone, trained or from a file."""
    chosen = setting(config, name, str, known=("auto", "yes", "no"))
    return setting(config, "phi.method", str, known=METHODS) == "searle" if chosen == "auto" else chosen == "yes"


def _check_types(config: Any) -> None:
    """Raise `SettingError` for settings of another type than they are declared with, whether they are read or not."""
    kinds = {"captions": data.CAPTIONS, "images": data.IMAGES, "triplets": data.TRIPLETS, "phi": METHODS}
    _pads(config, "images.target_pad")
    setting(config, "evaluation.skip_missing", bool)
    for path, known in kinds.items():
        setting(config, f"{path}.{'method' if path == 'phi' else 'source'}", str, known=known)
        declared = {name: kind for own in known.values() for name, kind in types_of(own).items()}
        for name in config[path]:
            kind = str if declared.get(name) is File else declared.get(name)
            if kind is not None and not dataclasses.is_dataclass(kind):
                setting(config, f"{path}.{name}", kind, least=1 if kind is int else -math.inf)
    options = config["evaluation"]
    for name in (f"{part}.{name}" for part in ("roots", "genecis_images") for name in options[part]):
        setting(config, f"evaluation.{name}", str)
    for name in options["splits"]:
        setting(config, f"evaluation.splits.{name}", str, known=data.SPLITS.get(name, ("val",)))
    setting(config, "evaluation.genecis_tasks", tuple[str, ...], known=genecis.TASKS)
    settings(data.SceneTask, config, "evaluation.scenes")


def _tuned(
    config: Any, network: PhiTraining | PhiFile, frozen: Mapping[str, Any], shared: Mapping[str, Any]
) -> TunedClip:
    """The CLIP with RTD's text encoder, as `checkpoint_dtype` keeps it."""
    source = _choose(data.TRIPLETS, config, "triplets", seed=shared["seed"])
    stages = dict(phi=network, embeddings=TripletEmbeddings(triplets=source, **frozen))
    compute = settings(Computation, config, "model")
    options = dict(skip=("train",), compute=compute, text_batch_size=frozen["batch_size"])
    tuning = settings(Tuning, config, "rtd", **options, **stages, **shared)
    with _renamed(dtype="checkpoint_dtype"):
        return TunedClip(tuning=tuning, dtype=setting(config, "checkpoint_dtype", str))


def _tasks(config: Any, name: str, seed: int) -> list[data.DataStage]:
    """The tasks of a benchmark by the section `evaluation`."""
    if name == "scenes":
        return [settings(data.SceneTask, config, "evaluation.scenes", seed=seed)]
    tasks, split = [], f"evaluation.splits.{name}"
    root = setting(config, f"evaluation.roots.{name}", str)
    parts = data.PARTS.get(name, ("",))
    if name == "genecis":
        parts = setting(config, "evaluation.genecis_tasks", tuple[str, ...], known=parts)
    for part in parts:
        images = f"evaluation.genecis_images.{genecis.images_of(part)}"
        with _renamed(root=f"evaluation.roots.{name}", split=split, images=images):
            place = dict(
                root=root,
                split=setting(config, split, str) if name != "genecis" else "val",
                images=setting(config, images, str) if name == "genecis" else "",
                skip_missing=setting(config, "evaluation.skip_missing", bool),
            )
            tasks.append(data.ReleasedTask(benchmark=name, part=part, **place))
    return tasks


def _choose(
    kinds: Mapping[str, type],
    config: Any,
    path: str,
    *,
    choice: str = "source",
    skip: Collection[str] = (),
    **given,
) -> Any:
    """The stage that the key `choice` of a section names, from those keys of the section that are fields of it.

    Args:
      kinds: stages by name; the section may have the fields of all of them.
      config: the whole config.
      path: of the section.
      choice: the key that names the stage.
      skip: keys that others read.
      given: fields that do not come from the section.
    """
    kind = kinds[setting(config, f"{path}.{choice}", str, known=kinds)]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    of_others = {field.name for other in kinds.values() for field in dataclasses.fields(other)} - fields.keys()
    files = {
        name: data.file_setting(setting(config, f"{path}.{name}", str))
        for name, field in fields.items()
        if field.type is File
    }
    return settings(kind, config, path, skip={choice, *skip, *of_others}, **files, **given)


@contextlib.contextmanager
def _renamed(**names: str) -> Iterator[None]:
    """Name invalid fields as the config does, by {field: dotted name}."""
    try:
        yield
    except SettingError as error:
        raise SettingError(names.get(error.name, error.name), error.problem) from error


# -- what a run leaves ----------------------------------------------------------------------------------------------


def leave(folder: Path, root: ComposedRetrieval, store: Store) -> None:
    """Write φ, the CLIP with RTD's text encoder, pictures of what queries find, and answers for test servers."""
    phi.save(store.get(root.phi).network, folder / "phi.safetensors")
    if root.tuned is not None:
        clip_jax.save(store.get(root.tuned), folder / "clip", dtype=root.tuned.dtype)
    for stage in root.final:
        result = store.get(stage)
        if len(result.rankings):
            task = store.get(stage.gallery.task)
            picture = folder / "artifacts" / f"retrieved-{task.name.replace('/', '-')}.png"
            figures.grid(picture, _retrieved(task, result.rankings))
        for name, content in result.submission.items():
            path = folder / "artifacts" / "submissions" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content))
            logging.info("for the test server: %s", path)


def _retrieved(task: RetrievalTask, rankings: np.ndarray) -> list[figures.RetrievedRow]:
    """What the first queries of a task find, for `figures.grid`."""
    shown = []
    for query, ranking in enumerate(rankings):
        matches = [] if task.target is None else np.flatnonzero(ranking == task.target[query]).tolist()
        reference = task.images[task.reference[query]] if task.query_images is None else task.query_images[query]
        shown.append(
            figures.RetrievedRow(
                " and ".join(task.texts[""][query]),
                figures.thumbnail(reference),
                [figures.thumbnail(task.images[row]) for row in ranking],
                right=matches[0] if matches else None,
            )
        )
    return shown
