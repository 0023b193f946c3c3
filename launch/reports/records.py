"""A run directory, read without opening it: a run that is still going is not disturbed.

RUN/config.json, versions.json, result.json    the settings, what it was made with, what came out
RUN/plan.json                                  where the store is, and the stages that the result is made from
RUN/history/<n>/{config,plan,result}.json      an earlier result of the same directory
RUN/**/*.png                                   figures
STORE/<key>/metrics.jsonl                      the curves of a trained stage
"""

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launch import versions
from launch.reports.numbers import is_number
from launch.run import PLAN, flatten

FINISHED, UNFINISHED, FAILED, WAITING = "finished", "unfinished", "failed", "not started"
# folders of a run in which there are neither other runs nor figures
INSIDE = ("checkpoints", "tensorboard", "history", "store")
_LOG_BYTES, _LOG_LINES = 65_536, 20
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class ReportError(ValueError):
    """There is nothing to report on; the message says what was looked for."""


@dataclass(frozen=True)
class Curve:
    """A metric over steps: (n,) each, in the order it was logged; NaN where it was not finite."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class EarlierResult:
    """A result that a run directory had before its config was changed.

    Attributes:
      number: of its folder in history/, from 1.
      config: flat, dotted key -> value.
      result: key -> value.
    """

    number: int
    config: Mapping[str, Any]
    result: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """What lies in a run directory.

    Attributes:
      name: its path below the study's folder.
      path: where it is.
      status: one of FINISHED, UNFINISHED, FAILED, WAITING.
      config: flat, dotted key -> value.
      result: key -> value, NaN where it was not finite; {} unless it is finished.
      curves: metric -> its course, of stages as "phi/train/loss".
      logged: the first and the last time that metrics were logged, in seconds; None if they never were.
      figures: PNG files.
      versions: what it was made with, see `launch.versions`.
      earlier: results of earlier configs, the oldest first.
      overrides: what the sweep that it is a member of set, dotted key -> value; None for a run of no sweep.
      log: of a failed run, the last lines.
      problems: what could not be read, a sentence each.
    """

    name: str
    path: Path
    status: str
    config: Mapping[str, Any]
    result: Mapping[str, float]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    logged: tuple[float, float] | None = None
    figures: tuple[Path, ...] = ()
    versions: tuple[Mapping[str, str], ...] = ()
    earlier: tuple[EarlierResult, ...] = ()
    overrides: Mapping[str, Any] | None = None
    log: str = ""
    problems: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        return str(self.config.get("experiment", ""))

    @property
    def last_step(self) -> int | None:
        return max((int(curve.steps[-1]) for curve in self.curves.values()), default=None)


def read_run(
    path: Path, name: str, config: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> RunRecord:
    """One run directory, as far as it can be read; what cannot is in `problems`.

    Args:
      path: of the directory; it need not exist if `config` is given.
      name: what to call it.
      config: flat, for a run that has not come as far as writing its own.
      overrides: what a sweep set.
    """
    problems: list[str] = []
    if config is None:
        config = flatten(_optional(path / "config.json", {}, problems))
    result = _numbers(path / "result.json", problems)
    stages = _stage_folders(path, problems)
    curves, times = _curves(path, stages, problems)
    status = _status(path)
    return RunRecord(
        name=name,
        path=path,
        status=status,
        config=config,
        result=result,
        curves=curves,
        logged=(min(times), max(times)) if times else None,
        figures=tuple(sorted(_figures(path), key=natural)),
        versions=_versions([path, *stages.values()], problems),
        earlier=tuple(_earlier(path, problems)),
        overrides=overrides,
        log=_last_lines(path) if status == FAILED else "",
        problems=tuple(problems),
    )


def natural(path: Path) -> list:
    """Sorts member10 after member9."""
    return [
        [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
        for name in path.parts
    ]


def read_json(path: Path, empty: Any, problems: list[str]) -> Any:
    """The content of a JSON file, which is of the type of `empty`; or `empty`, and a sentence more in `problems`."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return empty
    if not isinstance(content, type(empty)):
        problems.append(f"{path} does not hold a JSON {'object' if isinstance(empty, dict) else 'list'}")
        return empty
    return content


def _optional(path: Path, empty: Any, problems: list[str]) -> Any:
    return read_json(path, empty, problems) if path.exists() else empty


def _status(path: Path) -> str:
    if (path / "result.json").exists():
        return FINISHED
    if (path / "error.txt").exists():
        return FAILED
    return UNFINISHED if (path / "config.json").exists() or (path / "log.txt").exists() else WAITING


def _numbers(path: Path, problems: list[str]) -> dict[str, float]:
    """A result.json: null is NaN, what is no number is left out."""
    result = _optional(path, {}, problems)
    wrong = [key for key, value in result.items() if not (value is None or is_number(value))]
    if wrong:
        problems.append(f"{path}: not a number: {', '.join(wrong)}")
    return {key: math.nan if value is None else float(value) for key, value in result.items() if key not in wrong}


def _earlier(path: Path, problems: list[str]) -> Iterator[EarlierResult]:
    """The results in history/, the oldest first."""
    for folder in sorted((path / "history").glob("[0-9]*"), key=natural):
        if folder.name.isdecimal() and (folder / "result.json").exists():
            config = flatten(_optional(folder / "config.json", {}, problems))
            yield EarlierResult(int(folder.name), config, _numbers(folder / "result.json", problems))


def is_run(folder: Path, files: Collection[str]) -> bool:
    """Whether a folder is a run: its config names an experiment, or is damaged beside other files of a run."""
    if "config.json" not in files:
        return False
    problems: list[str] = []
    config = read_json(folder / "config.json", {}, problems)
    if problems:
        return bool({"metrics.jsonl", "result.json", ".lock"} & set(files))
    return isinstance(config.get("experiment"), str)


