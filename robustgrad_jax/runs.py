"""What a run trained, for use outside of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from launch.data import Splits
from launch.files import load_json
from launch.reading import MissingInput, paths
from launch.run import Run
from launch.store import Store
from launch.sweeps.members import tuples
from robustgrad_jax import experiment
from robustgrad_jax.stages.inputs import EXPERIMENT, ImageSplits


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network with what it takes to use it.

    Attributes:
      model: linen module, (variables, x) -> (logits, out).
      variables: its weights and running statistics.
      mean, std: per channel: x is (pixels in [0, 1] − mean) / std.
      classes: class names; logit k is of `classes[k]`.
      config: of the run, flat names as `config.a.b`.
      images: the stage of its data.
    """

    model: nn.Module
    variables: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    config: Any  # a ConfigDict
    images: ImageSplits

    def splits(self) -> Splits:
        """The data that it was trained, validated and tested on, read anew."""
        return self.images.data.load(self.images.seed)


def load_run(path: str | Path) -> TrainedNetwork:
    """The network of a run directory.

        network = load_run("runs/digits_lenet")
        x = (pixels / 255 - network.mean) / network.std
        logits, _ = network.model.apply(network.variables, x)

    Args:
      path: of a run of this experiment, whose training is finished; or a member's folder of a sweep.

    Raises:
      MissingInput: there is no such run, or its training is not finished.
      ValueError: it is a run of another experiment, or made by another version whose config this one cannot read.
    """
    folder = paths.path(path, "path")
    if not (folder / "config.json").is_file():
        raise MissingInput(f"{folder} is not a run directory: it has no config.json")
    config = ConfigDict(tuples(load_json(folder / "config.json")))
    if config.get("experiment") != EXPERIMENT:
        raise ValueError(f"{folder} is a run of {config.get('experiment')!r}, not of {EXPERIMENT!r}")
    weights = experiment.plan(config).weights
    store = Store(Run(folder).store_path())
    if weights.KEPT and not store.has(weights):
        raise MissingInput(f"{folder}: its training is not finished; run its command again")
    spec, (mean, std) = weights.images.data.spec(), weights.images.data.statistics()
    return TrainedNetwork(
        model=weights.architecture.module(spec),
        variables=store.get(weights)["variables"],
        mean=mean,
        std=std,
        classes=spec.classes,
        config=config,
        images=weights.images,
    )
