"""Run one experiment: `python -m launch.train --config=configs/robustgrad/X.py --workdir=DIR [--config.a.b=v …]`.

The same command on the same folder continues a run that was stopped or killed; a finished one prints its result.
"""

from launch.processes import interrupts

if __name__ == "__main__":
    interrupts.listen()

import difflib
import importlib.util
import logging as python_logging
import os
import pkgutil
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from launch.data.folder import cache_folder
from launch.processes import commands, compiling, hosts
from launch.processes.profiling import Profile
from launch.processes.stop import Preempted
from launch.reading import InputError, paths
from launch.reports import formats, tables
from launch.run import Run, flatten
from launch.stages import Stage, walk
from launch.store import Store
from launch.training import sharding

_CONFIG = config_flags.DEFINE_config_file("config", None, "the run's config file", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run directory: config, metrics, checkpoints, result", required=True
)
_STORE = flags.DEFINE_string(
    "store", "", "folder for the results of stages, which runs may share; default: WORKDIR/store"
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if no scheduler provides it")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "number of processes, with --coordinator")
_PROCESS = flags.DEFINE_integer("process_id", None, "index of this process, from 0, with --coordinator")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "let JAX find the other processes, as on a Cloud TPU slice")
_STUCK_AFTER = flags.DEFINE_float(
    "stuck_after",
    hosts.STUCK_AFTER,
    "seconds without progress after which one of several processes counts as stuck and the run ends; 0: never",
    lower_bound=0,
)
_EFFORT = flags.DEFINE_float(
    "effort", compiling.EFFORT, "XLA's on accelerators: -1 compiles fast, 1 runs fast", lower_bound=-1, upper_bound=1
)
_COMPILED = flags.DEFINE_string(
    "compilation_cache",
    None,
    'folder for compiled programs, which later processes take; "" for none; default: $JAX_COMPILATION_CACHE_DIR, '
    "STORE/.compiled where --store is given, else ~/.cache/alignax/compiled",
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "A:B: write a trace of steps A to B of every training to WORKDIR/profile, for xprof or TensorBoard"
)
flags.mark_flag_as_required("config")


def module_of(experiment: str) -> ModuleType:
    """An experiment's module, by its dotted name.

    It offers `plan(config) -> stage`; possibly `leave(folder, root, store)`, which writes files for the user into the
    run directory, `describe(key)`, the meaning of its results (`launch.reports.metrics`), and `compare(folder,
    members)`, which draws (title, run directory) of a sweep's members side by side; seeds of a setting share a title.
    `MOVED` may name fields that earlier versions had, or sections of them, and what takes their place.

    Raises:
      ValueError: there is no such module, or it has no `plan`.
    """
    try:
        module = importlib.import_module(experiment)
    except ModuleNotFoundError as error:
        if error.name and not experiment.startswith(error.name):
            raise  # the experiment is there; something it needs is not
        near = f"; {', '.join(similar)} exists" if (similar := _experiments(experiment.partition(".")[0])) else ""
        raise ValueError(
            f"config.experiment={experiment!r}: no such module{near}; it is a dotted name such as "
            "'robustgrad_jax.experiment'"
        ) from error
    if not callable(getattr(module, "plan", None)):
        raise ValueError(f"config.experiment={experiment!r}: the module has no function plan(config)")
    return module


def _experiments(package: str) -> list[str]:
    """The modules called "experiment" of an installed package: where a moved one may be."""
    try:
        paths = importlib.import_module(package).__path__
    except (ImportError, AttributeError):
        return []
    modules = [module.name for module in pkgutil.walk_packages(paths, f"{package}.", onerror=lambda name: None)]
    return [name for name in modules if name.endswith(".experiment")]


def moved(experiment: str, keys: Iterable[str]) -> list[str]:
    """A line for every config key that an experiment no longer has, with what takes its place."""
    try:
        known = getattr(module_of(experiment), "MOVED", {})
    except ValueError:  # `execute` says that there is no such experiment
        return []
    places = ((key, place) for key in keys for old, place in known.items() if f"{key}.".startswith(f"{old}."))
    return [f"config.{key} is gone; {place}" for key, place in places]


def planned(config) -> tuple[ModuleType, Stage]:
    """The experiment of a config, and its plan.

    Raises:
      ValueError: there is no such experiment, or a setting cannot be used.
    """
    experiment = module_of(config.experiment)
    if gone := moved(config.experiment, flatten(config)):
        raise ValueError(gone[0])
    return experiment, experiment.plan(config)


