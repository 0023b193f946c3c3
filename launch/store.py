"""The store: every stage's result, made once, kept under the stage's key.

    STORE/projector-5d0c7b2a91f4e3d0/stage.json    what it is (class, version, fields); written last
                                     value/        the result, by `launch.files.save_tree`
                                     metrics.jsonl, tensorboard/, checkpoints/, versions.json    of stages that train
    STORE/.locks/                                  one file a key that is being made

A run has one store; the members of a sweep share one. A process that is killed leaves a stage without its stage.json:
the next one makes it again, and goes on from the checkpoints of a training. So does one that finds a result damaged. A
stage of another class version has another key, so its earlier result stays.
"""

import contextlib
import fcntl
import itertools
import json
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import logging

from launch import files
from launch.journal import Journal
from launch.processes import versions
from launch.processes.profiling import Profile
from launch.processes.stop import Stop, process_0_says, wait_for_all
from launch.reading import InputError
from launch.stages import Stage, describe

MARKER = "stage.json"
_POLL = 0.2  # seconds between two looks at a lock
_ABSENT: Any = object()


@dataclass(frozen=True)
class Use:
    """How a run came by a stage's result.

    Attributes:
      key: of the stage.
      seconds: that making it took; None for one that was there.
    """

    key: str
    seconds: float | None

    def __str__(self) -> str:
        return f"{self.key}: reused" if self.seconds is None else f"{self.key}: made in {self.seconds:.1f} s"


