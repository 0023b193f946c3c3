"""The runs in a folder, and which of them stand side by side; read without disturbing a run that is still going.

RUN/config.json, versions.json, result.json    the settings, what it was made with, what came out
RUN/plan.json                                  where the store is, and the stages that the result is made from
RUN/history/<n>/{config,plan,result}.json      an earlier result of the same directory
RUN/**/*.png                                   figures
STORE/<key>/metrics.jsonl, versions.json       the curves of a trained stage, and what it was trained with

A run is a folder whose config.json names an experiment. It belongs to the nearest folder above it that is a run itself,
holds a sweep.json, or is the folder asked for; the runs of one folder and one experiment are a study.
"""

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launch.processes import versions
from launch.reading import InputError, MissingInput, jsons
from launch.reports.numbers import is_number
from launch.run import PLAN, flatten
from launch.sweeps.members import DEFINITION, ERROR, LOG, Sweep, figures_path, last_lines, load

FINISHED, UNFINISHED, FAILED, WAITING = "finished", "unfinished", "failed", "not started"
_INSIDE = ("checkpoints", "tensorboard", "history", "store")  # folders of a run with neither other runs nor figures
_STORE, _KEY = ".locks", re.compile(r".+-[0-9a-f]{16}")  # what a store has in it, and the names of stages there
_LOG_LINES = 20


class ReportError(ValueError):
    """There is nothing to report on; the message says what was looked for."""


@dataclass(frozen=True)
class Curve:
    """A metric over steps: (n,) each, in the order it was logged; NaN where it was not finite."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class EarlierResult:
    """A result from before the config was changed: its number in history/, flat config, key -> value."""

    number: int
    config: Mapping[str, Any]
    result: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """What lies in a run directory."""

    name: str  # its path below the study's folder
    path: Path
    status: str  # FINISHED, UNFINISHED, FAILED, or WAITING
    config: Mapping[str, Any]  # flat, dotted key -> value
    result: Mapping[str, float]  # NaN where it was not finite; {} unless it is finished
    curves: Mapping[str, Curve] = field(default_factory=dict)  # with several trained stages "phi/train/loss"
    logged: tuple[float, float] | None = None  # first and last time that metrics were logged, in seconds
    figures: tuple[Path, ...] = ()  # PNG files
    versions: tuple[Mapping[str, str], ...] = ()  # what it was made with, see `launch.processes.versions`
    earlier: tuple[EarlierResult, ...] = ()  # of earlier configs, the oldest first
    overrides: Mapping[str, Any] | None = None  # what its sweep set, dotted key -> value; None for a run of no sweep
    log: str = ""  # of a failed run, the last lines
    problems: tuple[str, ...] = ()  # what could not be read, a sentence each

    @property
    def experiment(self) -> str:
        return str(self.config.get("experiment", ""))

    @property
    def last_step(self) -> int | None:
        return max((int(curve.steps[-1]) for curve in self.curves.values()), default=None)


@dataclass(frozen=True)
class Study:
    """Runs that are put side by side."""

    name: str  # the folder, below the one asked for; "" for that one itself
    experiment: str  # dotted name
    own: RunRecord | None  # the folder's own run, or the only one there is
    members: tuple[RunRecord, ...]  # the runs in it, of a sweep also those that have not begun
    keys: tuple[str, ...] = ()  # what a sweep overrides, in its order
    figures: tuple[Path, ...] = ()  # PNG files that show the members side by side

    @property
    def all_runs(self) -> tuple[RunRecord, ...]:
        return ((self.own,) if self.own else ()) + self.members

    @property
    def compared(self) -> tuple[RunRecord, ...]:
        """The runs that are put side by side: the members, or the only run."""
        return self.members or self.all_runs


def read(root: Path) -> list[Study]:
    """The studies in a folder, outer ones first, those of a sweep in its order.

    Raises:
      ReportError: it is no folder, or there is no run in it.
      SweepError: a sweep.json is damaged.
    """
    if not root.is_dir():
        raise ReportError(f"{root} is not a folder; give a run directory, a sweep's folder, or a folder of runs")
    folders = [(folder, run, sweep) for folder, run, sweep in _folders(root) if run or sweep or folder == root]
    if folders == [(root, False, None)]:
        raise ReportError(f"no run in {root}: looked for folders with a config.json that names an experiment")
    inside: dict[Path, list[Path]] = {folder: [] for folder, *_ in folders}  # folder -> the runs that belong to it
    for folder, run, _ in folders:
        if run and folder != root:
            inside[next(parent for parent in folder.parents if parent in inside)].append(folder)
    studies = []
    for folder, run, sweep in folders:
        name = "" if folder == root else str(folder.relative_to(root))
        members = _members(folder, inside[folder], sweep)
        if not run:  # a member that holds runs has a study of its own
            studies += _by_experiment(folder, name, members, sweep, {path for path, runs in inside.items() if runs})
        elif folder == root or members:
            own = _read_run(folder, name or folder.resolve().name)
            studies.append(Study(name, own.experiment, own, members))
    return studies


def _folders(root: Path) -> Iterator[tuple[Path, bool, Sweep | None]]:
    """Every folder outside of stores, whether it is a run, and the sweep it holds; members in the sweep's order."""
    for current, names, files in os.walk(root):
        folder = Path(current)
        sweep, run = load(folder) if DEFINITION in files else None, _is_run(folder, files)
        members = [member.name for member in sweep.members] if sweep else []
        place = lambda name, members=members: members.index(name) if name in members else len(members)
        inside = (*_INSIDE, "artifacts") if run else ()
        kept = [name for name in names if not name.startswith(".") and name not in inside]
        kept = [name for name in kept if not (_STORE in names and _KEY.fullmatch(name))]
        names[:] = sorted(kept, key=lambda name: (place(name), _natural(Path(name))))
        yield folder, run, sweep


