"""The run directory: its config (config.json), its plan (plan.json), its result (result.json).

Running the same command on the same directory continues, or gives the result of a finished run. With a changed config,
the stages that the change affects are made again, and the earlier result goes to history/.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
from absl import logging
from ml_collections import ConfigDict, FrozenConfigDict

from launch.files import load_json, load_tree, sweep_leftovers, write_atomically
from launch.processes import versions
from launch.processes.stop import Stop, process_0_says
from launch.reading import InputError
from launch.results import without_nan
from launch.stages import Stage, walk
from launch.store import Store

CONFIG, PLAN, RESULT = "config.json", "plan.json", "result.json"
_LOST_PLAN = "remove it, and give --store if the run had one, to go on"


class RunDirectoryError(ValueError):
    """The directory cannot be used for this run; the message says why and what to do."""


def plain(value: Any) -> Any:
    """Config values as JSON has them: tuples become lists."""
    if isinstance(value, ConfigDict | FrozenConfigDict | Mapping):
        return {k: plain(value[k]) for k in value}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def flatten(config: Mapping | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key in config:
        value = config[key]
        nested = isinstance(value, ConfigDict | FrozenConfigDict | Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def difference(old: Mapping, new: Mapping) -> list[str]:
    """One line for every key in which two configs differ."""
    old, new = flatten(old), flatten(new)
    absent = object()
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, absent), new.get(key, absent)
        if a is absent or b is absent or a != b:
            show = lambda v: "(absent)" if v is absent else json.dumps(v)
            lines.append(f"{key}: {show(a)} -> {show(b)}")
    return lines


def lock(folder: Path, refusal: type[ValueError], busy: str) -> IO[str]:
    """Make a folder and hold its lock, for as long as the file that is returned is open.

    Raises:
      refusal: the folder is not writable, or another process holds the lock, which `busy` says.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise refusal(f"the folder {folder} is not writable ({error}); choose another --workdir") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise refusal(f"{busy}; wait for it or choose another --workdir") from error
    except OSError as error:  # some cluster file systems have no locks
        logging.warning("%s cannot be locked (%s): make sure that nothing else uses it", folder, error)
    return file


class Run:
    """An open run directory.

    Attributes:
      path: the directory.
      writes: whether this process writes the small files; only process 0 does.
      stop: says when to stop.
    """

    def __init__(self, path: Path):
        self.path = path
        self.writes = jax.process_index() == 0
        self.stop = Stop()
        self._lock: IO[str] | None = None

    @classmethod
    def open(cls, path: str | Path, config: ConfigDict | FrozenConfigDict) -> "Run":
        """Make the directory, or continue in it; the result for another config is moved to history/.

        Raises:
          RunDirectoryError: it is not writable, or another process works in it.
          InputError: config.json or versions.json is damaged.
        """
        if "://" in str(path):
            raise RunDirectoryError(f"{path} is not a folder: mount the bucket, or use a file system of all hosts")
        run = cls(Path(path))
        refusal = None
        try:
            if run.writes:
                run._claim(plain(config))
                versions.record(run.path)
        except BaseException as error:
            run.close()
            refusal = error
        if process_0_says(refusal is not None):  # the others must not wait for a process that has gone
            raise refusal or RunDirectoryError(f"process 0 refuses {path}; its log says why")
        return run

    def _claim(self, resolved: dict[str, Any]) -> None:
        """Make the directory, lock it, and write its config."""
        self._lock = lock(self.path, RunDirectoryError, f"another process is running in {self.path}")
        sweep_leftovers(self.path)
        stored = self.path / CONFIG
        if stored.exists():
            lines = difference(load_json(stored), resolved)
            if not lines:
                return
            logging.info("%s: the config has changed (stored -> now)\n  %s", self.path, "\n  ".join(lines))
            self.put_aside()
        write_atomically(stored, json.dumps(resolved, indent=2, sort_keys=True) + "\n")

    def put_aside(self) -> None:
        """Move a finished result, with the config and the plan that it belongs to, to the next free history/<n>."""
        if not (self.path / RESULT).exists():
            return
        history = self.path / "history"
        folder = history / str(1 + max((int(p.parent.name) for p in history.glob(f"[0-9]*/{RESULT}")), default=0))
        folder.mkdir(parents=True, exist_ok=True)  # a kill may have left one without its result, which comes last
        for name in (CONFIG, PLAN):
            if (self.path / name).exists():
                write_atomically(folder / name, (self.path / name).read_bytes())
        os.replace(self.path / RESULT, folder / RESULT)

    def close(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def store_path(self, asked: str = "") -> Path:
        """The folder of the store: `asked`, the one that an earlier command used here, or `store` in this directory."""
        noted = self.path / PLAN
        if asked or not noted.exists():
            return Path(asked).absolute() if asked else self.path / "store"
        return (self.path / load_json(noted, remedy=_LOST_PLAN)["store"]).resolve()

    def is_of(self, root: Stage) -> bool:
        """Whether the result here is of this plan: a file that counts by its content may have changed since."""
        noted = self.path / PLAN
        return process_0_says(not noted.exists() or load_json(noted, remedy=_LOST_PLAN)["root"] == root.key)

    def note_plan(self, root: Stage, store: Store) -> None:
        """Write plan.json: where the store is, and the keys of the stages that the result is made from."""
        stages = {stage.key: type(stage).__name__ for stage in walk(root) if stage.KEPT}
        content = {"store": os.path.relpath(store.path, self.path), "root": root.key, "stages": stages}
        write_atomically(self.path / PLAN, json.dumps(content, indent=2) + "\n")

    def result(self) -> dict[str, float] | None:
        """The finished run's result, or None while it is not finished, or if the file is damaged."""
        path = self.path / RESULT
        content = None
        if self.writes and path.exists():
            try:
                content = load_json(path, remedy="it is written again")
            except InputError as error:
                logging.warning("%s", error)
        if not process_0_says(content is not None):
            return None
        return load_json(path) if content is None else content

    def is_kept(self, result: Mapping[str, Any], root: Stage, store: Store) -> bool:
        """Whether a result equals the verified one in the store: result.json itself may have been damaged."""
        same = True
        if self.writes and root.KEPT and (folder := store.folder(root) / "value").exists():
            try:
                same = without_nan(root.decode(load_tree(folder))) == result
            except (FileNotFoundError, EOFError, ValueError):
                same = False  # `Store.get` says what is damaged
            if not same:
                logging.warning("%s is not the result that is kept in %s: written again", self.path / RESULT, folder)
        return process_0_says(same)

    def is_finished(self, config: ConfigDict | FrozenConfigDict) -> bool:
        """Whether the result for a config is here; the directory need not be open."""
        there = (self.path / RESULT).exists() and (self.path / CONFIG).exists()
        return process_0_says(there and not difference(load_json(self.path / CONFIG), plain(config)))

    def finish(self, result: Mapping[str, float]) -> dict[str, float]:
        """Write result.json, the last thing a run does."""
        if self.writes:
            write_atomically(self.path / RESULT, json.dumps(without_nan(result), indent=2) + "\n")
        return {k: float(v) for k, v in result.items()}
