"""The checkpoints of one training: a thin layer over Orbax's CheckpointManager.

It adds to Orbax: a state is stored as a flat table from path to array beside its shapes, so that a checkpoint of
another model is refused with a list of the differences; a digest of every array is stored and compared with what was
restored; a checkpoint that is damaged is moved aside and the previous one is used; both the best and the latest
checkpoints are kept.

On disk: ``<directory>/<step>/state`` (arrays) and ``<directory>/<step>/info`` (JSON: the metrics, dtype, shape and
digest of every leaf, the algorithm of PRNG keys).
"""

import dataclasses
import logging as std_logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from launch.training.checkpoint import digests
from launch.training.checkpoint import leaves as flat

_SHOWN = 5  # arrays in a message


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves the question whether to stop to the training loop."""

    def reached_preemption(self, step: int) -> bool:
        # JAX's processes agree on one growing count (`launch.processes.stop`). Orbax would set it to the number of the
        # step that is saved, and the count on which the processes have agreed might never come.
        del step
        return False


class Checkpoints:
    """The checkpoints of one training, in one directory; a context manager that waits for the last save at its end.

    With several processes, all of them make the same calls, on a directory that all of them see.

    Args:
      directory: created if necessary; a local path or one of a bucket (``gs://...``).
      best: ``(metric, "max" or "min")`` to keep the checkpoint with the best value of a metric besides the latest ones.
        Of equal values the later is better; a checkpoint with NaN or without the metric is never the best.
      keep_latest: how many of the latest to keep.

    Raises:
      ValueError: `best` or `keep_latest` is out of range.
      OSError: the directory cannot be created or written to.
    """

    def __init__(self, directory, *, best: tuple[str, str] | None = None, keep_latest: int = 2):
        if best is not None and best[1] not in ("max", "min"):
            raise ValueError(f"best must be (metric, 'max' or 'min'), not {best!r}")
        if keep_latest < 1:
            raise ValueError(f"keep_latest must be at least 1, not {keep_latest}")
        self._directory = _make_directory(directory)
        self._best, self._keep_latest = best, keep_latest
        _quiet_orbax()
        # Orbax's best_fn with max_to_keep would delete the latest checkpoint when another one is better.
        policies = ocp.checkpoint_managers
        self._manager = _Manager(
            self._directory,
            item_handlers={"state": _arrays_handler(), "info": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep_latest), _Preserve(self.best_step)]
                ),
                save_root_metadata=False,
                lightweight_initialize=True,  # otherwise a damaged checkpoint could fail here
            ),
        )
        self._metrics: dict[int, dict[str, float]] = {}
        self._unreadable: dict[int, str] = {}  # steps whose metrics cannot be read, and why
        for step in self._manager.all_steps():
            try:
                self._metrics[step] = flat.read_record(self._directory / str(step))["metrics"]
            except (OSError, ValueError) as error:
                self._unreadable[step] = _line(error)

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Start to save a state and return once it is copied to the host: its buffers may then be donated.

        Saving a step again does nothing. An error while writing is raised by the next `save`, `wait` or `close`.

        Args:
          step: number of updates made.
          state: a pytree of arrays; typed PRNG keys are stored as their data.
          metrics: numbers to store with it; with `best`, its metric must be among them.
        """
        if self._best and metrics is not None and self._best[0] not in metrics:
            known = ", ".join(metrics) or "none"
            raise ValueError(f"the best checkpoint is chosen by {self._best[0]!r}, but the metrics are: {known}")
        if step in self._manager.all_steps():
            return
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        leaves = flat.flatten(state)
        arrays = {path: flat.data(x) for path, x in leaves.items() if x.size}  # Orbax refuses empty arrays
        found = digests.copies(arrays)
        if differing := [path for path, own in found.items() if len(own) > 1]:
            logging.warning("step %d is saved, but the devices hold different copies of %s", step, _some(differing))
        info = flat.record(leaves, metrics, {path: min(own) for path, own in found.items()})
        self._manager.wait_until_finished()  # now, so that its error is not taken for one of this step
        self._metrics[step] = metrics
        # Forced: Orbax would silently skip a step that is not later than the latest one.
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), info=ocp.args.JsonSave(info)),
            force=True,
        )
        self._forget_removed()

    def wait(self) -> None:
        """Return when the last save is on disk; raise its error, if any."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def latest_step(self) -> int | None:
        """The latest saved step, or None."""
        return max(self._manager.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best value of the metric, or None."""
        return max((step for step in self._manager.all_steps() if self._scored(step)), key=self._rank, default=None)

    def restore_latest(self, abstract_state: Any) -> tuple[Any, int] | None:
        """The latest state that can be read completely, and its step; None if nothing was ever saved.

        A checkpoint that cannot be read, or is not what was saved, is renamed to ``<step>.damaged-<n>`` with a warning,
        and the previous one is used. The arrays own their buffers: they may be donated.

        Args:
          abstract_state: the state's pytree of `jax.ShapeDtypeStruct` with shardings (`abstract`), on any devices, not
            necessarily those from which the state was saved.

        Raises:
          ValueError: the checkpoint holds another state: paths, shapes or dtypes differ.
          RuntimeError: all checkpoints are damaged.
        """
        self.wait()
        self._remove_unfinished()
        restored = self._restore(sorted(self._manager.all_steps(), reverse=True), abstract_state)
        self._remove_superfluous()
        return restored

    def restore_best(self, abstract_state: Any, *, part: bool = False) -> tuple[Any, int, dict[str, float]]:
        """The best state, its step and its metrics; otherwise as `restore_latest`.

        Args:
          abstract_state: as in `restore_latest`.
          part: `abstract_state` may lack whole top-level entries that are stored, such as the optimiser's state.

        Raises:
          ValueError: also if `best` was not given, or no checkpoint has its metric.
        """
        if self._best is None:
            raise ValueError("no best checkpoint: Checkpoints was made without best=(metric, 'max' or 'min')")
        self.wait()
        steps = sorted(filter(self._scored, self._manager.all_steps()), key=self._rank, reverse=True)
        restored = self._restore(steps, abstract_state, part, self._unreadable)  # one of those may have been the best
        if restored is None:
            raise ValueError(f"no checkpoint in {self._directory} was saved with the metric {self._best[0]!r}")
        state, step = restored
        return state, step, dict(self._metrics[step])

    def close(self) -> None:
        """Wait for the last save and end Orbax's threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _scored(self, step: int) -> bool:
        return self._best is not None and not math.isnan(self._metrics.get(step, {}).get(self._best[0], math.nan))

    def _rank(self, step: int) -> tuple[float, int]:
        name, mode = self._best or ("", "max")  # only steps with a score are ranked
        return self._metrics[step][name] * (1 if mode == "max" else -1), step

    def _restore(
        self, steps: Sequence[int], abstract_state: Any, part: bool = False, damaged: Mapping[int, str] | None = None
    ) -> tuple[Any, int] | None:
        damaged = dict(damaged or {})
        if not steps and not damaged:
            return None
        leaves = flat.flatten(abstract_state)
        for step in steps:
            arrays, problem = self._read(self._directory / str(step), leaves, part)
            if problem is None:
                self._move_aside(damaged)
                if damaged:
                    logging.warning("using the checkpoint of step %d instead", step)
                return jax.tree.unflatten(jax.tree.structure(abstract_state), arrays), step
            damaged[step] = problem
        listed = "\n".join(f"  {self._directory / str(step)}: {problem}" for step, problem in damaged.items())
        raise RuntimeError(
            f"no checkpoint can be read; all of these are damaged:\n{listed}\n"
            "Repair them, or move them away to start from the beginning."
        )

    def _read(self, path: epath.Path, leaves: Mapping[str, Any], part: bool) -> tuple[list[Any], str | None]:
        """The arrays of the checkpoint in `path`, or its problem; whether there is one, all processes agree on."""
        problem, record = None, {}
        try:
            record = flat.read_record(path)
        except (OSError, ValueError) as error:
            problem = _line(error)
        if problem := _agreed(problem):
            return [], problem
        entries = {name.split("/")[0] for name in (leaves if part else record["leaves"])}
        stored = {name: x for name, x in record["leaves"].items() if name.split("/")[0] in entries}
        flat.check_same(stored, {name: flat.signature(x) for name, x in leaves.items()}, path)
        # Orbax needs the arrays only, each with the devices on which it will be.
        args = {name: flat.restore_args(x) for name, x in leaves.items() if x.size}
        restored: dict[str, Any] = {}
        try:
            # Not through the manager, whose barriers would hold the others up where one process fails.
            restore = ocp.args.PyTreeRestore(item=args, restore_args=args, partial_restore=part)
            restored = _arrays_handler().restore(path / "state", args=restore)
        except Exception as error:  # Orbax raises whatever damaged files make of its parsers, wrapped or not
            cause = _cause(error)
            if isinstance(cause, MemoryError | jax.errors.JaxRuntimeError) or not isinstance(cause, Exception):
                raise  # too little memory, for example, or Ctrl-C: no damage
            problem = _line(cause)
        if problem := _agreed(problem):
            return [], problem
        # Each restored array is released as soon as it is copied.
        arrays = [flat.owned(restored.pop(name, None), x, record["keys"].get(name)) for name, x in leaves.items()]
        if "digests" not in record:
            logging.info("checkpoint %s has no digests: saved by an earlier version, it cannot be verified", path)
            return arrays, None
        named = {name: flat.data(x) for name, x in zip(leaves, arrays, strict=True) if x.size}
        wrong = [name for name, own in digests.copies(named).items() if own != {record["digests"].get(name)}]
        problem = _agreed(f"not what was saved: {_some(wrong)}" if wrong else None)
        return ([], problem) if problem else (arrays, None)

    def _move_aside(self, damaged: Mapping[int, str]) -> None:
        """Rename damaged checkpoints on process 0, so that training can save their steps again."""
        for step, problem in damaged.items():
            path, n = self._directory / str(step), 1
            if jax.process_index() != 0:
                logging.warning("checkpoint %s is damaged (%s)", path, problem)
                continue
            while (aside := self._directory / f"{step}.damaged-{n}").exists():
                n += 1
            path.rename(aside)
            logging.warning("checkpoint %s is damaged (%s); moved to %s", path, problem, aside.name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints moved aside")
        self._manager.reload()
        self._forget_removed()

    def _forget_removed(self) -> None:
        kept = set(self._manager.all_steps())
        self._metrics = {step: values for step, values in self._metrics.items() if step in kept}
        self._unreadable = {step: why for step, why in self._unreadable.items() if step in kept}

    def _remove_unfinished(self) -> None:
        if jax.process_index() != 0:
            return
        for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
            logging.warning("checkpoint %s was interrupted while it was written: removed, not used", path)
            path.rmtree()

    def _remove_superfluous(self) -> None:
        """Finish the deletion of old checkpoints, which a kill may have interrupted halfway."""
        old = sorted(self._manager.all_steps())[: -self._keep_latest]
        superfluous = [step for step in old if step != self.best_step()]
        if not superfluous:
            return
        if jax.process_index() == 0:
            for step in superfluous:
                (self._directory / str(step)).rmtree()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("superfluous checkpoints removed")
        self._manager.reload()
        self._forget_removed()


@dataclasses.dataclass
class _Preserve:
    """Orbax preservation policy: keeps the one step that `step()` returns."""

    step: Any

    def should_preserve(self, checkpoints, *, context):
        del context
        step = self.step()
        return [checkpoint.step == step for checkpoint in checkpoints]


def _arrays_handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)


def _agreed(problem: str | None) -> str | None:
    """A problem that any process has, on every process: all must restore the same step."""
    if jax.process_count() == 1:
        return problem
    anywhere = np.any(multihost_utils.process_allgather(np.asarray(problem is not None)))
    return problem or ("another process cannot read it; its log says why" if anywhere else None)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _make_directory(directory) -> epath.Path:
    name = os.fspath(directory)
    path = epath.Path(name if "://" in name else os.path.abspath(name))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"cannot create the checkpoint directory {path}: {e}") from e
    if "://" not in name and not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to the checkpoint directory {path}")
    return path


def _quiet_orbax() -> None:
    """Drop Orbax's progress messages (a dozen per save) from absl's log; keep its warnings."""
    log = std_logging.getLogger("absl")
    if _not_orbax_chatter not in log.filters:
        log.addFilter(_not_orbax_chatter)


def _not_orbax_chatter(record: std_logging.LogRecord) -> bool:
    return record.levelno >= std_logging.WARNING or f"{os.sep}orbax{os.sep}" not in record.pathname
