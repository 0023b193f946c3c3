"""Composed image retrieval without images to train on: φ, then a text encoder that suits its task, then benchmarks.

Three parts: a φ network (trained here, or read from a file); RTD's fine-tuning of a copy of the text encoder on text
triplets; evaluation. Configs: `configs/rtd/`. Method: Byun et al., "Reducing Task Discrepancy of Text Encoders for
Zero-Shot Composed Image Retrieval", ICCV 2025 (arXiv 2406.09188). A run leaves `phi.safetensors` and `clip/`, a CLIP
with RTD's text encoder, in its directory, and pictures and answers for test servers in `artifacts/`.
"""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import clip_jax
from launch.files import write_atomically
from launch.stages import File, SettingError, section, settings
from launch.store import Store
from rtd_jax import figures, phi, stages
from rtd_jax.benchmarks import fashioniq, genecis
from rtd_jax.benchmarks.task import Task
from rtd_jax.results import describe
from rtd_jax.stages.data import DataStage, file_setting

__all__ = ["describe", "leave", "plan"]

BENCHMARKS = ("cirr", "circo", "fashioniq", "genecis", "scenes")


# -- the plan -------------------------------------------------------------------------------------------------------


def plan(config: Mapping) -> stages.ComposedRetrieval:
    """The run of a config as a stage; nothing is computed.

    Raises:
      SettingError: a setting that cannot be used; it is named.
    """
    options, clip = config.evaluation, stages.ClipSource.named(config.clip)
    frozen = dict(clip=clip, batch_size=options.batch_size)
    shared = dict(seed=config.seed, sharding=settings(stages.DeviceMesh, config, "sharding"))
    network = _phi(config, frozen, shared)
    with section("evaluation"):
        tasks = [task for name in options.benchmarks for task in _tasks(config, name)]
        galleries = [stages.GalleryEmbeddings(task=task, target_pad=options.target_pad, **frozen) for task in tasks]
    tuned = _tuned(config, network, frozen, shared) if config.rtd.train else None
    evaluations = lambda encoder: tuple(
        stages.TaskEvaluation(gallery=gallery, phi=network, encoder=encoder) for gallery in galleries
    )
    return stages.ComposedRetrieval(
        phi=network, tuned=tuned, evaluations=evaluations(None), tuned_evaluations=evaluations(tuned) if tuned else ()
    )


def _phi(config: Mapping, frozen: Mapping[str, Any], shared: Mapping[str, Any]) -> stages.PhiTraining | stages.PhiFile:
    """φ from the file `phi.load`, or trained by `phi.method` on what the method's fields ask for."""
    if config.phi.load:
        with section("phi"):
            return stages.PhiFile(clip=frozen["clip"], load=file_setting(config.phi.load))

    def table() -> stages.CaptionTable:
        return stages.CaptionTable(captions=_choose(stages.CAPTIONS, config, "captions", seed=config.seed), **frozen)

    def images() -> stages.ImageEmbeddings:
        source = _choose(stages.IMAGES, config, "images", skip=("target_pad",), seed=config.seed)
        return stages.ImageEmbeddings(images=source, target_pad=config.images.target_pad, **frozen)

    def tokens() -> stages.SearleTokens:
        embedded = images()
        with section("phi"):
            concepts = stages.SearleConcepts(
                clip=frozen["clip"], images=embedded.images, phrases=tuple(config.phi.phrases)
            )
            steps = config.phi.inversion_steps
            return stages.SearleTokens(images=embedded, concepts=concepts, inversion_steps=steps, seed=config.seed)

    kind = _known(stages.METHODS, "phi.method", config.phi.method)
    names = {field.name for field in dataclasses.fields(kind)}
    inputs = {make.__name__: make() for make in (table, images, tokens) if make.__name__ in names}
    skip = ("load", "inversion_steps", "phrases")
    return _choose(stages.METHODS, config, "phi", choice="method", skip=skip, clip=frozen["clip"], **inputs, **shared)


