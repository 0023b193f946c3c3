"""Training a classifier as usual, by the mean of a loss: the pure parts of empirical risk minimisation."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from launch.data import Split, augment, feed
from launch.data.scenes import world
from launch.training import keys
from launch.training.accumulation import Parts, differentiate
from launch.training.means import masked_means
from launch.training.optim import descend
from launch.training.program import Batch, Numbers, Step
from launch.training.program import NormState as State
from launch.training.sharding import RESIDENT, Layout
from tldr_jax.classifier.backbones import Backbone

_HELD_OUT = 0xA47  # keeps the draw apart from others of the same seed


class Loss(Protocol):
    """Losses (b,) of logits (b, outputs) and labels (b, …)."""

    def __call__(self, logits: jax.Array, labels: jax.Array, /) -> jax.Array: ...


class PrepareImages(Protocol):
    """A batch as the network takes it: images (b, h, w, c), normalised, and labels (b, …); pure."""

    def __call__(self, numbers: Numbers, batch: Batch, step: jax.Array, /) -> tuple[jax.Array, jax.Array]: ...


class MakeOptimizer(Protocol):
    """The optimiser of some numbers, which may be traced."""

    def __call__(self, numbers: Numbers, /) -> optax.GradientTransformation: ...


def make_step(model: nn.Module, loss: Loss, prepare: PrepareImages, optimizer_of: MakeOptimizer, parts: Parts) -> Step:
    """One update by the mean of the loss over the parts of a batch; a step of `launch.training.program`."""

    def step(numbers: Numbers, state: State, batch: Batch, *, axis_name: str | None = None):
        x, labels = prepare(numbers, batch, state.step)

        def objective(params, rows):
            x, labels = rows
            variables = {"params": params, "batch_stats": state.batch_stats}
            (logits, _), updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
            return loss(logits, labels).mean(), updates.get("batch_stats", {})

        optimizer = optimizer_of(numbers)
        differentiated = differentiate(objective, (x, labels), parts.along(axis_name))
        params, opt_state, stats, metrics = descend(differentiated, state.params, optimizer, state.opt_state, axis_name)
        return State(state.step + 1, params, stats, opt_state), metrics

    return step


def images_and_labels(batch: Batch) -> dict[str, jax.Array]:
    """The batch with `image`, uint8, and `label`, gathered from resident arrays where the images are in memory."""
    resident = batch.get(RESIDENT, {})
    return feed.materialize(dict(batch), {name: resident[name] for name in ("images", "labels") if name in resident})


def augmented(batch: Batch, seed: Any, step: jax.Array, *, padding: int, flip: bool) -> dict[str, jax.Array]:
    """`images_and_labels`, with images in memory cropped and flipped; streamed ones are augmented on the host.

    Args:
      batch: of a training step.
      seed: of the augmentation, an int or a traced integer.
      step: number of the training step.
      padding: pixels of zeros on each side before a random crop.
      flip: flip at random.
    """
    full = images_and_labels(batch)
    if "images" not in batch.get(RESIDENT, {}):
        return full
    key = keys.stream(seed, "augment", step)
    return full | {"image": augment.crop_flip(key, full["image"], batch["slot"], padding=padding, flip=flip)}


def attribute_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropies of Scenes' five attributes, summed: logits (b, 36), labels (b, 5) -> (b,)."""
    parts = jnp.split(logits, np.cumsum(world.COUNTS)[:-1], axis=1)
    losses = [optax.softmax_cross_entropy_with_integer_labels(part, labels[:, i]) for i, part in enumerate(parts)]
    return sum(losses, start=jnp.zeros(()))


def held_out(examples: int, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the training images: rows that ERM sees, and a share held out for AFR; int, both in order.

    Args:
      examples: the number of images.
      share: the part held out, from 0 to below 1.
      seed: of the draw.
    """
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _HELD_OUT)))).permutation(examples)
    kept = round(examples * share)
    return np.sort(order[kept:]), np.sort(order[:kept])


def init(model: nn.Module, image_shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    """Fresh variables of a network, on the host."""
    variables = jax.jit(model.init)(keys.stream(seed, "init"), jnp.zeros((1, *image_shape)))
    return jax.tree.map(np.asarray, {"batch_stats": {}} | dict(variables))


def validation(
    layout: Layout, backbone: Backbone, model: nn.Module, split: Split, groups: np.ndarray, *, batch_size: int
):
    """`state -> {"val/accuracy", "val/wga"}`; groups without an image in the split do not count.

    Args:
      layout: devices.
      backbone: how images are normalised.
      model: the network.
      split: validation images.
      groups: the group of each, int32 (n,).
      batch_size: images per step, rounded up to a multiple of the devices.
    """
    present = np.unique(groups)
    resident = layout.replicate(feed.resident(split) | {"groups": groups})
    size = -(-min(batch_size, len(split)) // layout.data_shards) * layout.data_shards

    def correct(variables, batch, repeat):
        del repeat
        full = images_and_labels(batch)
        hit = model.apply(variables, backbone.normalize(full["image"]))[0].argmax(-1) == full["label"]
        group = jnp.take(batch[RESIDENT]["groups"], batch["slot"], mode="clip")
        hits = {f"hits/{g}": hit & (group == g) for g in present}
        return {"accuracy": hit} | hits | {f"members/{g}": group == g for g in present}

    def evaluate(state: State) -> Mapping[str, float]:
        batches = feed.eval_batches(split, batch_size=size, **layout.share)
        means = masked_means(layout, correct, state.variables, batches, resident=resident)
        worst = min(means[f"hits/{g}"] / means[f"members/{g}"] for g in present)
        return {"val/accuracy": means["accuracy"], "val/wga": worst}

    return evaluate
