"""What is kept of a run, stage by stage, under names that say what it depends on.

A stage's key is its name and a hash of exactly those config fields that reach it, its own and those of the stages
before it. A run whose config changes finds every stage that the change does not reach, and makes the others anew.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from launch.run import Run, flatten


@dataclass(frozen=True)
class Stage:
    """Config fields that a stage reads itself, top-level or dotted, and the stages whose results it takes."""

    fields: tuple[str, ...]
    after: tuple[str, ...] = ()


# Fields that change how fast a stage is or what it says, not what it makes.
NEUTRAL = ("data.workers", "clip.batch_size", "evaluation.batch_size", "erm.log_every", "pretrain.log_every")

STAGES = {
    "pretrain": Stage(("backbone", "pretrain", "sharding", "data.name", "data.image_size")),
    "erm": Stage(("seed", "data", "backbone", "erm", "sharding"), ("pretrain",)),
    "features": Stage((), ("erm",)),
    "images": Stage(("data", "clip")),
    "gap": Stage(("clip", "gap")),
    "moments": Stage((), ("features", "images")),
    "projector": Stage(("projector",), ("moments", "gap")),
    "words": Stage(("words", "text"), ("projector",)),
    "retrain": Stage(("retrain",), ("words",)),
    "dfr": Stage(("dfr",), ("features",)),
    "afr": Stage(("afr",), ("features",)),
    "class_balanced": Stage(("class_balanced",), ("features",)),
    "zero_shot": Stage(("words.source", "text"), ("images",)),
}


def key(config: Mapping, stage: str) -> str:
    """ "projector-5d0c7b2a91f4": the stage's name and a hash of what reaches it.

    Raises:
      KeyError: no such stage, or a field of `STAGES` that the config does not have.
    """
    return f"{stage}-{hashlib.sha256(json.dumps(described(config, stage), sort_keys=True).encode()).hexdigest()[:12]}"


def described(config: Mapping, stage: str) -> dict[str, object]:
    """Dotted field -> value of everything that reaches a stage."""
    flat, found = flatten(config), {}
    for field in STAGES[stage].fields:
        own = {name: value for name, value in flat.items() if name == field or name.startswith(f"{field}.")}
        if not own:
            raise KeyError(f"stage {stage!r} depends on config.{field}, which the config does not have")
        found |= own
    for before in STAGES[stage].after:
        found |= described(config, before)
    return {name: value for name, value in found.items() if name not in NEUTRAL}


def keep(run: Run, config: Mapping, stage: str, make: Callable, *, suffix: str = ".npz"):
    """What `make()` gives, computed once for this config: arrays by name (".npz") or JSON values (".json")."""
    return run.artifact(key(config, stage) + suffix, make)


def keep_tables(
    run: Run, config: Mapping, stages: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], make: Callable
) -> dict[str, dict[str, np.ndarray]]:
    """Tables of float32 rows that need not fit in memory, computed once for this config.

    Args:
      run: artifacts/KEY/NAME.npy is where they are.
      config: of the run.
      stages: one or more that are made in one pass over the same rows.
      shapes: by stage, the (rows, columns) of each of its tables.
      make: (stages that are missing) -> iterator over (stage, table, first row, rows (k, columns)). All processes call
        it, for what they have to do together; process 0 alone iterates.

    Returns:
      By stage and table, read-only arrays mapped from their files.

    Raises:
      ValueError: a table was made for data of another size.
    """
    folders = {stage: run.path / "artifacts" / key(config, stage) for stage in stages}
    there = np.array([folders[stage].is_dir() for stage in stages])
    if jax.process_count() > 1:  # a folder that only some of them see yet must not part their ways
        there = multihost_utils.broadcast_one_to_all(there)
    missing = tuple(stage for stage, done in zip(stages, there, strict=True) if not done)
    run.check_stop()
    rows = make(missing) if missing else None
    if missing and run.writes:  # one pass on this host's devices; the others wait
        _write(run, {stage: folders[stage] for stage in missing}, shapes, rows)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tables")
    return {stage: {name: _map(folders[stage] / f"{name}.npy", shape) for name, shape in shapes[stage].items()}
            for stage in stages}  # fmt: skip


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.shape != tuple(shape):
        raise ValueError(
            f"{path} is a table of shape {found.shape}, and the data are of {tuple(shape)} now: the images have "
            "changed since; restore them or take another run directory"
        )
    return found


def _write(run: Run, folders: Mapping[str, Path], shapes, rows: Iterator) -> None:
    temporary = {
        stage: Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")) for stage, path in folders.items()
    }
    try:
        tables = {
            (stage, name): np.lib.format.open_memmap(temporary[stage] / f"{name}.npy", "w+", np.float32, shape)
            for stage in folders
            for name, shape in shapes[stage].items()
        }
        for stage, name, first, block in rows:
            tables[stage, name][first : first + len(block)] = block
            if jax.process_count() == 1:
                run.check_stop()
        for table in tables.values():
            table.flush()
        for stage, path in folders.items():
            os.chmod(temporary[stage], 0o755)  # mkdtemp gives 0700
            os.replace(temporary[stage], path)
    finally:
        for path in temporary.values():
            shutil.rmtree(path, ignore_errors=True)
