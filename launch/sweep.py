"""Train many runs: `python -m launch.sweep --config=FILE --grid "a.b=0.01,0.1,1;seed=0:5" --workdir=DIR`.

The members are all combinations of the config file's `sweep()` and --grid (see `launch.sweeps.space`); `--config.a.b=v`
holds for all of them. Each is a run directory in DIR, named by its overrides, as `launch.train` makes it. They share
one store, so what several members are made from is made once; with --store=DIR also with other sweeps.

The same command on the same folder continues: finished members stay as they are, failed ones are tried again. The exit
status is 0 if every member is done; see `launch.processes.commands` for others.

    --executor=local    processes on this machine, each with its own devices and cores (default)
    --executor=vmap     members that differ only in numbers as one program
    --executor=slurm    jobs of a cluster, set by --slurm=nodes=2,partition=gpu
    --search=optuna --trials=50 --maximize=KEY    members proposed by the results of others, over the same space
    --dry_run           list the members, start nothing

A study, several methods with several seeds, is a config file whose `sweep()` returns or yields flat overrides, one dict
for each member:

    ABLATIONS = {}, {"projector.gap_rows": 0}, {"words.clip_filter": False}

    def sweep():
        for ablation in ABLATIONS:
            for seed in range(5):
                yield {"seed": seed, "data.seed": seed, **ablation}

Members that share stages need no special order: whatever the executor, the classifier of a seed is trained once, and a
member that needs it meanwhile waits. With seeds in the inner loop, members that start together rarely wait.
`python -m launch.report DIR --tables` prints mean ± standard deviation over the seeds.

An override `config` names another config file, relative to the first, whose config the member's other overrides change:
`{"config": "cifar10_lenet.py"}` in a sweep(), or --grid "config=cifar10_lenet.py,cifar10_resnet18.py; seed=0:3". A file
with its own sweep() stands for all members of that sweep or, where both set a field, for those with the same value:
--grid "config=scenes_study.py; seed=0".
"""

from launch.processes import interrupts

if __name__ == "__main__":
    interrupts.listen()

import functools
import importlib
import itertools
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from launch import train
from launch.processes import commands
from launch.processes.stop import Preempted
from launch.reports.runs import FINISHED, UNFINISHED, RunRecord, Study
from launch.reports.settings import group
from launch.run import flatten, plain
from launch.sweeps import folder, search, slurm, space
from launch.sweeps.board import Board, summary
from launch.sweeps.members import (
    CONFIG,
    Executor,
    Member,
    Options,
    Sweep,
    SweepError,
    config_of,
    define,
    figures_path,
    located,
    status,
    store_path,
)

_SIDE_BY_SIDE = 12  # settings that one figure holds
EXECUTORS = {"local": "launch.sweeps.local", "vmap": "launch.sweeps.stacked", "slurm": "launch.sweeps.slurm"}

_EXECUTOR = flags.DEFINE_enum("executor", "local", list(EXECUTORS), "what trains the members")
_GRID = flags.DEFINE_string("grid", "", "values of fields: 'a.b=0.01,0.1;seed=0:5'; see launch/sweeps/space.py")
_OWN = flags.DEFINE_bool("config_sweep", True, "use the sweep() of config files that have one")
_SAMPLE_SEED = flags.DEFINE_integer("sample_seed", 0, "seed of the grid's draws and of a search")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "list the members, one per line, and start nothing")
_PROCESSES = flags.DEFINE_integer(
    "processes", 0, "members at once (vmap: in one program); 0: one per device or core (vmap: all)", lower_bound=0
)
_SLURM = flags.DEFINE_list("slurm", [], "settings of --executor=slurm: nodes=2,tasks_per_node=1,partition=main")
_SEARCH = flags.DEFINE_enum("search", None, search.METHODS, "propose members adaptively")
_TRIALS = flags.DEFINE_integer("trials", 0, "with --search: how many members to propose in all", lower_bound=0)
_MINIMIZE = flags.DEFINE_string("minimize", None, "with --search: the key of result.json to minimize")
_MAXIMIZE = flags.DEFINE_string("maximize", None, "with --search: the key of result.json to maximize")


def listed(config_file: str) -> list[dict[str, Any]]:
    """The flat overrides that a config file's `sweep()` returns or yields; [] if it has none.

    Args:
      config_file: FILE or FILE:ARGUMENT; the argument is passed to `sweep` as it is to `get_config`.

    Raises:
      SweepError: it returns something else.
      train.ConfigFileError: it raises an error.
    """
    result = train.called(config_file, "sweep")
    if result is None:
        return []
    members = list(result) if isinstance(result, Iterable) else []
    if not members or not all(isinstance(overrides, Mapping) for overrides in members):
        shown = members or result
        raise SweepError(f"{config_file}: sweep() returned {shown!r}, not a list of flat overrides like {{'a.b': 0.1}}")
    return [{key: str(value) if key == CONFIG else value for key, value in o.items()} for o in members]