def _figures(path: Path) -> Iterator[Path]:
    """PNG files of a run, without those of runs that lie in it."""
    for current, names, files in os.walk(path):
        folder = Path(current)
        if folder != path and is_run(folder, files):
            names.clear()
            continue
        names[:] = [name for name in names if not name.startswith(".") and name not in INSIDE]
        yield from (folder / file for file in files if file.endswith(".png"))


def _versions(folders: Iterable[Path], problems: list[str]) -> tuple[Mapping[str, str], ...]:
    """The versions that a run and its trained stages were made with, each set once."""
    entries = [entry for folder in folders for entry in _optional(folder / versions.FILE, [], problems)]
    return tuple({json.dumps(e, sort_keys=True): e for e in entries if isinstance(e, dict)}.values())


# -- curves ---------------------------------------------------------------------------------------------------------


def _stage_folders(path: Path, problems: list[str]) -> dict[str, Path]:
    """Where the store keeps the stages of a run's plan, by key."""
    plan = _optional(path / PLAN, {}, problems)
    store, stages = plan.get("store"), plan.get("stages")
    if not isinstance(store, str) or not isinstance(stages, dict):
        return {}
    return {key: path / store / key for key in stages if Path(key).name == key}  # a name, not a path elsewhere


def _curves(path: Path, stages: Mapping[str, Path], problems: list[str]) -> tuple[dict[str, Curve], list[float]]:
    """The curves of a run's trained stages, and the times at which they were logged.

    With one trained stage its metrics keep their names; with several the stage is put before them.
    """
    trained = {key: folder / "metrics.jsonl" for key, folder in stages.items() if (folder / "metrics.jsonl").exists()}
    names = [key.rpartition("-")[0] for key in trained]
    prefixes = [name if names.count(name) == 1 else key for key, name in zip(trained, names, strict=True)]
    logs = _old_logs(path) | {
        f"{prefix}/" if len(trained) > 1 else "": log for prefix, log in zip(prefixes, trained.values(), strict=True)
    }
    curves: dict[str, Curve] = {}
    times: list[float] = []
    for prefix, log in logs.items():
        of_stage, logged = read_metrics(log, problems)
        curves |= {prefix + metric: curve for metric, curve in of_stage.items()}
        times += logged
    return curves, times


def read_metrics(path: Path, problems: list[str]) -> tuple[dict[str, Curve], list[float]]:
    """All curves of a metrics.jsonl, and the times of its lines."""
    points: dict[str, list[tuple[float, float]]] = {}
    times, damaged = [], 0
    for number, line in enumerate(_text(path).splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # being written, or cut off by a kill
        try:
            entry = json.loads(line)
            step = float(entry.pop("step"))
            times.append(float(entry.pop("time")))
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged = damaged or number
            continue
        for key, value in entry.items():
            if value is None or isinstance(value, int | float):
                points.setdefault(key, []).append((step, value if is_number(value) else math.nan))
    if damaged:
        problems.append(f"{path}, line {damaged}: no JSON object with step and time; left out")
    arrays = {key: np.asarray(steps_and_values, np.float64).T for key, steps_and_values in points.items()}
    return {key: Curve(*rows) for key, rows in arrays.items()}, times


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _last_lines(path: Path) -> str:
    """Why a run failed and the end of its log: without colours, and progress bars only as they ended."""
    log = b""
    if (path / "log.txt").exists():
        with open(path / "log.txt", "rb") as file:
            file.seek(max(0, (path / "log.txt").stat().st_size - _LOG_BYTES))
            log = file.read()
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in _ANSI.sub("", log.decode(errors="replace")).split("\n")]
    lines = [line for line in lines if line.strip()][-_LOG_LINES:]
    return "\n".join([_text(path / "error.txt").strip(), *lines]).strip()


# -- runs without a plan ----------------------------------------------------------------------------------------------
# They keep their curves in the run directory and in runs within it. To be deleted, with its uses, once every experiment
# has a plan: everything below, `is_old_stage` in `runs`, and `_old_logs` in `_curves`.

_OLD_INSIDE = ("artifacts", *INSIDE)


def _old_logs(run: Path) -> dict[str, Path]:
    """The metrics.jsonl of a run and of the runs within it that are its stages, by the prefix of their curves.

    A stage is named by its folder: without the digest that may end it or else by its whole name, if that is
    unambiguous, or by its path.
    """
    stages = _old_stages(run)
    ways = (lambda f: re.sub(r"-[0-9a-f]{8,}$", "", f.name), lambda f: f.name, lambda f: str(f.relative_to(run)))
    names = [[way(folder) for folder in stages] for way in ways]
    files = {"": run / "metrics.jsonl"} if (run / "metrics.jsonl").exists() else {}
    for at, folder in enumerate(stages):
        name = next(taken[at] for taken in names if taken.count(taken[at]) == 1)
        files[f"{name}/"] = folder / "metrics.jsonl"
    return files


def is_old_stage(folder: Path, run: Path | None) -> bool:
    """Whether a run directory is a stage of the run that it lies in: of the same config, or of no experiment."""
    if run is None:
        return False
    config = _old_config(folder)
    return config is not None and ("experiment" not in config or config == _old_config(run))


def _old_stages(run: Path) -> list[Path]:
    """The folders of a run's stages in which metrics were logged."""
    folders = []
    for current, names, files in os.walk(run):
        folder = Path(current)
        if folder != run and "config.json" in files and not is_old_stage(folder, run):
            names.clear()  # a run with a study of its own, or no run at all
            continue
        if folder != run and {"config.json", "metrics.jsonl"} <= set(files):
            folders.append(folder)
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _OLD_INSIDE)
    return folders


def _old_config(folder: Path) -> dict | None:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None