class Store:
    """Results of stages, in memory and below `path`.

    Args:
      path: the folder; made when something is kept.
      stop: asked before a stage is made, and by stages that take long.

    Attributes:
      used: what this process took from the store or put into it, by key, in order.
      profile: steps to trace in trainings.
    """

    def __init__(self, path: str | Path, stop: Stop | None = None):
        self.path, self.stop = Path(path).absolute(), stop or Stop()
        self.profile: Profile | None = None
        self.writes = jax.process_index() == 0
        self.used: dict[str, Use] = {}
        self._memory: dict[str, Any] = {}
        self._alone = False

    def reader(self) -> "Store":
        """The same results for this process alone: the others need not ask too, and nothing that is kept is made."""
        reader = Store(self.path, self.stop)
        reader._memory, reader.used, reader._alone = self._memory, self.used, True
        return reader

    def get(self, stage: Stage) -> Any:
        """A stage's result: from memory, from the disk, or made now, by this process or by another that is at it.

        Every process of a run calls it, in the same order.

        Raises:
          Preempted: the run was asked to stop.
          LookupError, InputError: a reader's stage is not there, or damaged.
          Exception: whatever the stage's `make` raises.
        """
        key = stage.key
        if key in self._memory:
            return self._memory[key]
        if not stage.KEPT:
            value = stage.make(self)
        else:
            tree, seconds = self._load(stage), None
            if tree is _ABSENT:
                if self._alone:
                    raise LookupError(f"{key} is not in {self.path}; only `Store.get` of all processes makes it")
                self.stop.check()
                with self._locked(key):
                    tree = self._load(stage, replace=True)
                    if tree is _ABSENT:
                        seconds = self._make(stage)
            self._note(Use(key, seconds))
            if tree is _ABSENT:
                tree = files.load_tree(self.folder(stage) / "value", verify=False)
            value = stage.decode(tree)
        self._memory[key] = value
        return value

    def has(self, stage: Stage) -> bool:
        """Whether the result is on the disk, whole; only `get` sees whether it has been damaged since."""
        there = (self.folder(stage) / MARKER).exists()
        return there if self._alone else process_0_says(there)

    def put(self, stage: Stage, value: Any, seconds: float = 0.0) -> None:
        """Keep a result that was made elsewhere: as one of several by one program. The caller holds the lock."""
        folder = self.folder(stage)
        # The marker is there already only where a file system without locks let another process make it too.
        if self.writes and not (folder / MARKER).exists():
            folder.mkdir(parents=True, exist_ok=True)
            files.save_tree(folder / "value", stage.encode(value))
            shutil.rmtree(folder / "scratch", ignore_errors=True)
            description = {"key": stage.key, **describe(stage), "seconds": round(seconds, 3)}
            files.write_atomically(folder / MARKER, json.dumps(description, indent=2) + "\n")
        wait_for_all(stage.key)
        self._note(Use(stage.key, seconds))

    def folder(self, stage: Stage) -> Path:
        """Where a stage is kept; it may not exist yet."""
        return self.path / stage.key

    def scratch(self, stage: Stage) -> Path:
        """An empty folder for files that `make` writes on its way, such as memory maps of its result."""
        path = self.folder(stage) / "scratch"
        if self.writes:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        return path

    def journal(self, stage: Stage) -> Journal:
        """The logs of a stage that trains; notes the versions that it trains with."""
        folder = self.folder(stage)
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
            versions.record(folder)
        return Journal(folder)

    def forget(self, keep: Collection[str] = ()) -> None:
        """Drop the results in memory, but for those with the given keys; they are read or made again when needed."""
        self._memory = {key: value for key, value in self._memory.items() if key in keep}

    @contextlib.contextmanager
    def locked(self, stages: list[Stage]) -> Iterator[None]:
        """Hold the locks of several stages, to make them together."""
        with contextlib.ExitStack() as held:
            for key in sorted(stage.key for stage in stages):  # one order everywhere: no two wait for each other
                held.enter_context(self._locked(key))
            yield

    def _load(self, stage: Stage, replace: bool = False) -> Any:
        """The kept tree, or `_ABSENT`; process 0 verifies it. With `replace`, a damaged one is moved out of the way."""
        if not self.has(stage):
            return _ABSENT
        value, problem, tree = self.folder(stage) / "value", "", _ABSENT
        if self.writes or self._alone:
            try:
                tree = files.load_tree(value)
            except (FileNotFoundError, EOFError, ValueError) as error:
                if self._alone:
                    raise
                known = isinstance(error, InputError)
                problem = f"{error.file} {error.reason}" if known else f"{value} cannot be read ({error})"
        if self._alone or not process_0_says(bool(problem)):
            return files.load_tree(value, verify=False) if tree is _ABSENT else tree
        if replace and self.writes:
            aside = next(path for n in itertools.count(1) if not (path := Path(f"{value}.damaged-{n}")).exists())
            (self.folder(stage) / MARKER).unlink()
            if value.exists():
                value.rename(aside)
            logging.warning("%s: %s; it is made again, and this is kept as %s", stage.key, problem, aside.name)
        return _ABSENT

    def _make(self, stage: Stage) -> float:
        logging.info("%s: making", stage.key)
        start = time.perf_counter()
        value = stage.make(self)
        seconds = time.perf_counter() - start
        self.put(stage, value, seconds)
        return seconds

    def _note(self, use: Use) -> None:
        self.used.setdefault(use.key, use)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of a key on process 0; the others wait for it."""
        file = None
        try:
            if self.writes:
                folder = self.path / ".locks"
                folder.mkdir(parents=True, exist_ok=True)
                file = open(folder / key, "w")  # noqa: SIM115 - held open as long as the lock is
            waited = False
            while not process_0_says(self._try(file, key)):
                if not waited:
                    logging.info("%s: another process is making it, waiting", key)
                    waited = True
                time.sleep(_POLL)
                self.stop.check()
            yield
        finally:
            if file is not None:
                file.close()

    def _try(self, file: Any, key: str) -> bool:
        """Whether the lock of a key is held now, or cannot be had at all."""
        if file is None:
            return True  # not process 0: its answer counts
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some cluster file systems have no locks
            logging.warning("%s cannot be locked (%s): two processes may make it at the same time", key, error)
        else:
            files.sweep_leftovers(self.path / key)
        return True
