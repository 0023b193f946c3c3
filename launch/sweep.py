"""Train many runs of one config: `python -m launch.sweep --config=FILE --grid "a.b=0.01,0.1,1;seed=0:5" --workdir=DIR`.

The members come from the config's `sweep()`, a list of flat overrides, and from --grid (see `launch.sweeps.space`);
of both, every combination. An override `config` names another config file, beside the first, that the others are of:
--grid "config=cifar10_lenet.py,cifar10_resnet18.py; seed=0:3". `--config.a.b=v` holds for all members. Each is a run
directory in DIR, named by its overrides, that `launch.train` could have made.

The same command on the same folder continues: finished members are left alone, failed ones tried again. The exit status
is 0 if every member is done.

    --executor=local    processes on this machine, each with devices and cores of its own (default)
    --executor=vmap     members that differ only in numbers as one program
    --executor=slurm    jobs of a cluster, set by --slurm=nodes=2,partition=gpu
    --search=optuna --trials=50 --maximize=KEY    members proposed by the results of others, over the same space
    --dry_run           list the members, start nothing
"""

import functools
import importlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from launch import train
from launch.run import Preempted
from launch.sweeps import folder, search, slurm, space
from launch.sweeps.board import Board, summary
from launch.sweeps.members import CONFIG, Member, Options, Sweep, SweepError, define, located, status

EXECUTORS = {"local": "launch.sweeps.local", "vmap": "launch.sweeps.stacked", "slurm": "launch.sweeps.slurm"}

_EXECUTOR = flags.DEFINE_enum("executor", "local", list(EXECUTORS), "what trains the members")
_GRID = flags.DEFINE_string("grid", "", "values of fields: 'a.b=0.01,0.1;seed=0:5'; see launch/sweeps/space.py")
_OWN = flags.DEFINE_bool("config_sweep", True, "take up the config's sweep(), if it has one")
_SAMPLE_SEED = flags.DEFINE_integer("sample_seed", 0, "of the grid's draws, and of a search")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "list the members, one a line, and start nothing")
_PROCESSES = flags.DEFINE_integer(
    "processes", 0, "members at once, with vmap in a stack; 0: one a device or core, with vmap all", lower_bound=0
)
_SLURM = flags.DEFINE_list("slurm", [], "settings of --executor=slurm: nodes=2,tasks_per_node=1,partition=main")
_SEARCH = flags.DEFINE_enum("search", None, search.METHODS, "propose members adaptively")
_TRIALS = flags.DEFINE_integer("trials", 0, "of a search: how many members it proposes in all", lower_bound=0)
_MINIMIZE = flags.DEFINE_string("minimize", None, "of a search: the key of result.json that should be small")
_MAXIMIZE = flags.DEFINE_string("maximize", None, "of a search: the key of result.json that should be large")


def listed(config_file: str) -> list[dict[str, Any]]:
    """What a config file's `sweep()` gives: a list of flat overrides; [] if it has none.

    Args:
      config_file: FILE or FILE:ARGUMENT, which `sweep` is then given, as `get_config` is.

    Raises:
      SweepError: it gives something else.
      train.ConfigFileError: it ends in an error.
    """
    found = train.called(config_file, "sweep")
    if found is None:
        return []
    found = list(found) if isinstance(found, Iterable) else found
    if not isinstance(found, list) or not found or not all(isinstance(overrides, Mapping) for overrides in found):
        raise SweepError(f"{config_file}: sweep() gives {found!r}, not a list of flat overrides such as {{'a.b': 0.1}}")
    return [{key: str(value) if key == CONFIG else value for key, value in o.items()} for o in found]


