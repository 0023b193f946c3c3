"""Composed image retrieval without images to train on: φ, then a text encoder that suits its task, then benchmarks.

Three stages: a φ network (trained here, or read from a file); RTD's fine-tuning of a copy of the text encoder on text
triplets; evaluation. Configs: `configs/rtd/`. Method: Byun et al., "Reducing Task Discrepancy of Text Encoders for
Zero-Shot Composed Image Retrieval", ICCV 2025 (arXiv 2406.09188). A run leaves `phi.safetensors` and `clip/`, a CLIP
with RTD's text encoder, in its directory.
"""

import json
from pathlib import Path

import jax
from absl import logging
from jax.experimental import multihost_utils

import clip_jax
from launch.files import write_atomically
from launch.run import Run
from rtd_jax import figures, phi, sources, tables
from rtd_jax.benchmarks import genecis
from rtd_jax.benchmarks.task import Task
from rtd_jax.phi import stage as phi_stage
from rtd_jax.retrieval import evaluation
from rtd_jax.tuning import stage as rtd_stage


def phi_file(workdir: str | Path) -> Path:
    """Where a finished run's φ is."""
    return Path(workdir) / "phi.safetensors"


def clip_folder(workdir: str | Path) -> Path:
    """Where a finished run's CLIP with RTD's text encoder is."""
    return Path(workdir) / "clip"


# -- φ ----------------------------------------------------------------------------------------


def obtain_phi(config, run: Run, clip: clip_jax.Clip, cache: Path) -> tuple[phi.Network, dict[str, float]]:
    """φ from `config.phi.load`, or trained by `config.phi.method` in the run directory inside this one, "phi".

    Raises:
      ValueError: φ of other widths than the CLIP's.
    """
    if config.phi.load:
        network = phi.load(config.phi.load)
        phi.check_fits(network, clip.config)
        return network, {}
    child = run.child("phi", config)
    try:
        metrics, path = child.result(), phi_file(child.path)
        if metrics is None:
            network, metrics = phi_stage.train(config, child, clip, cache)
            if child.writes:
                phi.save(network, path)
            metrics = child.finish(metrics)
            _wait_for_all("phi")
    finally:
        child.close()
    return phi.load(path), {f"phi/{key}": value for key, value in metrics.items()}


def _wait_for_all(stage: str) -> None:
    """What process 0 has written is there for the others from here on."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"rtd_jax.experiment {stage}")


# -- RTD --------------------------------------------------------------------------------------


def obtain_encoder(
    config, run: Run, clip: clip_jax.Clip, network: phi.Network, cache: Path
) -> tuple[clip_jax.Clip, dict[str, float]]:
    """The CLIP with RTD's text encoder, trained in the run directory inside this one, "rtd", and kept in `clip`."""
    child = run.child("rtd", config)
    try:
        metrics, folder = child.result(), clip_folder(run.path)
        if metrics is None:
            tuned, metrics = rtd_stage.train(config, child, clip, network, cache)
            if child.writes:
                clip_jax.save(tuned, folder, dtype=config.checkpoint_dtype)
            metrics = child.finish(metrics)
            _wait_for_all("rtd")
    finally:
        child.close()
    return clip_jax.load(folder, put=lambda path, leaf: leaf), {f"rtd/{key}": value for key, value in metrics.items()}


# -- the run ----------------------------------------------------------------------------------


def run(config, run: Run) -> dict[str, float]:
    """φ, RTD's text encoder, and what they are worth on every benchmark."""
    clip = sources.clip(config.clip)
    cache = Path(config.cache or run.path / "cache")
    tasks = sources.tasks(config.evaluation, seed=config.seed)
    network, found = obtain_phi(config, run, clip, cache)
    if run.writes:
        phi.save(network, phi_file(run.path))
    tuned = None
    if config.rtd.train:
        tuned, metrics = obtain_encoder(config, run, clip, network, cache)
        found |= metrics
    options = dict(target_pad=config.evaluation.target_pad, batch_size=config.evaluation.batch_size, cache=cache)
    measured = run.artifact(
        "test.json", lambda: evaluation.measure(clip, tasks, network=network, tuned=tuned, **options)
    )
    if run.writes:
        write_atomically(run.path / "table.md", tables.one_run(measured))
        for task in tasks:
            _leave(run, task, tuned or clip, network, options)
    return found | measured


def _leave(run: Run, task: Task, clip: clip_jax.Clip, network: phi.Network, options: dict) -> None:
    """A picture of what a task's first queries find, and its files for the test server."""
    folder = run.path / "artifacts"
    if not isinstance(task.images, genecis.Crops):  # a query of theirs has a gallery of its own
        figures.grid(
            folder / f"retrieved-{task.name.replace('/', '-')}.png", evaluation.examples(clip, task, network, **options)
        )
    for name, content in evaluation.submit(clip, task, network, **options).items():
        path = folder / "submissions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content))
        logging.info("for the test server: %s", path)
