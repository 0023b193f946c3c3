"""What lies in a folder of runs, read without opening any of them: a run that is still going is not disturbed.

A run is a folder whose config.json names an experiment. It belongs to the nearest folder above it that is a run itself
(a comparison), holds a sweep.json (a sweep), or is the folder asked for; the runs of one folder and one experiment are
a study, and a study is what is put side by side. A run directory inside a run, of the same config or of one that names
no experiment, is a stage of it: its curves are the run's.
"""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch import versions
from launch.run import flatten
from launch.sweeps.members import DEFINITION, Sweep, load

FINISHED, UNFINISHED, FAILED, WAITING = "finished", "unfinished", "failed", "not started"
_INSIDE = ("artifacts", "checkpoints", "tensorboard", "history")  # of a run, where no other runs are
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
class Found:
    """A run directory.

    Attributes:
      name: its path below the study's folder.
      path: where it is.
      status: one of FINISHED, UNFINISHED, FAILED, WAITING.
      config: flat, dotted key -> value.
      result: key -> value, NaN where it was not finite; {} unless it is finished.
      curves: metric -> its course.
      logged: the first and the last time that metrics were logged, in seconds; None if they never were.
      table: the experiment's own table, Markdown; "" for none.
      figures: PNG files among its artifacts.
      versions: what it was made with, see `launch.versions`.
      log: of a failed run, the last lines.
      problems: what could not be read, a sentence each.
    """

    name: str
    path: Path
    status: str
    config: Mapping[str, Any]
    result: Mapping[str, float]
    curves: Mapping[str, Curve]
    logged: tuple[float, float] | None = None
    table: str = ""
    figures: tuple[Path, ...] = ()
    versions: tuple[Mapping[str, str], ...] = ()
    log: str = ""
    problems: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        return str(self.config.get("experiment", ""))

    @property
    def last_step(self) -> int | None:
        return max((int(curve.steps[-1]) for curve in self.curves.values()), default=None)


@dataclass(frozen=True)
class Study:
    """Runs that are put side by side.

    Attributes:
      name: the folder, below the one asked for; "" for that one itself.
      experiment: dotted name.
      own: the folder's own run, or the only one there is; None for a sweep and for a folder that is no run.
      members: the runs in it, of a sweep also those that have not begun.
      keys: what a sweep overrides, in its order.
    """

    name: str
    experiment: str
    own: Found | None
    members: tuple[Found, ...]
    keys: tuple[str, ...] = ()

    @property
    def all_runs(self) -> tuple[Found, ...]:
        return ((self.own,) if self.own else ()) + self.members


def read(root: Path) -> list[Study]:
    """The studies in a folder, outer ones first.

    Raises:
      ReportError: it is no folder, or there is no run in it.
      SweepError: a sweep.json is damaged.
    """
    if not root.is_dir():
        raise ReportError(f"{root} is no folder; give a run directory, a sweep's folder, or a folder of runs")
    runs, sweeps = [], {}
    for folder, is_run in _folders(root):
        if is_run:
            runs.append(folder)
        if (folder / DEFINITION).is_file():
            sweeps[folder] = load(folder)
    if not runs and not sweeps:
        raise ReportError(f"no run in {root}: looked for folders with a config.json that names an experiment")
    runs = [folder for folder in runs if folder == root or not _is_stage(folder, _above(folder, set(runs)))]
    holders = {root, *runs, *sweeps}
    inside: dict[Path, list[Path]] = {}
    for folder in runs:
        if folder != root:
            inside.setdefault(_above(folder, holders), []).append(folder)
    studies = []
    for holder in sorted(holders, key=_natural):
        name = "" if holder == root else str(holder.relative_to(root))
        members = _members(holder, inside.get(holder, []), sweeps.get(holder))
        if holder not in runs:
            # a member that holds runs has a study of its own
            studies += _by_experiment(name, members, sweeps.get(holder), lambda found: found.path in inside)
        elif holder == root or members:
            own = read_run(holder, name or holder.resolve().name)
            studies.append(Study(name, own.experiment, own, members))
    return studies


def _members(holder: Path, folders: list[Path], sweep: Sweep | None) -> tuple[Found, ...]:
    """The runs in a folder; of a sweep all members in its order, then what else is there."""
    defined = {member.name: member for member in sweep.members} if sweep else {}
    strange = [name for name in defined if Path(name).name != name]
    if strange:
        raise ReportError(f"{holder / DEFINITION}: a member's name is that of its folder, not {strange[0]!r}")
    names = {str(folder.relative_to(holder)): folder for folder in sorted(folders, key=_natural)}
    found = []
    for name in [*defined, *(name for name in names if name not in defined)]:
        if name in names:
            found.append(read_run(names[name], name))
        else:
            member = defined[name]
            found.append(read_run(holder / name, name, flatten(member.base) | dict(member.overrides)))
    return tuple(found)


def _by_experiment(
    name: str, members: tuple[Found, ...], sweep: Sweep | None, has_study: Callable[[Found], bool]
) -> list[Study]:
    groups: dict[str, list[Found]] = {}
    for member in members:
        groups.setdefault(member.experiment, []).append(member)
    keys = tuple(dict.fromkeys(key for member in sweep.members for key in member.overrides)) if sweep else ()
    studies = []
    for experiment, group in groups.items():
        if len(group) > 1:
            studies.append(Study(name, experiment, None, tuple(group), keys))
        elif not has_study(group[0]):  # the only one of its kind: nothing to put it beside
            studies.append(Study(f"{name}/{group[0].name}" if name else group[0].name, experiment, group[0], ()))
    return studies


