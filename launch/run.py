"""The run directory: what a run is (config.json), what it said (metrics.jsonl), what it found (result.json).

Running the same command on the same directory continues; another config on it is refused with the difference shown,
but for fields that the experiment declares revisable: then the earlier result goes to history/.
"""

import fcntl
import io
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict, FrozenConfigDict
from tensorboardX import SummaryWriter

from launch import versions
from launch.files import write_atomically
from launch.stages import Stage, walk
from launch.stop import Preempted, Stop
from launch.stop import process_0_says as _process_0_says
from launch.store import Store
from launch.training import checkpoint

PLAN = "plan.json"


class RunDirectoryError(ValueError):
    """The directory cannot be used for this run; the message says why and what to do."""


def plain(value: Any) -> Any:
    """Config values as JSON has them: tuples become lists."""
    if isinstance(value, ConfigDict | FrozenConfigDict | Mapping):
        return {k: plain(value[k]) for k in value}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def flatten(config: Mapping, prefix: str = "") -> dict[str, Any]:
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


class Run:
    """An open run directory.

    Attributes:
      path: the directory.
      config: the frozen config of the run.
      writes: whether this process writes the small files; only process 0 does.
      stop: says when to stop.
    """

    def __init__(self, path: Path, config: FrozenConfigDict):
        self.path, self.config = path, config
        self.writes = jax.process_index() == 0
        self.stop = Stop()
        self._lock = None
        self._tensorboard = None

    @classmethod
    def open(cls, path: str | Path, config: ConfigDict | FrozenConfigDict, *, revisable: Collection[str] = ()) -> "Run":
        """Make the directory, or continue in it.

        Args:
          path: of the directory.
          config: of the run.
          revisable: top-level fields that may have changed since the directory was last used. An experiment that names
            what it keeps by the fields it depends on (see `tldr_jax.stages`) can take up the rest of its work. The
            result for the earlier config is moved to history/.

        Raises:
          RunDirectoryError: it is not writable, another process works in it, or it belongs to another config.
        """
        if "://" in str(path):
            raise RunDirectoryError(f"{path} is no folder: mount the bucket, or take a file system that all hosts see")
        run = cls(Path(path), FrozenConfigDict(config))
        refusal = None
        try:
            if run.writes:
                run._claim(plain(config), revisable)
                versions.record(run.path)
        except BaseException as error:
            run.close()
            refusal = error
        if _process_0_says(refusal is not None):  # the others must not wait for a process that has gone
            raise refusal or RunDirectoryError(f"process 0 refuses {path}; its log says why")
        return run

    def _claim(self, resolved: dict[str, Any], revisable: Collection[str]) -> None:
        """Make the directory, lock it, and see that its config is this one."""
        try:
            (self.path / "artifacts").mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held open as long as the run is
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {self.path} is not writable ({error}); choose another --workdir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"another process is running in {self.path}; wait for it or choose another --workdir"
            ) from error
        except OSError as error:  # some cluster file systems have no locks
            logging.warning("%s cannot be locked (%s): see to it that one run alone uses it", self.path, error)
        stored_path = self.path / "config.json"
        if stored_path.exists():
            lines = difference(json.loads(stored_path.read_text()), resolved)
            fixed = [line for line in lines if re.split(r"[.:]", line)[0] not in revisable]
            if fixed:
                raise RunDirectoryError(
                    f"{self.path} holds a run with another config (stored -> asked):\n  "
                    + "\n  ".join(fixed)
                    + "\nUse its config again, or choose another --workdir."
                )
            if not lines:
                return
            logging.info("%s: the config was revised (stored -> asked)\n  %s", self.path, "\n  ".join(lines))
            self.put_aside()
        write_atomically(stored_path, json.dumps(resolved, indent=2, sort_keys=True) + "\n")

    def put_aside(self) -> None:
        """Move a finished result, with the config that it belongs to, to the next free history/<n>."""
        if not (self.path / "result.json").exists():
            return
        history = self.path / "history"
        folder = history / str(1 + max((int(p.name) for p in history.glob("[0-9]*")), default=0))
        folder.mkdir(parents=True)
        write_atomically(folder / "config.json", (self.path / "config.json").read_bytes())
        if (self.path / PLAN).exists():
            write_atomically(folder / PLAN, (self.path / PLAN).read_bytes())
        os.replace(self.path / "result.json", folder / "result.json")

    def child(self, name: str, config: ConfigDict | FrozenConfigDict) -> "Run":
        """A run inside this one, in the folder `name`; it stops when this one is asked to."""
        run = Run.open(self.path / name, config)
        run.stop = self.stop
        return run

    def close(self) -> None:
        """Flush the logs and let go of the directory."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- stopping ---------------------------------------------------------------------------------------------------

    @property
    def stop_asked(self) -> threading.Event:
        """Set to ask for a stop."""
        return self.stop.asked

    @stop_asked.setter
    def stop_asked(self, event: threading.Event) -> None:
        self.stop.asked = event

    def stop_requested(self) -> bool:
        """Whether to stop here; see `launch.stop.Stop.requested`."""
        return self.stop.requested()

    def check_stop(self) -> None:
        """Raise `Preempted` where nothing would be lost, if the run was asked to stop."""
        if self.stop_requested():
            raise Preempted(f"stopped on request; {self.path} is complete up to here")

    # -- its plan ---------------------------------------------------------------------------------------------------

    def store_path(self, asked: str = "") -> Path:
        """The folder of the store: `asked`, the one that an earlier command used here, or `store` in this directory."""
        noted = self.path / PLAN
        if asked or not noted.exists():
            return Path(asked).absolute() if asked else self.path / "store"
        return (self.path / json.loads(noted.read_text())["store"]).resolve()

    def is_of(self, root: Stage) -> bool:
        """Whether the result here is of this plan: a file that counts by its content may have changed since."""
        noted = self.path / PLAN
        return _process_0_says(not noted.exists() or json.loads(noted.read_text())["root"] == root.key)

    def note_plan(self, root: Stage, store: Store) -> None:
        """Write plan.json: where the store is, and the keys of the stages that the result is made from."""
        stages = {stage.key: type(stage).__name__ for stage in walk(root) if stage.KEPT}
        content = {"store": os.path.relpath(store.path, self.path), "root": root.key, "stages": stages}
        write_atomically(self.path / PLAN, json.dumps(content, indent=2) + "\n")

    # -- what a run says --------------------------------------------------------------------------------------------

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and the same values to TensorBoard."""
        if not self.writes:
            return
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))
        finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": int(step), "time": round(time.time(), 3), **finite}) + "\n")
        for key, value in values.items():
            self._tensorboard.add_scalar(key, value, step)

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: a resumed run computes it again."""
        path = self.path / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # cut off by a kill
            if json.loads(line)["step"] <= step:
                kept.append(line)
        write_atomically(path, "".join(kept))
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    # -- what a run finds -------------------------------------------------------------------------------------------

    def artifact(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make()` gives, computed once and kept in artifacts/.

        Args:
          name: a file name; its ending says what it holds: ".json", or ".npz" for a flat dict of arrays.
          make: () -> value; called only if the file is not there yet.
        """
        path = self.path / "artifacts" / name
        if path.suffix not in (".json", ".npz"):
            raise ValueError(f"artifact {name!r}: the name must end in .json or .npz")
        if not _process_0_says(path.exists()):
            self.check_stop()
            value = make()
            if self.writes:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, _encode(path.suffix, value))
            else:
                return value
        if path.suffix == ".json":
            return json.loads(path.read_text())
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def checkpoints(self, best: tuple[str, str] | None = None) -> checkpoint.Checkpoints:
        """The run's checkpoints; see `launch.training.checkpoint`."""
        return checkpoint.Checkpoints(self.path / "checkpoints", best=best)

    def result(self) -> dict[str, float] | None:
        """The finished run's result, or None while it is not finished."""
        path = self.path / "result.json"
        return json.loads(path.read_text()) if _process_0_says(path.exists()) else None

    def finish(self, result: Mapping[str, float]) -> dict[str, float]:
        """Write result.json, the last thing a run does."""
        result = {k: float(v) for k, v in result.items()}
        if self.writes:
            finite = {k: v if math.isfinite(v) else None for k, v in result.items()}
            write_atomically(self.path / "result.json", json.dumps(finite, indent=2) + "\n")
        return result


def _encode(suffix: str, value: Any) -> bytes:
    if suffix == ".json":
        return (json.dumps(value, indent=2) + "\n").encode()
    buffer = io.BytesIO()
    np.savez(buffer, **jax.tree.map(np.asarray, value))
    return buffer.getvalue()
