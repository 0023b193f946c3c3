"""Weights of a network that is trained already: the best checkpoint of a run of ours, or a file from PyTorch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.training import checkpoint
from robustgrad_jax import models

_EXPERIMENT = "robustgrad_jax.experiment"


def load(source: str | Path, config: Mapping, template: Mapping) -> dict[str, Any]:
    """The variables of a trained network, on the host.

    Args:
      source: the directory of a finished or interrupted run of `robustgrad_jax.experiment`, whose best checkpoint is
        taken; or a safetensors file with PyTorch's names, as `models.load` reads them.
      config: the config of the run that asks; a run directory must have been trained with the same `model`.
      template: the network's variables as `jax.ShapeDtypeStruct`, for the data at hand.

    Returns:
      {"params": …, "batch_stats": …} of the template's shapes and types.

    Raises:
      FileNotFoundError, ValueError: there is nothing there, it is neither of the two, or it is another network's; the
        message names what differs.
    """
    path = Path(source)
    if path.is_file():
        return _from_file(path, config.model.name, template)
    if not path.exists():
        raise FileNotFoundError(f"config.init_from={str(source)!r}: there is no such run directory or file")
    stored_path = path / "config.json"
    if not stored_path.is_file():
        raise ValueError(f"config.init_from={str(source)!r}: no run directory, it has no config.json")
    stored = json.loads(stored_path.read_text())
    if stored.get("experiment") != _EXPERIMENT:
        members = ", ".join(sorted(str(p.parent) for p in path.glob("*/checkpoints"))) or "none"
        raise ValueError(
            f"config.init_from={str(source)!r} is a run of {stored.get('experiment')!r}, not of {_EXPERIMENT!r}; "
            f"runs inside it: {members}"
        )
    _check_same_model(path, stored["model"], config.model)
    return _from_run(path, (stored["loop"]["best_metric"], stored["loop"]["best_mode"]), template)


def _check_same_model(path: Path, stored: Mapping, asked: Mapping) -> None:
    # The activation is in no weight: another one would change every number without a word.
    differences = [key for key in sorted(stored) if stored[key] != asked.get(key)]
    if differences:
        shown = "; ".join(f"model.{k} is {stored[k]!r} there and {asked.get(k)!r} here" for k in differences)
        flags = " ".join(f"--config.model.{k}={stored[k]}" for k in differences)
        raise ValueError(f"config.init_from={str(path)!r}: {shown}; its network is {flags}")


def _from_run(path: Path, best: tuple[str, str], template: Mapping) -> dict[str, Any]:
    folder = path / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"config.init_from={str(path)!r}: the run has no checkpoints yet")
    with checkpoint.Checkpoints(folder, best=best) as checkpoints:
        variables, _, _ = checkpoints.restore_best(dict(template), part=True)
    return variables


def _from_file(path: Path, name: str, template: Mapping) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        raise ValueError(f"config.init_from={str(path)!r}: a file must be .safetensors, with PyTorch's names")
    found = {"batch_stats": {}} | models.load(name, path)
    wanted, loaded = dict(jax.tree.leaves_with_path(dict(template))), dict(jax.tree.leaves_with_path(found))
    wrong = [
        f"{jax.tree_util.keystr(key, simple=True, separator='/')} has shape {loaded[key].shape}, not {leaf.shape}"
        for key, leaf in wanted.items()
        if loaded[key].shape != leaf.shape
    ]
    if wrong:  # the names were checked when it was read
        raise ValueError(f"config.init_from={str(path)!r} is a {name} for other images or classes: {'; '.join(wrong)}")
    return jax.tree.map(lambda leaf, array: np.asarray(array, leaf.dtype), dict(template), found)
