"""What a run begins with: its data, the architecture, and networks that were trained before."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn

from launch.data import Arrays, DataSet, Spec, Splits
from launch.files import load_json, load_tree
from launch.networks import activations
from launch.networks.dtypes import DTYPES
from launch.reading import paths, shown
from launch.run import PLAN
from launch.stages import File, SettingError, Stage, about, require_known, require_number, stackable
from launch.store import Store
from robustgrad_jax import models

Variables = dict[str, Any]  # {"params": …, "batch_stats": …}
EXPERIMENT = "robustgrad_jax.experiment"
_AGAIN = "run its command again"
TRAINED = "Classifier"  # the stage whose network `TrainedRun` takes


@dataclass(frozen=True)
class ImageSplits(Stage):
    """A data set, cut into training, validation and test images by the seed."""

    KEPT: ClassVar[bool] = False

    data: DataSet
    seed: int = stackable(0)

    def preflight(self, store: Store) -> None:
        store.get(self)

    def make(self, store: Store) -> Splits:
        splits = self.data.load(self.seed)
        logging.info("%s", splits.note)
        return splits

    def outline(self) -> Splits:
        """The same with zeros for images and labels, which take no memory; no image is read for it."""
        spec, (mean, std) = self.data.spec(), self.data.statistics()
        zeros = lambda n: Arrays(
            np.broadcast_to(np.zeros((), np.uint8), (n, *spec.image_shape)), np.broadcast_to(np.zeros((), np.int32), n)
        )
        train, val, test = map(zeros, (spec.examples, spec.val_examples, spec.test_examples))
        return Splits(train, val, test, spec.classes, mean, std, spec.image_shape, "an outline")


@dataclass(frozen=True)
class Architecture:
    """A network without its weights: the section `model` of a config.

    Attributes:
      name: of `robustgrad_jax.models.NAMES`.
      activation: "relu", "softplus", "gelu" or "silu"; ReLU has no second derivative.
      beta: sharpness of softplus.
      precision: of its products, see `launch.processes.compiling`; that of the run, not of the section.
      dtype: of activations and products, see `launch.networks.dtypes`; relevance is propagated in float32.
    """

    name: str = "lenet"
    activation: str = "softplus"
    beta: float = 3.0
    precision: str = "default"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_known(self, "name", models.NAMES)
        require_known(self, "dtype", DTYPES)
        require_number(self, "beta", above=0)
        with about("activation"):
            activations.get(self.activation, self.beta)

    def module(self, spec: Spec) -> nn.Module:
        """The linen module for a data set: (variables, x) -> (logits, out)."""
        options: dict[str, Any] = dict(activation=self.activation, beta=self.beta, dtype=self.dtype)
        return models.create(self.name, num_classes=len(spec.classes), **options)

    def shapes(self, spec: Spec) -> Variables:
        """Its variables as `jax.ShapeDtypeStruct`."""
        module = self.module(spec)
        template = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *spec.image_shape))))
        return {"batch_stats": {}} | dict(template)


@dataclass(frozen=True)
class Pretrained(Stage):
    """A network that was trained before; its result has "variables", as that of a `Classifier`.

    Attributes:
      images: what it is measured on, or trained further.
      architecture: the architecture that its weights must have.
      source: where the weights are.
    """

    KEPT: ClassVar[bool] = False

    images: ImageSplits
    architecture: Architecture
    source: File

    def read(self) -> Mapping[str, Any]:
        """The variables in the source, unchecked."""
        raise NotImplementedError(f"{type(self).__name__} has no read()")

    def variables(self) -> Variables:
        """The variables, on the host.

        Raises:
          SettingError: the network is for other images or classes; the message lists what differs.
        """
        shapes = self.architecture.shapes(self.images.data.spec())
        stored = {"batch_stats": {}} | dict(self.read())
        here, there = _leaves(shapes), _leaves(stored)
        wrong = [
            f"{path} has shape {_shape(there.get(path))}, not {_shape(here.get(path))}"
            for path in sorted(here.keys() | there.keys())
            if _shape(there.get(path)) != _shape(here.get(path))
        ]
        if wrong:
            what = f"{self.source.path!r}: a {self.architecture.name} for other images or classes"
            raise SettingError("init_from", f"={what}: {'; '.join(wrong)}")
        for path, array in there.items():
            if count := np.count_nonzero(~np.isfinite(array)):
                what = f"{self.source.path!r}: {path} has {count:,} values that are NaN or infinite"
                raise SettingError("init_from", f"={what}")
        return jax.tree.map(lambda leaf, array: np.asarray(array, leaf.dtype), shapes, stored)

    def make(self, store: Store) -> dict[str, Any]:
        return {"variables": self.variables()}


@dataclass(frozen=True)
class TorchFile(Pretrained):
    """Weights from PyTorch: a safetensors file with the names that `robustgrad_jax.models.load` knows."""

    def read(self) -> Mapping[str, Any]:
        return models.load(self.architecture.name, self.source.path)


@dataclass(frozen=True)
class TrainedRun(Pretrained):
    """The network of another run, as the store of that run keeps it."""

    def read(self) -> Mapping[str, Any]:
        return load_tree(self.source.path)["variables"]


def _leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(dict(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shape(leaf: Any) -> tuple[int, ...] | None:
    return None if leaf is None else tuple(leaf.shape)


def pretrained(source: str, images: ImageSplits, architecture: Architecture) -> Pretrained:
    """The stage of a network that was trained before, after checking that it is the right one.

    Args:
      source: the directory of a run of this experiment whose training is finished, or a .safetensors file with the
        names of PyTorch.
      images: what it is measured on.
      architecture: of this config; a run must have trained the same one.

    Raises:
      SettingError: nothing is there, it is neither of the two, or it is another network, with what differs.
      ValueError: the file is damaged, or has other tensors than the network.
    """
    with about("init_from"):
        path = paths.path(source, "init_from")
        if path.is_file():
            _require_source(path.suffix == ".safetensors", source, "a file must be .safetensors, with PyTorch's names")
            stage: Pretrained = TorchFile(images, architecture, File(str(path)))
        else:
            stage = TrainedRun(images, architecture, File(str(_network_of_run(path, source, architecture))))
        stage.variables()  # reading them is quick, and shows whether they fit before any work is done
    return stage


def _network_of_run(path: Path, source: str, architecture: Architecture) -> Path:
    """The folder in which a run's store keeps the network that it trained."""
    _require_source(path.exists(), source, "no such run directory or file")
    _require_source((path / "config.json").is_file(), source, f"not a run directory: no config.json{_runs_in(path)}")
    config = load_json(path / "config.json", remedy=_AGAIN)
    other = f"a run of {config.get('experiment')!r}, not of {EXPERIMENT!r}{_runs_in(path)}"
    _require_source(config.get("experiment") == EXPERIMENT, source, other)
    # The activation is not in the weights: another one would silently change every number.
    here, there = vars(architecture), config.get("model")
    _require_source(isinstance(there, dict), source, f"its config.json has no section 'model'; {_AGAIN}")
    # Parameters are float32 whatever they were computed in.
    free = ("precision", "dtype")
    names = [name for name in sorted(here) if name not in free and there.get(name) != here[name]]
    shown = "; ".join(f"model.{name} is {there.get(name)!r} there and {here[name]!r} here" for name in names)
    flags = " ".join(f"--config.model.{name}={there.get(name)}" for name in names)
    _require_source(not names, source, f"{shown}; its network is {flags}")
    _require_source((path / PLAN).is_file(), source, f"the run has not begun: no {PLAN}")
    plan = load_json(path / PLAN, remedy=_AGAIN)
    whole = isinstance(plan.get("store"), str) and isinstance(plan.get("stages"), dict)
    _require_source(whole, source, f"its {PLAN} is damaged; {_AGAIN}")
    folders = [path / plan["store"] / key / "value" for key, kind in plan["stages"].items() if kind == TRAINED]
    _require_source(folders, source, "that run trained no network; give the source it was started from")
    _require_source(folders[0].is_dir(), source, "its training is not finished; run its command again")
    return folders[0].resolve()


def _require_source(ok: Any, source: str, problem: str) -> None:
    if not ok:
        raise SettingError("init_from", f"={shown(source)}: {problem}")


def _runs_in(path: Path) -> str:
    runs = sorted(str(config.parent) for config in path.glob("*/config.json"))
    return f"; runs inside it: {', '.join(runs)}" if runs else ""
