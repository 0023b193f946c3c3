"""Checkpoints of a training state: a thin layer over Orbax's CheckpointManager.

It adds to Orbax: a state is stored as a flat table from path to array beside its shapes, so that a checkpoint of
another model is refused with a list of the differences; a checkpoint that cannot be read completely is moved aside and
the previous one is used; both the best and the latest checkpoints are kept.

On disk: ``<directory>/<step>/state`` (arrays) and ``<directory>/<step>/info`` (JSON: the metrics, dtype and shape of
every leaf, the algorithm of PRNG keys).
"""

import dataclasses
import json
import logging as std_logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from launch.reading import jsons

_SHOWN = 5  # paths of each kind in an error message


def abstract(state: Any) -> Any:
    """The shapes, dtypes and shardings of a state, as `Checkpoints.restore_latest` needs them.

    Leaves that are not JAX arrays (NumPy arrays, Python numbers) get no sharding and are restored as NumPy arrays.
    """

    def leaf(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        if isinstance(x, jax.Array):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        x = np.asarray(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    return jax.tree.map(leaf, state)


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
        self._best = best
        _quiet_orbax()
        # Orbax's best_fn with max_to_keep would delete the latest checkpoint when another one is better.
        policies = ocp.checkpoint_managers
        self._manager = _Manager(
            self._directory,
            item_handlers={
                # _damage reads this layout.
                "state": ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
                "info": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep_latest), _Preserve(self.best_step)]
                ),
                save_root_metadata=False,
                lightweight_initialize=True,  # otherwise a damaged checkpoint could fail here
            ),
        )
        self._metrics = {step: _metrics(self._directory / str(step)) for step in self._manager.all_steps()}

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
        leaves = _flatten(state)
        info = {
            "metrics": metrics,
            "leaves": {path: _signature(x) for path, x in leaves.items()},
            "keys": {path: str(jax.random.key_impl(x)) for path, x in leaves.items() if _is_key(x)},
        }
        arrays = {path: _data(x) for path, x in leaves.items() if x.size}  # Orbax refuses empty arrays
        self._manager.wait_until_finished()  # now, so that its error is not taken for one of this step
        self._metrics[step] = metrics
        # Forced: Orbax would silently skip a step that is not later than the latest one.
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), info=ocp.args.JsonSave(info)),
            force=True,
        )
        kept = set(self._manager.all_steps())
        self._metrics = {step: values for step, values in self._metrics.items() if step in kept}

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

        A checkpoint that cannot be read is renamed to ``<step>.damaged-<n>`` with a warning, and the previous one is
        used. The arrays own their buffers: they may be donated.

        Args:
          abstract_state: the state's pytree of `jax.ShapeDtypeStruct` with shardings (`abstract`), on any devices, not
            necessarily those from which the state was saved.

        Raises:
          ValueError: the checkpoint holds another state: paths, shapes or dtypes differ.
          RuntimeError: all checkpoints are damaged.
        """
        self.wait()
        self._remove_unfinished()
        return self._restore(sorted(self._manager.all_steps(), reverse=True), abstract_state)

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
        restored = self._restore(steps, abstract_state, part)
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

    def _restore(self, steps: Sequence[int], abstract_state: Any, part: bool = False) -> tuple[Any, int] | None:
        if not steps:
            return None
        step, damaged = self._first_sound(steps)
        path = self._directory / str(step)
        leaves = _flatten(abstract_state)
        info = _read_info(path)
        entries = {name.split("/")[0] for name in (leaves if part else info["leaves"])}
        stored = {name: x for name, x in info["leaves"].items() if name.split("/")[0] in entries}
        _check_same(stored, {name: _signature(x) for name, x in leaves.items()}, path)
        # Orbax needs the arrays only, each with the devices on which it will be.
        args = {name: _restore_args(x) for name, x in leaves.items() if x.size}
        restore = ocp.args.PyTreeRestore(item=args, restore_args=args, partial_restore=part)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
        arrays = [_owned(restored.get(name), x, info["keys"].get(name)) for name, x in leaves.items()]
        self._move_aside(damaged)
        if damaged:
            logging.warning("using the checkpoint of step %d instead", step)
        return jax.tree.unflatten(jax.tree.structure(abstract_state), arrays), step

    def _first_sound(self, steps: Sequence[int]) -> tuple[int, dict[int, str]]:
        """The first of `steps` that can be read, and the problems of those before it (on process 0)."""
        damaged, sound = {}, -1
        if jax.process_index() == 0:  # one process decides: all must restore the same step
            for step in steps:
                problem = _damage(self._directory / str(step))
                if problem is None:
                    sound = step
                    break
                damaged[step] = problem
        sound = int(multihost_utils.broadcast_one_to_all(np.int32(sound)))
        if sound < 0:
            listed = "\n".join(f"  {self._directory / str(step)}: {damaged.get(step, '')}" for step in steps)
            raise RuntimeError(
                f"no checkpoint can be read; all of these are damaged:\n{listed}\n"
                "Repair them, or move them away to start from the beginning."
            )
        return sound, damaged

    def _move_aside(self, damaged: Mapping[int, str]) -> None:
        """Rename damaged checkpoints on process 0, so that training can save their steps again."""
        for step, problem in damaged.items():
            path, n = self._directory / str(step), 1
            while (aside := self._directory / f"{step}.damaged-{n}").exists():
                n += 1
            path.rename(aside)
            logging.warning("checkpoint %s is damaged (%s); moved to %s", path, problem, aside.name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints moved aside")
        self._manager.reload()
        kept = set(self._manager.all_steps())
        self._metrics = {step: values for step, values in self._metrics.items() if step in kept}

    def _remove_unfinished(self) -> None:
        if jax.process_index() != 0:
            return
        for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
            logging.warning("checkpoint %s was interrupted while it was written: removed, not used", path)
            path.rmtree()


@dataclasses.dataclass
class _Preserve:
    """Orbax preservation policy: keeps the one step that `step()` returns."""

    step: Any

    def should_preserve(self, checkpoints, *, context):
        del context
        step = self.step()
        return [checkpoint.step == step for checkpoint in checkpoints]


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


def _flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path ("params/dense/kernel"), Python numbers as NumPy arrays."""
    flat = {}
    for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in flat:
            raise ValueError(f"two leaves of the state have the path {path!r}")
        if not isinstance(x, jax.Array | jax.ShapeDtypeStruct):
            x = np.asarray(x)
            if x.dtype.kind in "OSU":
                raise ValueError(f"leaf {path!r} of the state is not an array or a number: {x!r}")
        flat[path] = x
    return flat


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x):
    return jax.random.key_data(x) if _is_key(x) else x


