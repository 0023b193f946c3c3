"""The sweep folder: what is swept (sweep.json), a run directory for every member, and the store that they share.

    WORKDIR/sweep.json                              config files, base configs, the members with their overrides
    WORKDIR/regularizer.cosine_weight=0.1,seed=3/   a member: a run directory, with log.txt, and error.txt if it failed
    WORKDIR/store/                                  the results of stages; members share what their plans share
    WORKDIR/figures/EXPERIMENT/                     its members side by side, from experiments that draw them

A member is done when it has a result.json; nothing else counts.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict, FrozenConfigDict

from launch.files import load_json, write_atomically
from launch.reading import InputError, jsons, paths, records
from launch.reading.records import Record
from launch.run import PLAN, plain

STATES = ("waiting", "started", "failed", "done")
DEFINITION, LOG, ERROR, _RESULT = "sweep.json", "log.txt", "error.txt", "result.json"
_LONGEST_NAME = 120
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CONFIG = "config"  # an override of this name is the config file that the member is of, instead of the sweep's


class SweepError(ValueError):
    """The sweep cannot be defined or used in this folder; the message says why and what to do."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
      name: of its folder, made from the overrides.
      overrides: where it differs from its base config, as {"regularizer.cosine_weight": 0.1}.
      path: its run directory.
      config_file: of its base config, absolute, FILE or FILE:ARGUMENT; the sweep's unless it names another.
      base: the base config, resolved, as JSON values.
    """

    name: str
    overrides: Mapping[str, Any]
    path: Path
    config_file: str
    base: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Sweep:
    """A sweep as sweep.json holds it.

    Attributes:
      path: the sweep folder.
      config_file: of the base config, absolute, FILE or FILE:ARGUMENT.
      fixed: overrides from the command line, for all members; base configs include them.
      base: the base config of members that name no config file, resolved, as JSON values.
      members: in the order of their definition.
      search: the settings of an adaptive search, or None.
      store: the folder of what members share; None for `store` in the sweep folder.
    """

    path: Path
    config_file: str
    fixed: Mapping[str, Any]
    base: Mapping[str, Any] = field(repr=False)
    members: tuple[Member, ...]
    search: Mapping[str, Any] | None = None
    store: Path | None = None


class OnRunning(Protocol):
    """Called about once a second with the names of the members that are running."""

    def __call__(self, running: Collection[str], /) -> None: ...


class OnEnded(Protocol):
    """Called with every member that has ended: done, failed or stopped."""

    def __call__(self, member: Member, /) -> None: ...


@dataclass(frozen=True)
class Options:
    """What an executor needs besides the members.

    Attributes:
      processes: how many members at once; 0 leaves it to the executor.
      slurm: settings of the scheduler, {"nodes": "2", "partition": "main"}.
      flags: of the sweep's command that its members get too.
      watch: see `OnRunning`.
      ended: see `OnEnded`.
      keep_open: file descriptors that members' processes inherit, so that the folder stays locked until the last ends.
    """

    processes: int = 0
    slurm: Mapping[str, str] = field(default_factory=dict)
    flags: Sequence[str] = ()
    watch: OnRunning = lambda running: None
    ended: OnEnded = lambda member: None
    keep_open: Sequence[int] = ()


class Executor(Protocol):
    """What trains members: a module with this function."""

    def execute(self, sweep: Sweep, members: Iterable[Member], options: Options) -> None:
        """Train members; one that fails does not stop the others.

        Calls `start` before a member begins, `fail` where one ends in an error, and the functions of `options`.

        Args:
          sweep: the sweep that they belong to.
          members: to be trained; none of them is done.
          options: see `Options`.

        Raises:
          SweepError: these members cannot be trained by this executor.
          Preempted: the sweep was asked to stop; the same call continues it.
        """
        ...


@dataclass(frozen=True)
class Status:
    """The progress of a member, according to its files.

    Attributes:
      state: "waiting" (not begun), "started" (running, or stopped before its end), "failed" or "done".
      step: the last that was logged, if any.
      values: the newest value of every metric in the last lines of its newest metrics.jsonl.
      result: of a member that is done.
      error: why it failed.
    """

    state: str
    step: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    result: Mapping[str, float | None] | None = None
    error: str = ""


# -- defining and keeping a sweep -----------------------------------------------------------------------------------


def define(
    workdir: str | Path,
    *,
    config_file: str,
    base: Mapping[str, Any] | ConfigDict,
    overrides: Sequence[Mapping[str, Any]],
    others: Mapping[str, ConfigDict] | None = None,
    fixed: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    store: str | Path = "",
) -> Sweep:
    """A sweep of `base` with one member for each dict of flat overrides; nothing is written.

    Args:
      workdir: the sweep folder.
      config_file: FILE or FILE:ARGUMENT.
      base: its config, with `fixed` in it.
      overrides: of each member; `CONFIG` names the member's own config file, relative to `config_file`.
      others: the configs of those files, by the value of that override.
      fixed: overrides from the command line, for all members.
      search, store: see `Sweep`; "" for `store` in the sweep folder.

    Raises:
      SweepError: two members are equal.
    """
    path, file = Path(workdir).absolute(), located(config_file)
    as_json = lambda config: json.loads(json.dumps(plain(config)))
    bases = {None: (file, as_json(base))}
    bases |= {name: (located(name, beside=file), as_json(config)) for name, config in (others or {}).items()}
    names = [member_name(values) for values in overrides]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise SweepError(f"the sweep has the same member more than once: {', '.join(repeated)}")
    members = tuple(
        Member(name, {k: v for k, v in values.items() if k != CONFIG}, path / name, *bases[values.get(CONFIG)])
        for name, values in zip(names, overrides, strict=True)
    )
    shared = Path(store).absolute() if store else None
    return Sweep(path, file, dict(fixed or {}), bases[None][1], members, search, shared)


def located(config_file: str, *, beside: str = "") -> str:
    """FILE or FILE:ARGUMENT with an absolute path; a relative one starts from the folder of the file `beside`."""
    file, colon, argument = config_file.partition(":")
    folder = Path(beside.partition(":")[0]).parent if beside else Path()
    return f"{os.path.abspath(folder / file)}{colon}{argument}"


def extend(sweep: Sweep, overrides: Mapping[str, Any]) -> tuple[Sweep, Member]:
    """The sweep with one more member, and that member."""
    name = member_name(overrides)
    member = Member(name, dict(overrides), sweep.path / name, sweep.config_file, sweep.base)
    return dataclasses.replace(sweep, members=(*sweep.members, member)), member


def member_name(overrides: Mapping[str, Any]) -> str:
    """The name of a member's folder, "regularizer.cosine_weight=0.1,seed=3"; a function of the overrides alone.

    Tuples are joined by "+", and a config file is named like a module. Characters that are special to a shell or a file
    system become "_", and long names are cut; a digest then keeps such names apart.
    """
    dotted = lambda file: re.sub(r"\.py(:|$)", r"\1", file).replace("/", ".")
    parts = [f"{key}={dotted(value) if key == CONFIG else _shown(value)}" for key, value in overrides.items()]
    exact = ",".join(parts) or "base"
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", exact)
    if name == exact and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(json.dumps(plain(overrides)).encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple) and value:
        return "+".join(map(_shown, value)) + ("+" if len(value) == 1 else "")
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def save(sweep: Sweep) -> None:
    """Write sweep.json."""
    content = {
        "config_file": sweep.config_file,
        "fixed": plain(sweep.fixed),
        "bases": {sweep.config_file: sweep.base} | {m.config_file: m.base for m in sweep.members},
        "members": [
            {"name": m.name, "config_file": m.config_file, "overrides": plain(m.overrides)} for m in sweep.members
        ],
        "search": sweep.search,
        "store": None if sweep.store is None else os.path.relpath(sweep.store, sweep.path),
    }
    write_atomically(sweep.path / DEFINITION, json.dumps(content, indent=2) + "\n")


def load(workdir: str | Path) -> Sweep:
    """The sweep that a folder holds.

    Raises:
      SweepError: it holds no sweep, or sweep.json is damaged.
    """
    path = Path(workdir).absolute()
    try:
        content = Record(path / DEFINITION, "", jsons.read(path / DEFINITION, top=dict, nonfinite=True))
        bases, file = content.child("bases"), records.field(content, "config_file", str)
        members = tuple(_member(path, bases, member) for member in content.children("members"))
        search, store = content.values.get("search"), content.values.get("store")
        return Sweep(
            path,
            file,
            tuples(records.field(content, "fixed", dict)),
            records.field(bases, file, dict),
            members,
            None if search is None else records.field(content, "search", dict),
            None if store is None else Path(os.path.normpath(path / records.field(content, "store", str))),
        )
    except FileNotFoundError as error:
        raise SweepError(f"{path} is not a sweep folder: it has no {DEFINITION}") from error
    except InputError as error:
        raise SweepError(f"{path / DEFINITION} is damaged ({error}); restore it or choose another folder") from error


def _member(path: Path, bases: Record, member: Record) -> Member:
    """A member as stored in sweep.json; its folder must lie directly in the sweep's."""
    name, file = records.field(member, "name", str), records.field(member, "config_file", str)
    inside = paths.inside(path, name, listed=member.file, place=member.place, field="name")
    if (inside.parent, inside.name) != (path, name):
        raise member.error("must be the name of a folder, not a path", "name")
    overrides = records.field(member, "overrides", dict)
    return Member(name, tuples(overrides), inside, file, records.field(bases, file, dict))


