"""The attributions that `config.evaluation` names, with the options that config and data give them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from launch.data import Splits, feed
from launch.data import splits as data_splits
from launch.training import keys, sharding
from robustgrad_jax import attributions, lrp

LRP = "lrp_"


@dataclass(frozen=True, eq=False)
class Explainer:
    """(model, variables, x, y, slots) -> the attribution (n, h, w, c).

    Equal to itself alone, so that it is hashable whatever its options are: what is compiled for it is found again as
    long as it is the same object.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, variables, x: jax.Array, y: jax.Array, slots: jax.Array) -> jax.Array:
        if self.name.startswith(LRP):
            return lrp.relevance(model, variables, x, y, self.name.removeprefix(LRP), **self.options)
        return attributions.create(self.name, model, variables, **self.options)(x, y, slots)


def names(options: Mapping) -> tuple[str, ...]:
    """The attributions of a `config.evaluation`: its attributions, then LRP by its composites ("lrp_epsilon_plus").

    Raises:
      ValueError: one of them does not exist; the message lists those that do.
    """
    for key, known in {"attributions": attributions.NAMES, "composites": lrp.NAMES}.items():
        for name in options[key]:
            if name not in known:
                raise ValueError(f"evaluation.{key} has {name!r}; there are {', '.join(known)}")
    return (*options.attributions, *(LRP + name for name in options.composites))


def create(config, model: nn.Module, splits: Splits, prepare: Callable) -> dict[str, Explainer]:
    """Name -> attribution, for all that a config names.

    Args:
      config: of the run.
      model: the network that is explained.
      splits: their training images are what expected_gradients refers to, mean and std what gives the range of x.
      prepare: batch -> (x normalised, y).

    Raises:
      ValueError: an attribution does not exist, or this network cannot have it: a layer or a kind of layer is missing.
        It is traced here, so that this shows before anything is computed.
    """
    options, seed = config.evaluation, config.seed
    given = {
        "integrated_gradients": lambda: {"steps": options.path_steps},
        "smoothgrad": lambda: {
            "samples": options.samples,
            "level": options.noise_level,
            "key": keys.stream(seed, "smoothgrad"),
        },
        "expected_gradients": lambda: {
            "samples": options.samples,
            "references": _references(splits, prepare, options.references, seed),
            "key": keys.stream(seed, "expected_gradients"),
        },
        "grad_cam": lambda: {"layer": options.grad_cam_layer or _last_layer(model, splits), "resize": True},
        "lrp_epsilon_gamma_box": lambda: {
            bound: (pixel - np.asarray(splits.mean, np.float32)) / np.asarray(splits.std, np.float32)
            for bound, pixel in (("low", 0), ("high", 1))
        },
    }
    found = {name: Explainer(name, given.get(name, dict)()) for name in names(options)}
    for explainer in found.values():
        _trace(explainer, model, splits)
    return found


def _trace(explainer: Explainer, model: nn.Module, splits: Splits) -> None:
    x = jax.ShapeDtypeStruct((2, *splits.image_shape), np.float32)
    y = jax.ShapeDtypeStruct((2,), np.int32)
    found = jax.eval_shape(partial(explainer, model), _variables(model, x), x, y, y)
    if len(found.shape) != 4 or found.shape[:3] != x.shape[:3]:
        raise ValueError(f"attribution {explainer.name!r} has shape {found.shape} for images of shape {x.shape}")


def _variables(model: nn.Module, x: jax.ShapeDtypeStruct) -> dict:
    return {"batch_stats": {}} | jax.eval_shape(model.init, jax.random.key(0), x)


def _last_layer(model: nn.Module, splits: Splits) -> str:
    """Grad-CAM's usual layer: the last before the classifier that has spatial axes, after its activation."""
    x = jax.ShapeDtypeStruct((1, *splits.image_shape), np.float32)
    _, out = jax.eval_shape(model.apply, _variables(model, x), x)
    spatial = sorted(name for name, leaf in out.items() if len(leaf.shape) == 4 and not name.startswith("pool"))
    return max((name for name in spatial if name.startswith(("conv", "layer"))), default=spatial[-1])


def _references(splits: Splits, prepare: Callable, count: int, seed: int) -> jax.Array:
    """Training images (count, h, w, c), normalised, the same for every process."""
    few = data_splits.subset(splits.train, seed=seed, examples=count, name="evaluation.references")
    batch = next(iter(feed.eval_batches(few, batch_size=len(few))))
    place = jax.tree.map(jnp.asarray, feed.resident(few))
    return np.asarray(prepare(batch | {sharding.RESIDENT: place})[0])
