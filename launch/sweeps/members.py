"""The sweep folder: what is swept (sweep.json), and for every member a run directory named by its overrides.

    WORKDIR/sweep.json                              config files, base configs, the members with their overrides
    WORKDIR/regularizer.cosine_weight=0.1,seed=3/   a member: a run directory, with log.txt, and error.txt if it failed

An executor is a module with

    execute(sweep: Sweep, members: Iterable[Member], options: Options) -> None

that trains the given members, which are not done. It calls `start` before a member and `fail` where one ends in an
error, goes on with the others, tells `options.watch` what is running about once a second and `options.ended` what has
ended, and raises `launch.run.Preempted` if it was itself asked to stop. Whether a member is done, its `result.json`
says, nothing else.
"""

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from launch.files import write_atomically
from launch.run import plain

STATES = ("waiting", "started", "failed", "done")
DEFINITION, _LOG, _ERROR, _RESULT = "sweep.json", "log.txt", "error.txt", "result.json"
_LONGEST_NAME = 120
CONFIG = "config"  # among overrides: the config file that the others are of, instead of the sweep's


class SweepError(ValueError):
    """The sweep cannot be defined, or not in this folder; the message says why and what to do."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
      name: of its folder, made of the overrides.
      overrides: {"regularizer.cosine_weight": 0.1}, in what it differs from its base config.
      path: its run directory.
      config_file: of its base config, absolute, FILE or FILE:ARGUMENT; the sweep's unless it names another.
      base: the base config, resolved, as JSON has it.
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
      fixed: overrides that all members share, given on the command line; base configs have them in them.
      base: the base config of members that name none, resolved, as JSON has it.
      members: in the order in which they were defined.
      search: what an adaptive search looks for, or None.
    """

    path: Path
    config_file: str
    fixed: Mapping[str, Any]
    base: Mapping[str, Any] = field(repr=False)
    members: tuple[Member, ...]
    search: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Options:
    """What an executor is told besides the members.

    Attributes:
      processes: how many members at once; 0 leaves it to the executor.
      slurm: settings of the scheduler, {"nodes": "2", "partition": "main"}.
      watch: called about once a second with the names of the members that are running.
      ended: called with every member that has ended, however it did.
      keep_open: file descriptors that processes of members inherit: the folder stays locked until the last has ended.
    """

    processes: int = 0
    slurm: Mapping[str, str] = field(default_factory=dict)
    watch: Callable[[Collection[str]], None] = lambda running: None
    ended: Callable[[Member], None] = lambda member: None
    keep_open: Sequence[int] = ()


@dataclass(frozen=True)
class Status:
    """How far a member is, by its files.

    Attributes:
      state: "waiting" (nothing is there), "started" (running, or stopped on the way), "failed" or "done".
      step: the last that was logged, if any.
      values: the newest value of every metric in the last lines of metrics.jsonl.
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
    base: Mapping[str, Any],
    overrides: Sequence[Mapping[str, Any]],
    others: Mapping[str, Mapping[str, Any]] | None = None,
    fixed: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
) -> Sweep:
    """A sweep of `base` with one member for each dict of flat overrides; nothing is written.

    Args:
      overrides: those with a key `CONFIG` are of that config file instead, which is relative to the folder of
        `config_file`.
      others: the base configs of such files, by what stands under `CONFIG`.

    Raises:
      SweepError: two members are the same.
    """
    path, file = Path(workdir).absolute(), located(config_file)
    as_json = lambda config: json.loads(json.dumps(plain(config)))
    bases = {None: (file, as_json(base))}
    bases |= {name: (located(name, beside=file), as_json(own)) for name, own in (others or {}).items()}
    names = [member_name(o) for o in overrides]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SweepError(f"the sweep has the same member more than once: {', '.join(twice)}")
    own = [{key: value for key, value in o.items() if key != CONFIG} for o in overrides]
    members = tuple(
        Member(name, mine, path / name, *bases[o.get(CONFIG)])
        for name, mine, o in zip(names, own, overrides, strict=True)
    )
    return Sweep(path, file, dict(fixed or {}), bases[None][1], members, search)


def located(config_file: str, *, beside: str = "") -> str:
    """FILE or FILE:ARGUMENT with an absolute path; a relative one starts from the folder of the file `beside`."""
    file, colon, argument = config_file.partition(":")
    folder = Path(beside.partition(":")[0]).parent if beside else Path()
    return f"{(folder / file).absolute()}{colon}{argument}"


def extend(sweep: Sweep, overrides: Mapping[str, Any]) -> tuple[Sweep, Member]:
    """The sweep with one member more."""
    name = member_name(overrides)
    member = Member(name, dict(overrides), sweep.path / name, sweep.config_file, sweep.base)
    return dataclasses.replace(sweep, members=(*sweep.members, member)), member


def member_name(overrides: Mapping[str, Any]) -> str:
    """A folder's name for overrides: "regularizer.cosine_weight=0.1,seed=3", the same wherever it is made.

    Tuples are joined by "+"; a config file is named as if it were imported. Characters that a shell or a file system
    could take amiss become "_", and what is too long is cut; a digest of the whole then keeps two such names apart.
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
    }
    write_atomically(sweep.path / DEFINITION, json.dumps(content, indent=2) + "\n")