# -- what an executor needs of a member -----------------------------------------------------------------------------


def config_of(member: Member) -> FrozenConfigDict:
    """The member's resolved config, as `launch.train` reads it from `command`."""
    config = ConfigDict(tuples(member.base))
    config.update_from_flattened_dict(dict(member.overrides))
    return FrozenConfigDict(config)


def store_path(sweep: Sweep) -> Path:
    """The store that all members share."""
    return sweep.store or sweep.path / "store"


def figures_path(folder: Path, experiment: str) -> Path:
    """Where the members of one experiment in a sweep folder are drawn side by side."""
    return folder / "figures" / experiment


def command(sweep: Sweep, member: Member, given: Sequence[str] = ()) -> list[str]:
    """The command that trains a member by itself, or continues it; run it where the sweep was started.

    Args:
      given: see `Options.flags`.
    """
    overrides = dict(sweep.fixed) | dict(member.overrides)
    return [
        *(sys.executable, "-m", "launch.train", f"--config={member.config_file}", f"--workdir={member.path}"),
        f"--store={store_path(sweep)}",
        *given,
        *(f"--config.{key}={_argument(value)}" for key, value in overrides.items()),
    ]


def _argument(value: Any) -> str:
    """A value as config_flags parses it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def start(member: Member) -> Path:
    """Make the member's folder, remove an earlier error, and return the path of the log to append to."""
    member.path.mkdir(parents=True, exist_ok=True)
    (member.path / ERROR).unlink(missing_ok=True)
    return member.path / LOG