def other(config_file: str, fixed: Mapping[str, Any]) -> ConfigDict:
    """The base config of members that name a config file of their own.

    Args:
      config_file: FILE or FILE:ARGUMENT.
      fixed: what is set for all members.

    Raises:
      SweepError: there is no such file, it has no get_config, or a fixed field is not in it.
      train.ConfigFileError: it ends in an error.
    """
    path = config_file.partition(":")[0]
    if not os.path.isfile(path):
        raise SweepError(f"there is no config file {path}")
    config = train.called(config_file, "get_config")
    if not isinstance(config, ConfigDict):
        raise SweepError(f"{path} has no get_config() that gives a ConfigDict")
    config.update_from_flattened_dict(space.check(fixed, space.fields(config), f"the command line, for {path}"))
    return config


def plan() -> tuple[Sweep, dict[str, search.Dimension]]:
    """The sweep that the flags ask for, and the space of its search; nothing is written.

    Raises:
      SweepError: there is nothing to sweep, or something is wrong with it.
      train.ConfigFileError: a config file ends in an error.
    """
    holder, config = flags.FLAGS["config"], flags.FLAGS.config
    file, fixed = config_flags.get_config_filename(holder), config_flags.get_override_values(holder)
    own = listed(file) if _OWN.value else []
    if not own and not _GRID.value:
        raise SweepError(f"nothing is swept: give --grid, or write a sweep() into {file}")
    names = dict.fromkeys([*(o[CONFIG] for o in own if CONFIG in o), *space.values_of(CONFIG, _GRID.value)])
    if names and _SEARCH.value:
        raise SweepError(f"--search is over the fields of one config, this sweep names {', '.join(names)}")
    others = {name: other(located(name, beside=file), fixed) for name in names}
    known = functools.reduce(lambda a, b: b | a, map(space.fields, (config, *others.values())))
    grid = space.parse(_GRID.value, known | ({CONFIG: space.Field(str, "")} if names else {})) if _GRID.value else None
    make = functools.partial(define, flags.FLAGS.workdir, config_file=file, base=config, fixed=fixed)
    check = functools.partial(_checked, known={"": config, **others}, file=file)
    own = check(own, "sweep(), member")
    if not _SEARCH.value:
        swept = space.expand(grid, _SAMPLE_SEED.value) if grid else []
        return make(overrides=check(space.product(*filter(None, [own, swept])), "member"), others=others), {}
    dimensions = search.dimensions(grid, own)
    wanted = {
        "method": _SEARCH.value,
        "objective": _MAXIMIZE.value or _MINIMIZE.value,
        "direction": "maximize" if _MAXIMIZE.value else "minimize",
        "seed": _SAMPLE_SEED.value,
        "space": search.described(dimensions),
    }
    return make(overrides=[], search=wanted), dimensions


def _checked(
    overrides: Iterable[Mapping[str, Any]], what: str, known: Mapping[str, ConfigDict], file: str
) -> list[dict[str, Any]]:
    """The overrides with values of the types of their own configs' fields.

    Args:
      what: they are, for errors.
      known: the base configs, by what stands under `CONFIG`; "" where nothing does.
      file: of the last.
    """
    found = []
    for index, values in enumerate(overrides):
        name = values.get(CONFIG, "") if len(known) > 1 else ""  # where there is one config, an unknown field like any
        own = {key: value for key, value in values.items() if not (name and key == CONFIG)}
        own = space.check(own, space.fields(known[name]), f"{name or file}: {what} {index}")
        found.append(({CONFIG: name} if name else {}) | own)
    return found


def check_flags() -> None:
    """Refuse flags that do not belong together.

    Raises:
      SweepError: naming them.
    """
    searching = {"trials": _TRIALS.value, "minimize": _MINIMIZE.value, "maximize": _MAXIMIZE.value}
    given = [f"--{name}" for name, value in searching.items() if value]
    if _SEARCH.value:
        if "--trials" not in given or len(given) != 2:
            raise SweepError("--search wants --trials=NUMBER and one of --minimize=KEY, --maximize=KEY")
        if _EXECUTOR.value != "local":
            raise SweepError(f"--search starts members one by one, --executor={_EXECUTOR.value} all at once; use local")
    elif given:
        raise SweepError(f"{', '.join(given)}: belongs to --search={search.METHODS[0]}")
    if _SLURM.value and _EXECUTOR.value != "slurm":
        raise SweepError(f"--slurm belongs to --executor=slurm, not to {_EXECUTOR.value}")
    settings(_SLURM.value)
    if flags.FLAGS.distributed or flags.FLAGS.coordinator or flags.FLAGS.num_processes is not None:
        raise SweepError("a sweep is started by one process; --coordinator, --distributed … are for launch.train")


