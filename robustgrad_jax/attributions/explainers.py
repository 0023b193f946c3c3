"""Attributions by name, with the options that a data set and the settings of an evaluation give them."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from launch.data import Splits, feed
from launch.data import splits as data_splits
from launch.training import keys, sharding
from robustgrad_jax import attributions, lrp
from robustgrad_jax.measures.evaluation import Prepare

LRP = "lrp_"
_BOXES = tuple(LRP + name for name in lrp.BOXES)


@dataclass(frozen=True, eq=False)
class Explainer:
    """(model, variables, x, y, slots) -> the attribution (n, h, w, c).

    Equal to itself alone, so that it is hashable whatever its options are: programs compiled for it are reused as
    long as it is the same object.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, variables: Any, x: Array, y: Array, slots: Array, /) -> Array:
        if self.name.startswith(LRP):
            return lrp.relevance(model, variables, x, y, self.name.removeprefix(LRP), **self.options)
        return attributions.create(self.name, model, variables, **self.options)(x, y, slots)


def create(
    name: str, options: Mapping[str, Any], *, model: nn.Module, splits: Splits, prepare: Prepare, seed: int
) -> Explainer:
    """The attribution called `name`.

    Args:
      name: of `attributions.NAMES`, or "lrp_" and one of `lrp.NAMES`.
      options: plain ones; "references" is how many training images expected_gradients draws from (0: all), "layer" of
        grad_cam may be "" for the last one.
      model: the network that is explained.
      splits: whose training images expected_gradients refers to; mean and std give the range of x.
      prepare: batch -> (x normalised, y).
      seed: of random draws.
    """
    made = dict(options)
    if name in ("smoothgrad", "expected_gradients"):
        made["key"] = keys.stream(seed, name)
    if name == "expected_gradients":
        made["references"] = _references(splits, prepare, options["references"], seed)
    if name == "grad_cam":
        made |= {"layer": options["layer"] or _last_layer(model, splits.image_shape), "resize": True}
    if name in _BOXES:
        mean, std = (np.asarray(value, np.float32) for value in (splits.mean, splits.std))
        made |= {"low": (0 - mean) / std, "high": (1 - mean) / std}
    return Explainer(name, made)


@functools.cache
def check(name: str, layer: str, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Validate, by tracing it, that a network can have an attribution that looks inside it.

    Args:
      name: as in `create`.
      layer: of grad_cam.
      model: the network.
      image_shape: (h, w, c).

    Raises:
      ValueError, TypeError: the network lacks a layer, a kind of layer or the field `activation`.
    """
    options: dict[str, Any] = {}
    if name == "grad_cam":
        options = {"layer": layer or _last_layer(model, image_shape), "resize": True}
    elif name in _BOXES:
        options = {"low": -1.0, "high": 1.0}
    elif not name.startswith(LRP) and name not in attributions.OF_MODEL:
        return  # works with any differentiable network
    x = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    y = jax.ShapeDtypeStruct((2,), np.int32)
    traced = jax.eval_shape(functools.partial(Explainer(name, options), model), _variables(model, x), x, y, y)
    if len(traced.shape) != 4 or traced.shape[:3] != x.shape[:3]:
        raise ValueError(f"attribution {name!r} has shape {traced.shape} for images of shape {x.shape}")


def _variables(model: nn.Module, x: jax.ShapeDtypeStruct) -> dict:
    return {"batch_stats": {}} | jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)


def _last_layer(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Grad-CAM's usual layer: the last before the classifier that has spatial axes, after its activation."""
    x = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    _, out = jax.eval_shape(model.apply, _variables(model, x), x)
    spatial = sorted(name for name, leaf in out.items() if len(leaf.shape) == 4 and not name.startswith("pool"))
    return max((name for name in spatial if name.startswith(("conv", "layer"))), default=spatial[-1])


def _references(splits: Splits, prepare: Prepare, count: int, seed: int) -> np.ndarray:
    """Training images (count, h, w, c), normalised, the same for every process."""
    few = data_splits.subset(splits.train, seed=seed, examples=count, name="evaluation.references")
    batch = next(iter(feed.eval_batches(few, batch_size=len(few))))
    place = jax.tree.map(jnp.asarray, feed.resident(few))
    return np.asarray(prepare(batch | {sharding.RESIDENT: place})[0])