def fail(member: Member, reason: str) -> None:
    """Note in the member's folder that it has failed."""
    member.path.mkdir(parents=True, exist_ok=True)
    write_atomically(member.path / ERROR, reason.rstrip() + "\n")


def status(member: Member) -> Status:
    """The progress of a member; see `Status`."""
    if not member.path.is_dir():
        return Status("waiting")
    step, values = _last_metrics(member.path)
    if (member.path / _RESULT).exists():
        try:
            return Status("done", step, values, load_json(member.path / _RESULT))
        except InputError as error:  # `launch.train` writes it again
            return Status("failed", step, values, error=str(error))
    if (member.path / ERROR).exists():
        return Status("failed", step, values, error=(member.path / ERROR).read_text().strip())
    started = (member.path / "config.json").exists() or (member.path / LOG).exists()
    return Status("started" if started else "waiting", step, values)


def last_lines(log: Path, count: int = 15) -> list[str]:
    """The last lines of a log that are not empty, without colours; of a progress bar the last state."""
    text = _ANSI.sub("", _end(log)) if log.exists() else ""
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _last_metrics(path: Path) -> tuple[int | None, dict[str, float]]:
    """The last step, and the newest value of each metric, of what a run logged last."""
    logs = list(_logs(path))
    if not logs:
        return None, {}
    newest = max(logs, key=lambda log: log.stat().st_mtime_ns)
    lines = _end(newest).split("\n")[:-1]  # what follows the last newline is being written
    values: dict[str, float] = {}
    for line in lines[-20:]:
        if line.startswith("{"):  # the first one may be cut
            with contextlib.suppress(InputError):  # a damaged line is reported when the training resumes
                values |= jsons.parse(line, top=dict)
    step = values.pop("step", None)
    values.pop("time", None)
    return int(step) if isinstance(step, int | float) else None, values


def _logs(path: Path) -> Iterator[Path]:
    """The metrics.jsonl of the stages that a run's plan names."""
    with contextlib.suppress(InputError, KeyError, TypeError):  # no plan yet, or one that `launch.train` will report
        plan = load_json(path / PLAN)
        logs = (path / plan["store"] / key / "metrics.jsonl" for key in plan["stages"] if Path(key).name == key)
        yield from (log for log in logs if log.exists())


def _end(path: Path, size: int = 1 << 16) -> str:
    """The last bytes of a text file."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")


def tuples(value: Any) -> Any:
    """The inverse of `launch.run.plain`: lists become tuples, as a frozen config has them."""
    if isinstance(value, Mapping):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value