def _members(folder: Path, runs: list[Path], sweep: Sweep | None) -> tuple[RunRecord, ...]:
    """The runs in a folder; of a sweep all members in its order, then what else is there."""
    defined = {member.name: member for member in sweep.members} if sweep else {}
    strange = [name for name in defined if Path(name).name != name]
    if strange:
        raise ReportError(f"{folder / DEFINITION}: a member's name is that of its folder, not {strange[0]!r}")
    names = [str(run.relative_to(folder)) for run in runs]
    records = []
    for name in dict.fromkeys([*defined, *names]):
        member = defined.get(name)
        overrides = dict(member.overrides) if member else None
        config = {**flatten(member.base), **member.overrides} if member and name not in names else None
        records.append(_read_run(folder / name, name, config, overrides))
    return tuple(records)


def _by_experiment(
    folder: Path, name: str, members: tuple[RunRecord, ...], sweep: Sweep | None, with_study: Collection[Path]
) -> Iterator[Study]:
    """The studies of a folder: one per experiment, each single run of its kind by itself."""
    groups: dict[str, list[RunRecord]] = {}
    for member in members:
        groups.setdefault(member.experiment, []).append(member)
    keys = tuple(dict.fromkeys(key for member in sweep.members for key in member.overrides)) if sweep else ()
    for experiment, (first, *others) in groups.items():
        if others:
            figures = _figures(figures_path(folder, experiment)) if sweep else ()
            yield Study(name, experiment, None, (first, *others), keys, tuple(sorted(figures, key=_natural)))
        elif first.path not in with_study:
            yield Study(f"{name}/{first.name}" if name else first.name, experiment, first, ())


def _is_run(folder: Path, files: Collection[str]) -> bool:
    """Whether a folder is a run: its config names an experiment, or is damaged beside other files of a run."""
    if "config.json" not in files:
        return False
    problems: list[str] = []
    config = _json(folder / "config.json", {}, problems)
    return bool({PLAN, "result.json", ".lock"} & set(files)) if problems else isinstance(config.get("experiment"), str)


def _natural(path: Path) -> list:
    """Sorts member10 after member9."""
    split = lambda name: [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name)]
    return [split(name) for name in path.parts]