def load(workdir: str | Path) -> Sweep:
    """The sweep that a folder holds.

    Raises:
      SweepError: it holds none, or sweep.json is damaged.
    """
    path = Path(workdir).absolute()
    try:
        content = json.loads((path / DEFINITION).read_text())
        bases, file = content["bases"], content["config_file"]
        members = tuple(
            Member(m["name"], _tuples(m["overrides"]), path / m["name"], m["config_file"], bases[m["config_file"]])
            for m in content["members"]
        )
        return Sweep(path, file, _tuples(content["fixed"]), bases[file], members, content["search"])
    except FileNotFoundError as error:
        raise SweepError(f"{path} is no sweep folder: it has no {DEFINITION}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SweepError(f"{path / DEFINITION} is damaged ({error!r}); restore it or take another folder") from error


# -- what an executor needs of a member -----------------------------------------------------------------------------


def config_of(member: Member) -> FrozenConfigDict:
    """The member's resolved config: what `launch.train` makes of `command`."""
    config = ConfigDict(_tuples(member.base))
    config.update_from_flattened_dict(dict(member.overrides))
    return FrozenConfigDict(config)


def command(sweep: Sweep, member: Member) -> list[str]:
    """The command that runs a member by itself, and continues it; to be started where the sweep was."""
    given = dict(sweep.fixed) | dict(member.overrides)
    return [
        *(sys.executable, "-m", "launch.train", f"--config={member.config_file}", f"--workdir={member.path}"),
        *(f"--config.{key}={_argument(value)}" for key, value in given.items()),
    ]


def _argument(value: Any) -> str:
    """A value as config_flags reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def start(member: Member) -> Path:
    """Make the member's folder, forget an earlier error, and give the path of the log to append to."""
    member.path.mkdir(parents=True, exist_ok=True)
    (member.path / _ERROR).unlink(missing_ok=True)
    return member.path / _LOG


def fail(member: Member, reason: str) -> None:
    """Note that a member has failed."""
    member.path.mkdir(parents=True, exist_ok=True)
    write_atomically(member.path / _ERROR, reason.rstrip() + "\n")


def status(member: Member) -> Status:
    """How far a member is; see `Status`."""
    if not member.path.is_dir():
        return Status("waiting")
    step, values = _last_metrics(member.path)
    if (member.path / _RESULT).exists():
        return Status("done", step, values, json.loads((member.path / _RESULT).read_text()))
    if (member.path / _ERROR).exists():
        return Status("failed", step, values, error=(member.path / _ERROR).read_text().strip())
    started = (member.path / "config.json").exists() or (member.path / _LOG).exists()
    return Status("started" if started else "waiting", step, values)


def last_lines(member: Member, count: int = 15, log: str = _LOG) -> list[str]:
    """The last lines of a member's log that are not empty; of a progress bar's states only the last."""
    path = member.path / log
    if not path.exists():
        return []
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in _end(path).replace("\r\n", "\n").split("\n")]
    return [line for line in lines if line][-count:]


def _last_metrics(path: Path) -> tuple[int | None, dict[str, float]]:
    """The last step, and the newest value of each metric, in the run's metrics or those of the newest run in it."""
    found = [*path.glob("metrics.jsonl"), *path.glob("*/metrics.jsonl"), *path.glob("*/*/metrics.jsonl")]
    if not found:
        return None, {}
    newest = max(found, key=lambda p: p.stat().st_mtime_ns)
    lines = _end(newest).split("\n")[:-1]  # what follows the last newline is being written
    values: dict[str, float] = {}
    for line in lines[-20:]:
        if line.startswith("{"):  # the first one may be cut
            values |= json.loads(line)
    step = values.pop("step", None)
    values.pop("time", None)
    return step, values


def _end(path: Path, size: int = 1 << 16) -> str:
    """The last bytes of a text file."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")


def _tuples(value: Any) -> Any:
    """The other way: lists become tuples, as a frozen config has them."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
