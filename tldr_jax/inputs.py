"""What every method of an experiment starts from: data, CLIP, the classifier's head, and two tables of embeddings."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import clip_jax
from launch.run import Run
from launch.training import sharding
from tldr_jax import datasets, heads, metrics, stages
from tldr_jax.classifier import backbones, erm, features
from tldr_jax.datasets import Grouped
from tldr_jax.heads import Head


@dataclass(frozen=True)
class Inputs:
    """See `prepare`.

    Attributes:
      data: images with classes and spurious values.
      clip: the CLIP.
      head: the classifier's own.
      features: (n, f) by split, what the head takes.
      images: (n, d) by split, CLIP's embeddings, not normalised.
    """

    data: Grouped
    clip: clip_jax.Clip
    head: Head
    features: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray]

    @property
    def names(self) -> metrics.Names:
        return self.data.classes, self.data.spurious

    @functools.cached_property
    def train_counts(self) -> np.ndarray:
        """Training images of each group, (C, S)."""
        return self.data.counts("train").reshape(self.data.allowed.shape)

    def labels(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Classes and spurious values of a split's images, (n,) both."""
        return self.data.parts[split].classes, self.data.parts[split].spurious

    def test(self, head: Head, embeddings: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
        """`metrics.summary` of a head on the test images' features, or on other `embeddings`."""
        found = metrics.summary(
            heads.predictions(head, (embeddings or self.features)["test"]),
            *self.labels("test"),
            allowed=self.data.allowed,
            train_counts=self.train_counts,
            names=self.names,
        )
        return dict(found)


def prepare(config, run: Run, *, data: Grouped | None = None, clip: clip_jax.Clip | None = None) -> Inputs:
    """Data, the trained classifier and its features, CLIP's embeddings: made now or found in the run directory.

    Args:
      config: of the run.
      run: the run directory.
      data, clip: of this config (`read`, `load_clip`), where a caller has them already.

    Raises:
      FileNotFoundError, ValueError: data, weights or a CLIP that are not there or do not fit; what is wrong is named.
    """
    layout = sharding.layout(config.sharding.mode)
    kind = backbones.kind(config.backbone.name)
    if kind.image_size and config.data.image_size != kind.image_size:
        raise ValueError(
            f"{config.backbone.name} takes images of {kind.image_size} pixels: set data.image_size={kind.image_size}"
        )
    data, clip = data or read(config.data), clip or load_clip(config.clip.source)
    trained = functools.cache(lambda: erm.train(config, run, layout, data))
    head = stages.keep(run, config, "erm", lambda: dict(trained()["params"][backbones.HEAD]))
    tables = features.tables(config, run, data, clip, trained)
    return Inputs(data, clip, Head(head["kernel"], head["bias"]), *tables)


def read(config) -> Grouped:
    """`datasets.load`, with groups that can be evaluated.

    Raises:
      ValueError: also a group without a validation or test image, by its name.
    """
    data = datasets.load(config)
    for name in ("val", "test"):
        counts = data.counts(name)
        for group in np.flatnonzero(data.allowed.ravel() & (counts == 0)):
            raise ValueError(f"there is no {name} image of {data.group_name(group)}: its accuracy is not defined")
    return data


def load_clip(source: str) -> clip_jax.Clip:
    """A folder, a hub name, or "embedded:NAME"."""
    prefix = "embedded:"
    return clip_jax.load(clip_jax.embedded(source.removeprefix(prefix)) if source.startswith(prefix) else source)
