"""Run one experiment: `python -m launch.train --config=configs/robustgrad/X.py --workdir=DIR [--config.a.b=v …]`.

The same command on the same folder continues a run that was stopped or killed; a finished one prints its result.
"""

import difflib
import importlib.util
import logging as python_logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from launch.reports import formats, tables
from launch.run import Preempted, Run, RunDirectoryError, flatten
from launch.stages import SettingError, Stage
from launch.store import Store
from launch.training import hosts, sharding
from launch.training.loop import NonFiniteLoss

_CONFIG = config_flags.DEFINE_config_file("config", None, "the run's config file", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "the run directory: config, metrics, checkpoints, result")
_STORE = flags.DEFINE_string(
    "store", "", "the folder that keeps the results of stages, to be shared by runs; by default WORKDIR/store"
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no scheduler says it")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes take part, with --coordinator")
_PROCESS = flags.DEFINE_integer("process_id", None, "which of them this is, from 0, with --coordinator")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "let JAX find the other processes, as on a Cloud TPU slice")
_STUCK_AFTER = flags.DEFINE_float(
    "stuck_after",
    hosts.STUCK_AFTER,
    "seconds without progress after which one of several processes counts as stuck and the run ends; 0: never",
    lower_bound=0,
)
flags.mark_flags_as_required(["config", "workdir"])


def find(experiment: str) -> Callable:
    """The `run` function of an experiment given by its dotted name.

    Raises:
      ValueError: there is no such module, or it has no `run`.
    """
    return _module(experiment).run


def _module(experiment: str) -> ModuleType:
    """An experiment: `plan(config) -> stage`, or for now `run(config, run) -> result` with `REVISABLE` fields."""
    try:
        module = importlib.import_module(experiment)
    except ModuleNotFoundError as error:
        if error.name and not experiment.startswith(error.name):
            raise  # the experiment is there; something it needs is not
        raise ValueError(
            f"config.experiment={experiment!r}: no such module; it is a dotted name such as 'robustgrad_jax.experiment'"
        ) from error
    if not callable(getattr(module, "run", None)):
        raise ValueError(f"config.experiment={experiment!r}: the module has no function run(config, run)")
    return module


def execute(config, workdir: str, *, store: str = "", advance: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Plan a config and make its root stage in a run directory, or give the result of one that is finished.

    Args:
      store: the folder of the store; "" for the one that the run directory used before, or its own `store`.
      advance: called whenever a run of several processes comes to a place where it could stop.

    Raises:
      Preempted: the run was asked to stop and has saved what it had.
      ValueError: a setting cannot be used; said before the folder is touched.
    """
    experiment = _module(config.experiment)
    planned = hasattr(experiment, "plan")
    root = experiment.plan(config) if planned else None
    run = Run.open(workdir, config, revisable=list(config) if planned else getattr(experiment, "REVISABLE", ()))
    run.stop.advance = advance
    try:
        run.stop.on_sigterm()
        result = run.result()
        if result is not None:
            logging.info("%s is finished", workdir)
            return result
        if root is None:
            return run.finish(experiment.run(run.config, run))
        return make(experiment, root, run, Store(run.store_path(store), run.stop))
    finally:
        run.close()


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
    used = [str(use) for key, use in store.used.items() if key not in before]
    logging.info("%s\n  %s", run.path, "\n  ".join(used))
    if run.writes:
        getattr(experiment, "leave", lambda *_: None)(run.path, root, store)
    return run.finish(result)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"not understood: {' '.join(argv[1:])}")
    logging.use_absl_handler()
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # it tells of every backend that is not there
    try:
        sharding.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, automatic=_DISTRIBUTED.value)
    except ValueError as error:
        sys.exit(str(error))
    try:
        with hosts.watched(_STUCK_AFTER.value) as advance:
            result = execute(_CONFIG.value, _WORKDIR.value, store=_STORE.value, advance=advance)
    except Preempted as stop:
        command = shlex.join([sys.executable, "-m", "launch.train", *sys.argv[1:]])
        print(f"{stop}; resume with the same command:\n  {command}", flush=True)
        if "JOB_COMPLETION_INDEX" in os.environ:
            sys.exit(hosts.EXIT_STATUS)  # Kubernetes would take 0 for the end of the work and not start this pod again
        return
    except (SettingError, RunDirectoryError, NonFiniteLoss) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if jax.process_index() == 0:
        print(formats.markdown(tables.of_finished_run(result, _CONFIG.value.experiment)), flush=True)


class ConfigFileError(ValueError):
    """A config file ends in an error; the message names both."""


def called(config_file: str, function: str) -> Any:
    """What a function of a config file gives, a generator's yields as a list; None if the file has no such function.

    Args:
      config_file: FILE or FILE:ARGUMENT, as --config takes it.
    """
    path, colon, argument = config_file.partition(":")
    try:
        spec = importlib.util.spec_from_file_location("config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, function, lambda *arguments: None)(*([argument] if colon else []))
        return list(found) if isinstance(found, Iterator) else found
    except Exception as error:  # it is somebody's program
        raise ConfigFileError(f"{path}: {function}() ends in {type(error).__name__}: {error}") from error


def parse(argv: list[str]) -> list[str]:
    """absl's flag parsing, with an answer that helps when a config key does not exist."""
    try:
        left = flags.FLAGS(argv)
        flags.FLAGS.config.keys()  # a file that is not there is told of here and not before
        return left
    except Exception as error:  # flags.Error; of an unknown nested key, AttributeError or KeyError; a config file's own
        sys.exit(_known_keys(argv) or str(error))


def _known_keys(argv: list[str]) -> str:
    """What is wrong with the config file; or with an override of a key that it lacks: which, and those that exist."""
    argv = " ".join(argv).replace("--config ", "--config=").split()  # absl takes both forms
    files = [a.split("=", 1)[1] for a in argv if a.lstrip("-").startswith("config=")]
    if not files:
        return ""
    try:
        config = called(files[-1], "get_config")
    except ConfigFileError as error:  # what has led here
        return str(error)
    if config is None:
        return f"{files[-1]} has no get_config()"
    known = flatten(config)
    given = [a.lstrip("-").split("=", 1)[0] for a in argv]
    asked = [key.removeprefix("config.") for key in given if key.startswith("config.")]
    lines = []
    for key in (k for k in asked if k not in known):
        near = difflib.get_close_matches(key, known, n=1)
        lines.append(f"unknown config key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return "\n".join([*lines, "there are: " + ", ".join(sorted(known))]) if lines else ""


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