def settings(given: Iterable[str]) -> dict[str, str]:
    """["nodes=2"] -> {"nodes": "2"}."""
    wrong = [part for part in given if "=" not in part]
    if wrong:
        hint = """; a value with a comma is quoted: --slurm='"nodelist=a,b"'"""
        raise SweepError(f"--slurm wants name=value,name=value; got {', '.join(wrong)}{hint}")
    return {name.strip(): value.strip() for name, value in (part.split("=", 1) for part in given)}


def show(sweep: Sweep, dimensions: Mapping[str, search.Dimension]) -> None:
    """What would run, a line for each member, or for each dimension of a search.

    Raises:
      SweepError: the folder is not this sweep's.
    """
    if sweep.path.exists():
        folder.checked(sweep)
    for member in sweep.members:
        state = status(member).state
        print(member.name if state == "waiting" else f"{member.name}  ({state})")
    for name, line in search.described(dimensions).items():
        print(f"{name}: {line}")


def execute(sweep: Sweep, dimensions: Mapping[str, search.Dimension]) -> Counter:
    """Train what is not done; how many members are then in each state.

    Raises:
      SweepError: the folder is not this sweep's, or the executor cannot do it.
      Preempted: it was asked to stop.
    """
    executor = importlib.import_module(EXECUTORS[_EXECUTOR.value])
    with folder.locked(sweep.path) as lock:
        sweep = folder.claim(sweep)
        if _EXECUTOR.value != "slurm" and (jobs := slurm.queued(sweep)):
            how = f"`scancel {' '.join(jobs)}`, or --executor=slurm to watch them"
            raise SweepError(f"the scheduler still has jobs of {sweep.path}: {how}")
        options = Options(_PROCESSES.value, settings(_SLURM.value), keep_open=(lock,))
        with Board(sweep.members) as board:
            options = replace(options, watch=board.watch)
            if sweep.search:
                found = search.Search(
                    sweep, dimensions, _TRIALS.value, *(sweep.search[k] for k in ("objective", "direction", "seed"))
                )
                executor.execute(sweep, _shown(found, board), replace(options, ended=found.ended))
            else:
                waiting = [member for member in sweep.members if status(member).state != "done"]
                if waiting:
                    executor.execute(sweep, waiting, options)
        counts = summary(found.sweep.members if sweep.search else sweep.members)
        if sweep.search and (best := found.best()):
            print(f"\nbest: {best[0].name}  {found.objective} {best[1]:.6g}")
        return counts


def _shown(members: Iterable[Member], board: Board) -> Iterable[Member]:
    """Members that the board takes up as they come."""
    for member in members:
        board.add(member)
        yield member


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"not understood: {' '.join(argv[1:])}")
    try:
        check_flags()
        sweep, dimensions = plan()
        if _DRY_RUN.value:
            show(sweep, dimensions)
            return
        counts = execute(sweep, dimensions)
    except Preempted as stop:
        line = shlex.join([sys.executable, "-m", "launch.sweep", *sys.argv[1:]])
        sys.exit(f"{stop}; go on with the same command:\n  {line}")
    except (SweepError, train.ConfigFileError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:  # the disk is full, say
        sys.exit(f"{error.filename or flags.FLAGS.workdir}: {error.strerror or error}; the same command goes on")
    open_ended = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "done")
    print(f"\n{counts['done']} done" + (f", {open_ended}; the same command tries them again" if open_ended else ""))
    sys.exit(1 if open_ended else 0)


if __name__ == "__main__":
    app.run(main, flags_parser=train.parse)