def expanded(overrides: Mapping[str, Any], config_file: str, within: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The members that overrides stand for: several, if they name a config file with its own sweep().

    Args:
      overrides: flat; a config file among them is relative to `config_file`. A field that the other file's sweep() sets
        as well selects the members with this value.
      config_file: FILE or FILE:ARGUMENT.
      within: the files that led here.

    Returns:
      Overrides whose config files, if any, are relative to `config_file`, too.

    Raises:
      SweepError: there is no such file, it names itself, or none of its members has the selected values.
      train.ConfigFileError: a file raises an error.
    """
    name = overrides.get(CONFIG)
    if name is None:
        return [dict(overrides)]
    file = located(name, beside=config_file)
    if not os.path.isfile(file.partition(":")[0]):
        raise SweepError(f"no such config file: {file.partition(':')[0]}")
    if file in within:
        raise SweepError(f"{file}: its sweep() leads back to itself, through {' -> '.join((*within, file))}")
    rest = {key: value for key, value in overrides.items() if key != CONFIG}
    inner = [member for o in listed(file) for member in expanded(o, file, (*within, file))]
    if not inner:
        return [{CONFIG: name} | rest]
    selected = [member for member in inner if all(plain(member.get(k, v)) == plain(v) for k, v in rest.items())]
    if not selected:
        asked = ", ".join(f"{key}={value}" for key, value in rest.items())
        raise SweepError(f"{name}: no member of its sweep() has {asked}; --noconfig_sweep ignores the sweep()")
    file_of = lambda member: beside(member[CONFIG], name) if CONFIG in member else name
    return [{CONFIG: file_of(m)} | {k: v for k, v in (m | rest).items() if k != CONFIG} for m in selected]


def beside(config_file: str, other: str) -> str:
    """The path of a file that is given relative to the folder of another: ("b.py", "x/a.py") -> "x/b.py"."""
    file, colon, argument = config_file.partition(":")
    return os.path.normpath(os.path.join(os.path.dirname(other.partition(":")[0]), file)) + colon + argument


def other(config_file: str, fixed: Mapping[str, Any]) -> ConfigDict:
    """The base config of members that name their own config file.

    Args:
      config_file: FILE or FILE:ARGUMENT.
      fixed: overrides for all members.

    Raises:
      SweepError: there is no such file, it has no get_config, or it lacks a fixed field.
      train.ConfigFileError: it raises an error.
    """
    path = config_file.partition(":")[0]
    if not os.path.isfile(path):
        raise SweepError(f"no such config file: {path}")
    config = train.called(config_file, "get_config")
    if not isinstance(config, ConfigDict):
        raise SweepError(f"{path} has no get_config() that returns a ConfigDict")
    config.update_from_flattened_dict(space.check(fixed, space.fields(config), f"the command line, for {path}"))
    return config


def from_flags() -> tuple[Sweep, dict[str, search.Dimension]]:
    """The sweep that the flags define, and the space of its search; nothing is written.

    Raises:
      SweepError: there is nothing to sweep, or something is wrong with it.
      train.ConfigFileError: a config file raises an error.
    """
    holder, config = flags.FLAGS["config"], flags.FLAGS.config
    file, fixed = config_flags.get_config_filename(holder), config_flags.get_override_values(holder)
    expand = functools.partial(expanded, config_file=file) if _OWN.value else lambda overrides: [dict(overrides)]
    own = [member for overrides in listed(file) for member in expand(overrides)] if _OWN.value else []
    if not own and not _GRID.value:
        raise SweepError(f"nothing is swept: give --grid, or write a sweep() into {file}")
    in_grid = {name: expand({CONFIG: name}) for name in space.values_of(CONFIG, _GRID.value)}
    names = dict.fromkeys(member[CONFIG] for member in itertools.chain(own, *in_grid.values()) if CONFIG in member)
    if names and _SEARCH.value:
        raise SweepError(f"--search is over the fields of one config; this sweep names {', '.join(names)}")
    others = {name: other(located(name, beside=file), fixed) for name in (*names, *in_grid)}
    known = functools.reduce(lambda a, b: b | a, map(space.fields, (config, *others.values())))
    known |= {CONFIG: space.ConfigField(str, "")} if others else {}
    grid = space.parse(_GRID.value, known) if _GRID.value else None
    make = functools.partial(
        define, flags.FLAGS.workdir, config_file=file, base=config, fixed=fixed, store=flags.FLAGS.store
    )
    check = functools.partial(_checked, known={"": config, **others}, file=file)
    own = check(own, "sweep(), member")
    if not _SEARCH.value:
        swept = [m for values in (space.expand(grid, _SAMPLE_SEED.value) if grid else ()) for m in expand(values)]
        overrides = check(space.product(*filter(None, [own, swept])), "member")
        return make(overrides=overrides, others={name: others[name] for name in names}), {}
    dimensions = search.dimensions(grid, own)
    objective = _MAXIMIZE.value or _MINIMIZE.value or ""
    _check_objective(objective, config.experiment)
    question = {
        "method": _SEARCH.value,
        "objective": objective,
        "direction": "maximize" if _MAXIMIZE.value else "minimize",
        "seed": _SAMPLE_SEED.value,
        "space": search.described(dimensions),
    }
    return make(overrides=[], search=question), dimensions


def _checked(
    overrides: Iterable[Mapping[str, Any]], what: str, known: Mapping[str, ConfigDict], file: str
) -> list[dict[str, Any]]:
    """The overrides, with values converted to the types of the fields.

    Args:
      overrides: of each member.
      what: "member", for errors.
      known: the base configs, by the value under `CONFIG`; "" for members without.
      file: of the config of members without.
    """
    checked, fields = [], {name: space.fields(config) for name, config in known.items()}
    for index, values in enumerate(overrides):
        name = values.get(CONFIG, "") if len(known) > 1 else ""  # with one config it is an unknown field like any other
        rest = {key: value for key, value in values.items() if not (name and key == CONFIG)}
        rest = space.check(rest, fields[name], f"{name or file}: {what} {index}")
        checked.append(({CONFIG: name} if name else {}) | rest)
    return checked


def _check_objective(objective: str, experiment: str) -> None:
    """Raise SweepError if an experiment declares its results, but not the objective of the search."""
    describe = getattr(train.module_of(experiment), "describe", None)
    if callable(describe) and describe(objective) is None:
        raise SweepError(
            f"{experiment} declares no result {objective!r}; see `describe` there, or the result.json of a finished run"
        )


def check_flags() -> None:
    """Validate combinations of flags.

    Raises:
      SweepError: flags that contradict each other, by name.
    """
    searching = {"trials": _TRIALS.value, "minimize": _MINIMIZE.value, "maximize": _MAXIMIZE.value}
    given = [f"--{name}" for name, value in searching.items() if value]
    if _SEARCH.value:
        if "--trials" not in given or len(given) != 2:
            raise SweepError("--search needs --trials=NUMBER and one of --minimize=KEY, --maximize=KEY")
        if _EXECUTOR.value != "local":
            raise SweepError(f"--search starts members one by one, --executor={_EXECUTOR.value} all at once; use local")
    elif given:
        raise SweepError(f"{', '.join(given)}: belongs to --search={search.METHODS[0]}")
    if _SLURM.value and _EXECUTOR.value != "slurm":
        raise SweepError(f"--slurm belongs to --executor=slurm, not to {_EXECUTOR.value}")
    settings(_SLURM.value)
    if flags.FLAGS.distributed or flags.FLAGS.coordinator or flags.FLAGS.num_processes is not None:
        raise SweepError("a sweep is started by one process; --coordinator, --distributed … are for launch.train")
    if flags.FLAGS.profile is not None:
        raise SweepError("--profile traces one run: give it to launch.train with a member's config")


def settings(parts: Iterable[str]) -> dict[str, str]:
    """["nodes=2"] -> {"nodes": "2"}."""
    wrong = [part for part in parts if "=" not in part]
    if wrong:
        hint = """; a value with a comma is quoted: --slurm='"nodelist=a,b"'"""
        raise SweepError(f"--slurm needs name=value,name=value; got {', '.join(wrong)}{hint}")
    return {name.strip(): value.strip() for name, value in (part.split("=", 1) for part in parts)}


def show(sweep: Sweep, dimensions: Mapping[str, search.Dimension]) -> None:
    """Print what would run: a line per member, or per dimension of a search.

    Raises:
      SweepError: the folder belongs to another sweep.
    """
    if sweep.path.exists():
        folder.checked(sweep)
    for member in sweep.members:
        state = status(member).state
        print(member.name if state == "waiting" else f"{member.name}  ({state})")
    for name, line in search.described(dimensions).items():
        print(f"{name}: {line}")


def execute(sweep: Sweep, dimensions: Mapping[str, search.Dimension]) -> Counter:
    """Train what is not done; returns how many members are then in each state.

    Raises:
      SweepError: the folder belongs to another sweep, or the executor cannot train these members.
      Preempted: the sweep was asked to stop.
    """
    executor = cast(Executor, importlib.import_module(EXECUTORS[_EXECUTOR.value]))
    with folder.locked(sweep.path) as lock:
        sweep = folder.claim(sweep)
        if _EXECUTOR.value != "slurm" and (jobs := slurm.queued(sweep)):
            how = f"`scancel {' '.join(jobs)}`, or --executor=slurm to watch them"
            raise SweepError(f"the scheduler still has jobs of {sweep.path}: {how}")
        options = Options(_PROCESSES.value, settings(_SLURM.value), train.compiler_flags(), keep_open=(lock,))
        proposals = _search(sweep, dimensions) if sweep.search else None
        if _EXECUTOR.value == "vmap":  # members train in this process
            train.set_up_compiler(store_path(sweep))
        with Board(sweep.members) as board:
            options = replace(options, watch=board.watch)
            if proposals is not None:
                executor.execute(sweep, _shown(proposals, board), replace(options, ended=proposals.ended))
            elif waiting := [member for member in sweep.members if status(member).state != "done"]:
                executor.execute(sweep, waiting, options)
        sweep = proposals.sweep if proposals else sweep
        compare(sweep)
        counts = summary(sweep.members)
        if proposals and (best := proposals.best()):
            print(f"\nbest: {best[0].name}  {proposals.objective} {best[1]:.6g}")
        return counts


def compare(sweep: Sweep) -> None:
    """Let experiments that have a `compare` draw their members side by side, once all of them are done."""
    by_experiment: dict[str, list[RunRecord]] = {}
    for member in sweep.members:
        state = FINISHED if status(member).state == "done" else UNFINISHED
        config = flatten(config_of(member))
        run = RunRecord(member.name, member.path, state, config, {}, overrides=member.overrides)
        by_experiment.setdefault(run.experiment, []).append(run)
    for experiment, runs in by_experiment.items():
        draw = getattr(train.module_of(experiment), "compare", None)
        if draw is None or len(runs) < 2:
            continue
        keys = dict.fromkeys(key for run in runs for key in run.overrides or {})
        groups = group(Study("", experiment, None, tuple(runs), tuple(keys))).settings
        left = [run.name for run in runs if run.status != FINISHED]
        if left or len(groups) > _SIDE_BY_SIDE:
            why = f"not done: {', '.join(left)}" if left else f"{len(groups)} settings, at most {_SIDE_BY_SIDE} fit"
            logging.info("%s: members are not drawn side by side; %s", experiment, why)
            continue
        folder = figures_path(sweep.path, experiment)
        try:
            draw(folder, [(setting.label, run.path) for setting in groups for run in setting.members])
        except (OSError, ValueError) as error:  # the results stand without figures
            logging.warning("%s: members cannot be drawn side by side: %s", experiment, error)
        else:
            logging.info("members side by side: %s", ", ".join(map(str, sorted(folder.rglob("*.png")))))


def _search(sweep: Sweep, dimensions: Mapping[str, search.Dimension]) -> search.Search:
    settings = sweep.search or {}
    return search.Search(
        sweep, dimensions, _TRIALS.value, settings["objective"], settings["direction"], settings["seed"]
    )


def _shown(members: Iterable[Member], board: Board) -> Iterable[Member]:
    """The members, each shown on the board as soon as it is proposed."""
    for member in members:
        board.add(member)
        yield member


@commands.ending()
def main(argv: list[str]) -> None:
    train.check_understood(argv)
    try:
        if interrupts.received:
            raise Preempted("stopped before it began", interrupts.received[0])
        check_flags()
        sweep, dimensions = from_flags()
        if _DRY_RUN.value:
            show(sweep, dimensions)
            return
        counts = execute(sweep, dimensions)
    except Preempted as stop:
        line = shlex.join([sys.executable, "-m", "launch.sweep", *sys.argv[1:]])
        status = 128 + signal.SIGINT if stop.number == signal.SIGINT else commands.AGAIN
        raise commands.leave(f"{stop}; continue with the same command:\n  {line}", status) from stop
    open_ended = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "done")
    print(f"\n{counts['done']} done" + (f", {open_ended}; the same command tries them again" if open_ended else ""))
    sys.exit(1 if open_ended else 0)


if __name__ == "__main__":
    app.run(main, flags_parser=train.parse)
