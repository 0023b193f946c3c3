"""The runs in a folder, and which of them stand side by side.

A run is a folder whose config.json names an experiment. It belongs to the nearest folder above it that is a run itself,
holds a sweep.json, or is the folder asked for; the runs of one folder and one experiment are a study.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.reports.records import INSIDE, ReportError, RunRecord, is_old_stage, is_run, natural, read_run
from launch.run import flatten
from launch.sweeps.members import DEFINITION, Sweep, load

_LOCKS = ".locks"  # a folder with one of these is a store, in which stages have names such as
_KEY = re.compile(r".+-[0-9a-f]{16}")


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
    own: RunRecord | None
    members: tuple[RunRecord, ...]
    keys: tuple[str, ...] = ()

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
        raise ReportError(f"{root} is no folder; give a run directory, a sweep's folder, or a folder of runs")
    folders, sweeps = [], {}
    for folder, has_run in _folders(root):
        if has_run:
            folders.append(folder)
        if (folder / DEFINITION).is_file():
            sweeps[folder] = load(folder)
    if not folders and not sweeps:
        raise ReportError(f"no run in {root}: looked for folders with a config.json that names an experiment")
    # runs with a plan have no runs for stages
    folders = [f for f in folders if f == root or not is_old_stage(f, _above(f, set(folders)))]
    holders = {root, *folders, *sweeps}
    inside: dict[Path, list[Path]] = {}
    for folder in folders:
        if folder != root:
            inside.setdefault(_above(folder, holders) or root, []).append(folder)
    studies = []
    for holder in sorted(holders, key=lambda holder: _place(holder, root, sweeps)):
        name = "" if holder == root else str(holder.relative_to(root))
        members = _members(holder, inside.get(holder, []), sweeps.get(holder))
        if holder not in folders:
            # a member that holds runs has a study of its own
            studies += _by_experiment(name, members, sweeps.get(holder), inside)
        elif holder == root or members:
            own = read_run(holder, name or holder.resolve().name)
            studies.append(Study(name, own.experiment, own, members))
    return studies


def _members(holder: Path, folders: list[Path], sweep: Sweep | None) -> tuple[RunRecord, ...]:
    """The runs in a folder; of a sweep all members in its order, then what else is there."""
    defined = {member.name: member for member in sweep.members} if sweep else {}
    strange = [name for name in defined if Path(name).name != name]
    if strange:
        raise ReportError(f"{holder / DEFINITION}: a member's name is that of its folder, not {strange[0]!r}")
    names = {str(folder.relative_to(holder)): folder for folder in sorted(folders, key=natural)}
    members = []
    for name in [*defined, *(name for name in names if name not in defined)]:
        member = defined.get(name)
        overrides = dict(member.overrides) if member else None
        config = flatten(member.base) | overrides if member and overrides is not None and name not in names else None
        members.append(read_run(holder / name, name, config, overrides))
    return tuple(members)


def _by_experiment(
    name: str, members: tuple[RunRecord, ...], sweep: Sweep | None, with_study: Collection[Path]
) -> list[Study]:
    """The studies of a folder: one per experiment, each single run of its kind by itself."""
    groups: dict[str, list[RunRecord]] = {}
    for member in members:
        groups.setdefault(member.experiment, []).append(member)
    keys = tuple(dict.fromkeys(key for member in sweep.members for key in member.overrides)) if sweep else ()
    studies = []
    for experiment, group in groups.items():
        if len(group) > 1:
            studies.append(Study(name, experiment, None, tuple(group), keys))
        elif group[0].path not in with_study:
            studies.append(Study(f"{name}/{group[0].name}" if name else group[0].name, experiment, group[0], ()))
    return studies


def _place(folder: Path, root: Path, sweeps: dict[Path, Sweep]) -> list:
    """Sorts folders as their paths, members of a sweep in its order."""
    place = []
    for path in [*reversed(folder.relative_to(root).parents), folder.relative_to(root)]:
        sweep = sweeps.get((root / path).parent)
        names = [member.name for member in sweep.members] if sweep else []
        place.append((names.index(path.name) if path.name in names else len(names), natural(Path(path.name))))
    return place


def _folders(root: Path) -> Iterator[tuple[Path, bool]]:
    """Every folder below, itself included, and whether it is a run; without what lies in stores."""
    for current, names, files in os.walk(root):
        folder = Path(current)
        if _LOCKS in names:
            names[:] = [name for name in names if not _KEY.fullmatch(name)]
        has_run = is_run(folder, files)
        inside = (*INSIDE, "artifacts") if has_run else ()
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in inside)
        yield folder, has_run


def _above(folder: Path, among: Collection[Path]) -> Path | None:
    return next((parent for parent in folder.parents if parent in among), None)