def _read_run(
    path: Path, name: str, config: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> RunRecord:
    """One run directory, as far as it can be read; `config` is of a run that has not come as far as writing its own."""
    problems: list[str] = []
    status_files = {FINISHED: ["result.json"], FAILED: ["error.txt"], UNFINISHED: ["config.json", "log.txt"]}
    status = next((s for s, files in status_files.items() if any((path / f).exists() for f in files)), WAITING)
    config = flatten(_json(path / "config.json", {}, problems)) if config is None else config
    result = _numbers(path / "result.json", problems)
    plan = _json(path / PLAN, {"store": "", "stages": {}}, problems)
    keys = [key for key in plan["stages"] if Path(key).name == key]  # a name, not a path elsewhere
    stages = {key: path / plan["store"] / key for key in keys}
    curves, times = _curves(stages, problems)
    sets = [entry for folder in (path, *stages.values()) for entry in _json(folder / versions.FILE, [], problems)]
    logged = (min(times), max(times)) if times else None
    figures = tuple(sorted(_figures(path), key=_natural))
    made_with = tuple({json.dumps(entry, sort_keys=True): entry for entry in sets if isinstance(entry, dict)}.values())
    earlier, log = tuple(_earlier(path, problems)), _end(path) if status == FAILED else ""
    more = (curves, logged, figures, made_with, earlier, overrides, log, tuple(problems))
    return RunRecord(name, path, status, config, result, *more)


def _json(path: Path, empty: Any, problems: list[str]) -> Any:
    """The content of a JSON file, of the type of `empty` and with values of its types; else `empty` and a problem."""
    try:
        content = jsons.read(path, top=object, nonfinite=True)
    except MissingInput:
        return empty
    except InputError as error:
        problems.append(f"{path} cannot be read: {error}")
        return empty
    fields = empty.items() if isinstance(empty, dict) else ()
    if isinstance(content, type(empty)) and all(isinstance(content.get(key), type(value)) for key, value in fields):
        return content
    kind = " with ".join(["object", *map(repr, empty)]) if isinstance(empty, dict) else "list"
    problems.append(f"{path} does not hold a JSON {kind}")
    return empty


def _numbers(path: Path, problems: list[str]) -> dict[str, float]:
    """A result.json: null is NaN, what is no number is left out."""
    result = _json(path, {}, problems)
    wrong = [key for key, value in result.items() if not (value is None or is_number(value))]
    if wrong:
        problems.append(f"{path}: not a number: {', '.join(wrong)}")
    return {key: math.nan if value is None else float(value) for key, value in result.items() if key not in wrong}


def _earlier(path: Path, problems: list[str]) -> Iterator[EarlierResult]:
    """The results in history/, the oldest first."""
    for folder in sorted((path / "history").glob("[0-9]*"), key=_natural):
        if folder.name.isdecimal() and (folder / "result.json").exists():
            config = flatten(_json(folder / "config.json", {}, problems))
            yield EarlierResult(int(folder.name), config, _numbers(folder / "result.json", problems))


def _figures(path: Path) -> Iterator[Path]:
    """PNG files of a run, without those of runs that lie in it."""
    for current, names, files in os.walk(path):
        folder = Path(current)
        inner = folder != path and _is_run(folder, files)
        names[:] = [name for name in names if not inner and not name.startswith(".") and name not in _INSIDE]
        yield from (folder / file for file in files if not inner and file.endswith(".png"))


def _curves(stages: Mapping[str, Path], problems: list[str]) -> tuple[dict[str, Curve], list[float]]:
    """The curves of the trained stages, and the times of their lines.

    Metrics of the only trained stage keep their names; of several, the stage's name or else its key is put before them.
    """
    logs = {key: folder / "metrics.jsonl" for key, folder in stages.items() if (folder / "metrics.jsonl").exists()}
    names = [key.rpartition("-")[0] for key in logs]
    points: dict[str, list[tuple[float, float]]] = {}
    times: list[float] = []
    for (key, log), name in zip(logs.items(), names, strict=True):
        prefix = "" if len(logs) == 1 else f"{name}/" if names.count(name) == 1 else f"{key}/"
        damaged = 0
        for number, line in enumerate(log.read_text(errors="replace").splitlines(keepends=True), 1):
            if not line.endswith("\n"):
                break  # being written, or cut off by a kill
            try:
                entry = jsons.parse(line, top=dict, nonfinite=True)
                step, time = float(entry.pop("step")), float(entry.pop("time"))
            except (ValueError, TypeError, KeyError, AttributeError):
                damaged = damaged or number
                continue
            times.append(time)
            for metric, value in entry.items():
                if value is None or isinstance(value, int | float):
                    points.setdefault(prefix + metric, []).append((step, value if is_number(value) else math.nan))
        if damaged:
            problems.append(f"{log}, line {damaged}: not a JSON object with step and time; left out")
    return {name: Curve(*np.asarray(pairs, np.float64).T) for name, pairs in points.items()}, times


def _end(path: Path) -> str:
    """Why a run failed, and the end of its log."""
    error = (path / ERROR).read_text(errors="replace") if (path / ERROR).exists() else ""
    return "\n".join([error.strip(), *last_lines(path / LOG, _LOG_LINES)]).strip()