def execute(
    config: Any,
    workdir: str,
    *,
    store: str = "",
    advance: Callable[[], None] = lambda: None,
    profile: Profile | None = None,
) -> dict[str, float]:
    """Plan a config and make its root stage in a run directory, or give the result of one that is finished.

    Args:
      store: the folder of the store; "" for the one that the run directory used before, or its own `store`.
      advance: called whenever a run of several processes reaches a point where it could stop.
      profile: steps to trace in its trainings.

    Raises:
      Preempted: the run was asked to stop and has saved what it had.
      ValueError: a setting cannot be used; raised before the folder is touched.
    """
    experiment, root = planned(config)
    with compiling.products(compiling.precision_of(config)):
        before = Run(Path(workdir))  # not opened: what is refused must not touch the folder
        kept = Store(before.store_path(store))
        kept.profile = profile
        if not before.is_finished(config):
            preflight(root, kept)
        run = Run.open(workdir, config)
        run.stop.advance, kept.stop = advance, run.stop
        try:
            return _finished(experiment, root, run, kept)
        finally:
            run.close()


def _finished(experiment: ModuleType, root: Stage, run: Run, store: Store) -> dict[str, float]:
    """The result of an opened run: the one that it has, or made."""
    with run.stop.listening():
        result = run.result()
        if result is not None and not run.is_of(root):
            logging.info("%s: the result belongs to other files; moving it to history/", run.path)
            if run.writes:
                run.put_aside()
            result = None
        if result is not None and run.is_kept(result, root, store):
            logging.info("%s is finished", run.path)
            return result
        return make(experiment, root, run, store)


def preflight(root: Stage, store: Store, *, stacked: bool = False, read: Collection[str] = ()) -> None:
    """Refuse what would end a run later, as far as files and devices show it; see `Stage.preflight`.

    Args:
      stacked: stages that can be made together with those of other members will be.
      read: `stack_key`s of what members before have read with numbers, such as seeds, of their own.
    """
    for stage in walk(root, there=lambda stage: stage.KEPT and store.has(stage)):
        if stage.stack_key not in read:
            stage.preflight(store)
        if not (stacked and stage.STACKS):
            stage.check_devices()


def make(experiment: ModuleType, root: Stage, run: Run, store: Store) -> dict[str, float]:
    """The result of a plan in an open run directory: makes what the store lacks, leaves the files for the user.

    Args:
      experiment: the module that planned; its `leave(folder, root, store)`, if there is one, writes figures, trained
        networks and the like into the run directory.
      root: its plan: a stage that gives flat metrics by name.
      run: the run directory.
      store: may be shared with other runs.
    """
    before = set(store.used)
    if run.writes:
        run.note_plan(root, store)
    result = store.get(root)
    if run.writes:
        getattr(experiment, "leave", lambda *_: None)(run.path, root, store.reader())
    used = [str(use) for key, use in store.used.items() if key not in before]
    logging.info("%s\n  %s", run.path, "\n  ".join(used))
    return run.finish(result)


def set_up_compiler(store: str | Path) -> None:
    """Let XLA compile as the flags say, in the process of a run; runs that share a store share their programs.

    Without a store, several processes keep none: each may be on a host with a home of its own, and programs that only
    some of them find keep those that compile waiting.
    """
    own = cache_folder() / "compiled" if jax.process_count() == 1 else None
    compiling.set_up(_EFFORT.value, _COMPILED.value, Path(store) / ".compiled" if store else own)


def compiler_flags() -> list[str]:
    """What was given of --effort and --compilation_cache, for the commands of a sweep's members."""
    given = {flag.name: flag.value for flag in (_EFFORT, _COMPILED) if flag.present}
    return [f"--{name}={value}" for name, value in given.items()]


@commands.ending()
def main(argv: list[str]) -> None:
    check_understood(argv)
    profile = Profile.parse(_PROFILE.value, Path(_WORKDIR.value) / "profile") if _PROFILE.value is not None else None
    traces = profile.traces() if profile else set()
    logging.use_absl_handler()
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # it logs every backend that is not installed
    try:
        if interrupts.received:
            raise Preempted("stopped before it began", interrupts.received[0])
        sharding.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, automatic=_DISTRIBUTED.value)
        set_up_compiler(_STORE.value)
        with hosts.watched(_STUCK_AFTER.value) as advance:
            result = execute(_CONFIG.value, _WORKDIR.value, store=_STORE.value, advance=advance, profile=profile)
    except Preempted as stop:
        command = shlex.join([sys.executable, "-m", "launch.train", *sys.argv[1:]])
        print(f"{stop}; resume with the same command:\n  {command}", flush=True)
        if stop.number == signal.SIGINT:
            sys.exit(128 + signal.SIGINT)
        if "JOB_COMPLETION_INDEX" in os.environ:
            sys.exit(commands.AGAIN)  # Kubernetes would take 0 for success and not restart this pod
        return
    if jax.process_index() == 0:
        if profile and profile.traces() == traces:
            print(
                f"--profile={_PROFILE.value}: nothing was traced, as no training ran these steps now; what is finished "
                "is not trained again: take another --workdir",
                file=sys.stderr,
            )
        print(formats.markdown(tables.of_finished_run(result, _CONFIG.value.experiment)), flush=True)