def _tuned(
    config: Mapping,
    network: stages.PhiTraining | stages.PhiFile,
    frozen: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> stages.TunedClip:
    """RTD's text encoder as `checkpoint_dtype` keeps it."""
    source = _choose(stages.TRIPLETS, config, "triplets", seed=config.seed)
    tuning = settings(
        stages.Tuning,
        config,
        "rtd",
        skip=("train",),
        phi=network,
        embeddings=stages.TripletEmbeddings(triplets=source, **frozen),
        compute=settings(stages.Compute, config, "model"),
        text_batch_size=config.evaluation.batch_size,
        **shared,
    )
    with _renamed(dtype="checkpoint_dtype"):
        return stages.TunedClip(tuning=tuning, dtype=config.checkpoint_dtype)


def _tasks(config: Mapping, name: str) -> list[DataStage]:
    """The tasks of a benchmark.

    Raises:
      SettingError: an unknown benchmark, or one without its folders; named from "evaluation" on.
    """
    options = config.evaluation
    if name not in BENCHMARKS:
        raise SettingError("benchmarks", f" has {name!r}; valid names: {', '.join(map(repr, BENCHMARKS))}")
    if name == "scenes":
        with section("scenes"):
            return [stages.SceneTask(seed=config.seed, **options.scenes)]
    root = options.roots[name]
    if not root:
        raise SettingError(f"roots.{name}", f"='': set it to the folder of {name!r}, which benchmarks names")
    if name == "genecis":
        tasks = []
        for task in genecis.TASKS:
            images = genecis.images_of(task)
            with _renamed(root="roots.genecis", images=f"genecis_images.{images}"):
                tasks.append(stages.GenecisTask(root=root, images=options.genecis_images[images], task=task))
        return tasks
    with _renamed(root=f"roots.{name}", split=f"splits.{name}"):
        release = dict(root=root, split=options.splits[name])
        if name == "fashioniq":
            return [stages.FashioniqTask(category=category, **release) for category in fashioniq.CATEGORIES]
        return [{"cirr": stages.CirrTask, "circo": stages.CircoTask}[name](**release)]


def _choose(
    kinds: Mapping[str, type],
    config: Mapping,
    path: str,
    *,
    choice: str = "source",
    skip: Collection[str] = (),
    **given,
) -> Any:
    """The stage that the key `choice` of a section names, from those keys of the section that it has as fields.

    Args:
      kinds: stages by name; their fields may stand in the section whichever of them is chosen.
      config: the whole config.
      path: of the section.
      choice: the key that names the stage.
      skip: keys that others read.
      given: fields that do not come from the section.
    """
    part = config[path]
    kind = _known(kinds, f"{path}.{choice}", part[choice])
    fields = {field.name: field for field in dataclasses.fields(kind)}
    of_others = {field.name for other in kinds.values() for field in dataclasses.fields(other)} - fields.keys()
    files = {name: file_setting(part[name]) for name, field in fields.items() if field.type is File and name in part}
    return settings(kind, config, path, skip={choice, *skip, *of_others}, **files, **given)


def _known(kinds: Mapping[str, type], setting: str, name: str) -> type:
    if name not in kinds:
        raise SettingError(setting, f"={name!r}; valid names: {', '.join(map(repr, kinds))}")
    return kinds[name]


@contextlib.contextmanager
def _renamed(**names: str) -> Iterator[None]:
    """Fields that are refused inside are named as the config has them: {field: dotted name}."""
    try:
        yield
    except SettingError as error:
        raise SettingError(names.get(error.name, error.name), error.problem) from error


# -- what a run leaves ----------------------------------------------------------------------------------------------


def leave(folder: Path, root: stages.ComposedRetrieval, store: Store) -> None:
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


def _retrieved(task: Task, rankings: np.ndarray) -> list[figures.RetrievedRow]:
    """What the first queries of a task find, for `figures.grid`."""
    shown = []
    for query, ranking in enumerate(rankings):
        matches = np.flatnonzero(ranking == task.target[query]) if task.target is not None else ()
        reference = task.images[task.reference[query]] if task.query_images is None else task.query_images[query]
        shown.append(
            figures.RetrievedRow(
                " and ".join(task.texts[""][query]),
                figures.thumbnail(reference),
                [figures.thumbnail(task.images[row]) for row in ranking],
                right=int(matches[0]) if len(matches) else None,
            )
        )
    return shown