def _folders(root: Path) -> Iterator[tuple[Path, bool]]:
    """Every folder below, itself included, and whether it is a run."""
    for current, names, files in os.walk(root):
        folder = Path(current)
        is_run = "config.json" in files and _is_run(folder, files)
        names[:] = sorted(n for n in names if not n.startswith(".") and not (is_run and n in _INSIDE))
        yield folder, is_run


def _is_run(folder: Path, files: list[str]) -> bool:
    config, problem = _json(folder / "config.json", dict)
    if problem:  # a damaged config is still a run's if other files say so
        return bool({"metrics.jsonl", "result.json", ".lock"} & set(files))
    return isinstance(config.get("experiment"), str)


def _above(folder: Path, among: Collection[Path]) -> Path | None:
    return next((parent for parent in folder.parents if parent in among), None)


def _is_stage(folder: Path, run: Path | None) -> bool:
    """Whether a run directory is a part of the run that it lies in."""
    if run is None:
        return False
    config, problem = _json(folder / "config.json", dict)
    return not problem and ("experiment" not in config or config == _json(run / "config.json", dict)[0])


def _stages(run: Path) -> list[Path]:
    """The folders of a run's stages, in which metrics were logged."""
    found = []
    for current, names, files in os.walk(run):
        folder = Path(current)
        if folder != run and "config.json" in files and not _is_stage(folder, run):
            names.clear()  # a run with a study of its own, or no run at all
            continue
        if folder != run and {"config.json", "metrics.jsonl"} <= set(files):
            found.append(folder)
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _INSIDE)
    return found


def _with_stages(curves: dict[str, Curve], run: Path) -> tuple[dict[str, Curve], list[tuple[float, float]], list[str]]:
    """The curves of a run and of its stages, with times and problems of the stages.

    A stage's are named by its folder: without the digest that may end it or else by its whole name, if that is
    unambiguous, or by its path.
    """
    stages = _stages(run)
    ways = (lambda f: re.sub(r"-[0-9a-f]{8,}$", "", f.name), lambda f: f.name, lambda f: str(f.relative_to(run)))
    taken = [[way(folder) for folder in stages] for way in ways]
    curves, times, problems = dict(curves), [], []
    for at, folder in enumerate(stages):
        name = next(names[at] for names in taken if names.count(names[at]) == 1)
        found, logged, problem = _metrics(folder / "metrics.jsonl")
        curves |= {f"{name}/{metric}": curve for metric, curve in found.items()}
        times += [logged] if logged else []
        problems.append(problem)
    return curves, times, problems


def _natural(path: Path) -> list:
    """Sorts member10 after member9."""
    return [
        [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
        for name in path.parts
    ]


def read_run(path: Path, name: str, config: Mapping[str, Any] | None = None) -> Found:
    """One run directory, as far as it can be read; what cannot is in `problems`.

    Args:
      path: of the directory; it need not be there if `config` is given.
      name: what to call it.
      config: flat, for a run that has not come as far as writing its own.
    """
    problems = []

    def read_json(file: str, kind: type):
        if not (path / file).exists():
            return kind()
        content, problem = _json(path / file, kind)
        problems.append(problem)
        return content

    if config is None:
        config = flatten(read_json("config.json", dict))
    result, problem = _numbers(read_json("result.json", dict), path / "result.json")
    curves, logged, unread = _metrics(path / "metrics.jsonl")
    curves, times, of_stages = _with_stages(curves, path)
    times = [time for span in ([logged] if logged else []) + times for time in span]
    made_with = read_json(versions.FILE, list)
    status = _status(path)
    return Found(
        name=name,
        path=path,
        status=status,
        config=config,
        result=result,
        curves=curves,
        logged=(min(times), max(times)) if times else None,
        table=_text(path / "table.md"),
        figures=tuple(sorted((path / "artifacts").rglob("*.png"), key=_natural)),
        versions=tuple(entry for entry in made_with if isinstance(entry, dict)),
        log=_last_lines(path) if status == FAILED else "",
        problems=tuple(filter(None, [*problems, problem, unread, *of_stages])),
    )


def _status(path: Path) -> str:
    if (path / "result.json").exists():
        return FINISHED
    if (path / "error.txt").exists():
        return FAILED
    return UNFINISHED if (path / "config.json").exists() or (path / "log.txt").exists() else WAITING


def _json(path: Path, kind: type) -> tuple[Any, str]:
    """The content of a JSON file, or an empty one and what is wrong with it."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return kind(), f"{path} cannot be read: {error}"
    if not isinstance(content, kind):
        return kind(), f"{path} does not hold a JSON {'object' if kind is dict else 'list'}"
    return content, ""


def _numbers(result: dict, path: Path) -> tuple[dict[str, float], str]:
    wrong = [key for key, value in result.items() if not (value is None or _is_number(value))]
    problem = f"{path}: not a number: {', '.join(wrong)}" if wrong else ""
    return {k: math.nan if v is None else float(v) for k, v in result.items() if k not in wrong}, problem


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metrics(path: Path) -> tuple[dict[str, Curve], tuple[float, float] | None, str]:
    """All curves of a metrics.jsonl, the first and last time in it, and what is wrong with it."""
    points: dict[str, list[tuple[float, float]]] = {}
    times = []
    problem = ""
    for number, line in enumerate(_text(path).splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # being written, or cut off by a kill
        try:
            entry = json.loads(line)
            step = float(entry.pop("step"))
            times.append(float(entry.pop("time")))
        except (ValueError, TypeError, KeyError, AttributeError):
            problem = problem or f"{path}, line {number}: no JSON object with step and time; left out"
            continue
        for key, value in entry.items():
            if value is None or _is_number(value):
                points.setdefault(key, []).append((step, math.nan if value is None else value))
    arrays = {key: np.asarray(found, np.float64).T for key, found in points.items()}
    return {k: Curve(*found) for k, found in arrays.items()}, (min(times), max(times)) if times else None, problem


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