def check_understood(argv: list[str]) -> None:
    """Raise InputError if a command line has words that belong to no flag."""
    if len(argv) > 1:
        raise InputError(f"not understood: {' '.join(argv[1:])}", remedy="settings are --NAME=VALUE")


class ConfigFileError(ValueError):
    """A config file raised an error; the message names both."""


def called(config_file: str, function: str) -> Any:
    """Call a function of a config file; returns a generator's values as a list, None if there is no such function.

    Args:
      config_file: FILE or FILE:ARGUMENT, as --config takes it.
    """
    path, colon, argument = config_file.partition(":")
    try:
        spec = importlib.util.spec_from_file_location("config", path)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        result = getattr(module, function, lambda *arguments: None)(*([argument] if colon else []))
        return list(result) if isinstance(result, Iterator) else result
    except Exception as error:  # a user's code may raise anything
        raise ConfigFileError(f"{path}: {function}() raised {type(error).__name__}: {error}") from error


@commands.ending()
def parse(argv: list[str]) -> list[str]:
    """absl's flag parsing, with an answer that helps when a config key does not exist, and with folders expanded."""
    try:
        left = flags.FLAGS(argv)
        flags.FLAGS.config.keys()  # a missing file is only reported here
    except Exception as error:  # flags.Error; of an unknown nested key, AttributeError or KeyError; a config file's own
        raise commands.leave(_known_keys(argv) or str(error), commands.MISUSE) from error
    _check(flags.FLAGS.config, argv)
    names = ["workdir", "store"]
    if _COMPILED.value and "://" not in _COMPILED.value:
        names.append("compilation_cache")
    for name in names:
        if flags.FLAGS[name].present:
            flags.FLAGS[name].value = str(paths.path(flags.FLAGS[name].value, f"--{name}"))
    return left


def _check(config: Any, argv: list[str]) -> None:
    """Raise InputError unless a config file gives a config of an experiment, and no tuple is overridden twice."""
    file = _config_file(argv)
    if not isinstance(config, ConfigDict | FrozenConfigDict):
        raise InputError(f"get_config() returned a {type(config).__name__}, not a ConfigDict", file=file)
    if not isinstance(config.get("experiment"), str):
        remedy = "name its module, such as 'robustgrad_jax.experiment'"
        raise InputError("the config has no text under 'experiment'", file=file, remedy=remedy)
    values, given = flatten(config), [key for key, _ in _overrides(argv)]
    for key in given:
        if isinstance(values.get(key), tuple) and given.count(key) > 1:
            raise InputError("is given twice; give it once, since both values would be used", field=f"--config.{key}")


def _overrides(argv: list[str]) -> list[tuple[str, str]]:
    """(key, value) of every --config.KEY=VALUE; the key of the config file itself is ""."""
    pairs = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if word.startswith("-") and (name.lstrip("-") + ".").startswith("config."):
            pairs.append((name.lstrip("-").removeprefix("config").removeprefix("."), value if equals else following))
    return pairs


def _config_file(argv: list[str]) -> str:
    return next((value for key, value in reversed(_overrides(argv)) if not key), "")


def _known_keys(argv: list[str]) -> str:
    """What is wrong with the config file, or which overridden keys it lacks and which are valid."""
    if not (file := _config_file(argv)):
        return ""
    try:
        config = called(file, "get_config")
    except ConfigFileError as error:  # the cause
        return str(error)
    if config is None:
        return f"{file} has no get_config()"
    if not isinstance(config, Mapping | ConfigDict | FrozenConfigDict):
        return f"{file}: get_config() returned a {type(config).__name__}, not a ConfigDict"
    known = flatten(config)
    unknown = [key for key, _ in _overrides(argv) if key and key not in known]
    if isinstance(known.get("experiment"), str) and (gone := moved(known["experiment"], unknown)):
        return "\n".join(gone)
    lines = []
    for key in unknown:
        near = difflib.get_close_matches(key, known, n=1)
        lines.append(f"unknown config key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return "\n".join([*lines, "valid keys: " + ", ".join(sorted(known))]) if lines else ""


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
