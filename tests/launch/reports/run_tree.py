"""Folders of runs as `launch.train` and `launch.sweep` leave them, with numbers that are known, and no training."""

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from launch.sweeps import members

CONFIG = {
    "batch_size": 32,
    "experiment": "tests.launch.reports.described",
    "optimizer": {"learning_rate": 1e-3, "milestones": ["1500 steps"], "name": "adam"},
    "regularizer": {"cosine_weight": 1.0, "name": "l2_cosine", "radius": 4.0},
    "seed": 0,
}
START = 1_795_337_000  # 2026-11-22 08:43:20 UTC
VERSIONS = {"python": "3.11.2", "jax": "0.10.2", "devices": "2 × cpu"}


def config(**overrides: Any) -> dict:
    """CONFIG with `regularizer__radius=8.0` and the like."""
    changed = json.loads(json.dumps(CONFIG))
    for key, value in overrides.items():
        *folders, last = key.split("__")
        place = changed
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return changed


def png(width: int = 6, height: int = 4, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def metrics_lines(
    curves: Mapping[str, Sequence[float | None]], every: int = 10, start: float = START, step_time: float = 1.0
) -> str:
    """metrics.jsonl: one line a step at which there is something, for curves of equal spacing."""
    lines = []
    for at in range(max(map(len, curves.values()))):
        values = {name: points[at] for name, points in curves.items() if at < len(points)}
        lines.append(json.dumps({"step": every * (at + 1), "time": start + step_time * at, **values}) + "\n")
    return "".join(lines)


def write_run(
    path: Path,
    config: Mapping[str, Any],
    result: Mapping[str, float | None] | None = None,
    *,
    curves: Mapping[str, Sequence[float | None]] | None = None,
    figures: Sequence[str] = (),
    versions: Sequence[Mapping[str, str]] = (),
    files: Mapping[str, str] | None = None,
) -> Path:
    """A run directory; unfinished without a result.

    Args:
      curves: of the run directory itself, as runs without a plan have them.
      figures: names of PNG files.
      files: other files, name -> text.
    """
    path.mkdir(parents=True, exist_ok=True)
    texts = {"config.json": json.dumps(config, indent=2), ".lock": ""} | dict(files or {})
    if curves:
        texts["metrics.jsonl"] = metrics_lines(curves)
    if versions:
        texts["versions.json"] = json.dumps(list(versions))
    if result is not None:
        texts["result.json"] = json.dumps(result)
    for name, text in texts.items():
        (path / name).write_text(text)
    for name in figures:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
    return path


def write_plan(
    path: Path,
    stages: Mapping[str, Mapping[str, Sequence[float | None]] | None],
    store: str = "store",
    versions: Sequence[Mapping[str, str]] = (),
) -> None:
    """The plan of a run and its store.

    Args:
      path: the run directory.
      stages: key -> the curves of a trained stage, None for a stage that does not train.
      store: its folder, as plan.json has it.
      versions: of the trained stages.
    """
    content = {"store": store, "root": list(stages)[-1], "stages": {key: "Stage" for key in stages}}
    (path / "plan.json").write_text(json.dumps(content))
    (path / store / ".locks").mkdir(parents=True, exist_ok=True)
    for key, curves in stages.items():
        folder = path / store / key
        folder.mkdir(exist_ok=True)
        (folder / "stage.json").write_text("{}")
        if curves is not None:
            (folder / "metrics.jsonl").write_text(metrics_lines(curves))
            (folder / "versions.json").write_text(json.dumps(list(versions)))


def write_earlier(path: Path, number: int, config: Mapping[str, Any], result: Mapping[str, float | None]) -> None:
    """An earlier result in the history of a run."""
    folder = path / "history" / str(number)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))


def accuracy(weight: float, radius: float, seed: int) -> float:
    """What the sweep's members reach: best at weight 0.1 and radius 8."""
    return 0.9 - 0.03 * np.log10(weight / 0.1) ** 2 - 0.004 * abs(radius - 8) + 0.01 * (seed - 1)


def write_sweep(path: Path, weights=(0.01, 0.1, 1.0), radii=(4.0, 8.0, 16.0), seeds=(0, 1, 2)) -> Path:
    """A sweep over two numbers and seeds; of the members with weight 1 and radius 16 one failed, one did not begin."""
    path.mkdir(parents=True)
    overrides = [
        {"regularizer.cosine_weight": weight, "regularizer.radius": radius, "seed": seed}
        for weight, radius, seed in itertools.product(weights, radii, seeds)
    ]
    sweep = members.define(path, config_file="configs/toy.py", base=CONFIG, overrides=overrides)
    members.save(sweep)
    for at, member in enumerate(sweep.members[:-1]):
        weight, radius, seed = member.overrides.values()
        own = config(regularizer__cosine_weight=weight, regularizer__radius=radius, seed=seed)
        steps = np.arange(1, 41)
        curves = {
            "train/loss": (2.3 * np.exp(-steps / (6 + seed)) + 0.1 / radius).tolist(),
            "train/gradient_norm": (1 + weight * np.sin(steps / 4 + seed)).tolist(),
            "val/accuracy": (accuracy(weight, radius, seed) * (1 - np.exp(-steps / 5))).tolist(),
        }
        if at == len(overrides) - 2:
            files = {"log.txt": "step 1\rstep 2\nTraceback\n\x1b[31mboom\x1b[0m\n", "error.txt": "exit status 1\n"}
            write_run(member.path, own, curves={"train/loss": [2.3, None]}, files=files)
            continue
        result = {
            "best_step": 400.0,
            "test/accuracy": accuracy(weight, radius, seed),
            "test/cross_entropy": 1 - accuracy(weight, radius, seed),
            "test/examples": 2000.0,
            "gradient/rps-8/pcc": 0.5 + 0.1 * np.log10(weight / 0.01) + 0.001 * seed,
        }
        write_run(member.path, own, result, curves=curves, versions=[VERSIONS])
    return path