def _signature(x) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _read_info(path: epath.Path) -> dict[str, Any]:
    file = path / "info" / "metadata"
    return jsons.parse(file.read_text(), file=os.fspath(file), top=dict, nonfinite=True)


def _metrics(path: epath.Path) -> dict[str, float]:
    try:
        return _read_info(path)["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # damaged: `restore_latest` will say so


def _damage(path: epath.Path) -> str | None:
    """The problem of a damaged checkpoint, or None: reads all of it, on this host alone.

    Separate from restoring, so that a failure there (too little device memory, for example) is not taken for damage,
    and so that one process can check without the others.
    """
    state = path / "state"
    try:
        leaves = _read_info(path)["leaves"]
        for file in (state / "_METADATA", *state.glob("array_metadatas/*")):
            json.loads(file.read_text())
        base = os.fspath(state)
        kvstore = {"driver": "ocdbt", "base": base if "://" in base else f"file://{base}"}
        names = [name for name, signature in leaves.items() if "0" not in _dims(signature)]
        opened = [ts.open({"driver": "zarr", "kvstore": {**kvstore, "path": name}}) for name in names]
        for array in opened:
            array.result().read().result()
    except (OSError, ValueError, KeyError, TypeError) as e:  # TensorStore's errors are ValueErrors
        return f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"
    return None


def _dims(signature: str) -> list[str]:
    return signature[signature.index("[") + 1 : -1].split(",")


def _check_same(stored: Mapping[str, str], state: Mapping[str, str], path: epath.Path) -> None:
    lines = []
    for title, names in (
        ("missing in the checkpoint", [n for n in state if n not in stored]),
        ("only in the checkpoint", [n for n in stored if n not in state]),
        ("different", [n for n in state if n in stored and state[n] != stored[n]]),
    ):
        if names:
            shown = [f"{n}: {stored[n]} stored, {state[n]} wanted" if title == "different" else n for n in names]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"  {title}: {'; '.join(shown[:_SHOWN])}{more}")
    if lines:
        raise ValueError(
            f"the checkpoint {path} is of another state (another model or optimiser?):\n" + "\n".join(lines)
        )


def _restore_args(x: jax.ShapeDtypeStruct):
    if x.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    data = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
    return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=data.shape, dtype=data.dtype)


def _owned(data: Any, x: jax.ShapeDtypeStruct, key_impl: str | None):
    """A restored array with the sharding of the leaf `x`, in its own memory."""
    if data is None:  # of size 0, not stored
        data = np.zeros(x.shape, x.dtype)
        return data if x.sharding is None else jax.device_put(data, x.sharding)
    if x.sharding is None:
        return data
    if next(iter(x.sharding.device_set)).platform == "cpu":
        data = jnp.copy(data)  # on a CPU an array may share the reader's memory, which must not be donated
    return jax.random.wrap_key_data(data, impl=key_impl) if key_impl else data
