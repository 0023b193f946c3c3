"""Training the classifier that is to be debiased, as usual: empirical risk minimisation through the shared loop.

A network for Scenes is pretrained first, on what is in the images: the stand-in for ImageNet weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import linen as nn
from ml_collections import ConfigDict

from launch.data import Arrays, Split, augment, feed, scenes
from launch.data.scenes import world
from launch.data.splits import select
from launch.run import Run
from launch.training import checkpoint, duration, keys, loop, optim, sharding
from launch.training.state import NormState as State
from tldr_jax import datasets, stages
from tldr_jax.classifier import backbones

SELECT = {"last": None, "best_accuracy": ("val/accuracy", "max"), "best_wga": ("val/wga", "max")}
_HELD_OUT = 0xA47  # keeps the draw apart from others of the same seed
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalisation(config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1] units: the config's, else ImageNet's."""
    mean, std = (tuple(config.backbone[k]) or default for k, default in zip(("mean", "std"), _IMAGENET, strict=True))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"backbone.mean={mean} and backbone.std={std} need three values, std positive ones")
    return mean, std


def make_prepare(config, images: bool) -> Callable:
    """`prepare(batch, step=None) -> (x, labels)`, pure; with a step, images in memory are cropped and flipped.

    Args:
      config: of the run.
      images: whether they are in memory; streamed ones are augmented on the host.
    """
    mean, std = normalisation(config)

    def prepare(batch, step=None):
        resident = batch.get(sharding.RESIDENT, {})
        batch = feed.materialise(batch, {k: resident[k] for k in ("images", "labels") if images})
        image = batch["image"]
        if images and step is not None:
            key = keys.stream(config.seed, "augment", step)
            image = augment.crop_flip(
                key, image, batch["slot"], padding=config.data.crop_padding, flip=config.data.flip
            )
        return augment.normalise(image, mean, std), batch["label"]

    return prepare


def make_step(model: nn.Module, optimizer: optax.GradientTransformation, loss: Callable, prepare: Callable) -> Callable:
    """`step(state, batch, *, axis_name=None) -> (state, metrics)`: one update by the mean of `loss(logits, labels)`."""

    def step(state: State, batch, *, axis_name: str | None = None):
        x, labels = prepare(batch, state.step)

        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            (logits, _), updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
            return loss(logits, labels).mean(), updates.get("batch_stats", {})

        (value, batch_stats), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        if axis_name is not None:
            gradients, batch_stats, value = jax.lax.pmean((gradients, batch_stats, value), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        logs = {loop.LOSS: value, "gradient_norm": optax.global_norm(gradients)}
        return State(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state), logs

    return step


def attribute_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropies of Scenes' five attributes, summed: logits (b, 36), labels (b, 5) -> (b,)."""
    parts = jnp.split(logits, np.cumsum(world.COUNTS)[:-1], axis=1)
    losses = [optax.softmax_cross_entropy_with_integer_labels(part, labels[:, i]) for i, part in enumerate(parts)]
    return sum(losses)


def _fit(
    run: Run,
    layout: sharding.Layout,
    options,
    *,
    seed: int,
    model: nn.Module,
    variables: Mapping[str, Any],
    split: Split,
    resident: Mapping[str, np.ndarray],
    loss: Callable,
    prepare: Callable,
    evaluate: Callable | None = None,
    best: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Train from `variables`; those of the last step, or of the best by `best`, on the host."""
    layout.check_batch(options.batch_size)
    optimizer, _, steps, to_steps = optim.of_run(options, examples=len(split))
    state = State(jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"]))
    if not steps:
        return jax.tree.map(np.asarray, state.variables)
    with run.checkpoints(best=best) as checkpoints:
        state = loop.fit(
            run,
            state=state,
            step=make_step(model, optimizer, loss, prepare),
            batches=lambda start: feed.train_batches(
                split,
                seed=seed,
                batch_size=options.batch_size,
                start=start,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            steps=steps,
            layout=layout,
            checkpoints=checkpoints,
            evaluate=evaluate,
            resident=resident,
            log_every=options.log_every,
            eval_every=to_steps(options.eval_every),
            checkpoint_every=to_steps(options.checkpoint_every),
        )
        if best is not None:
            state, at, _ = checkpoints.restore_best(checkpoint.abstract(state))
            logging.info("erm: the best by %s is step %d of %d", best[0], at, steps)
    return jax.tree.map(np.asarray, state.variables)


def _child(run: Run, config, stage: str) -> Run:
    """The run directory of a trained stage, in stages/KEY of a run."""
    nested: dict[str, Any] = {}
    for name, value in stages.described(config, stage).items():
        *parents, leaf = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return run.child(f"stages/{stages.key(config, stage)}", ConfigDict(nested))


def pretrain(config, run: Run, layout: sharding.Layout) -> dict[str, Any] | None:
    """The variables of a network that tells the attributes of Scenes' images; None without pretraining.

    No held-out composition is in what it sees. Its seed is `config.pretrain.seed`, whatever the seed of the run is: as
    all runs start from the same ImageNet weights elsewhere.
    """
    options = config.pretrain
    if not duration.to_steps(options.duration, examples=options.examples, batch_size=options.batch_size):
        return None
    if config.data.name != "scenes":
        raise ValueError(
            f"pretrain.duration={options.duration!r}: attributes are known for Scenes only, not for "
            f"{config.data.name!r}; set it to '0 steps' and erm.init_from to published weights"
        )
    child = _child(run, config, "pretrain")
    try:
        pairs = scenes.pairs(options.seed, options.examples, held_out=False, captions_per_image=0)
        images = Arrays(pairs.images, np.zeros(len(pairs.images), np.int32))
        model = backbones.create(config.backbone.name, sum(world.COUNTS))
        prepare = make_prepare(config, images=True)
        return _fit(
            child,
            layout,
            options,
            seed=options.seed,
            model=model,
            variables=_init(model, images.image_shape, options.seed),
            split=images,
            resident={"images": pairs.images, "labels": pairs.attributes},
            loss=attribute_loss,
            prepare=lambda batch, step: prepare(batch),  # not augmented: colour and place are what is asked for
        )
    finally:
        child.close()


def train(config, run: Run, layout: sharding.Layout, data: datasets.Grouped) -> dict[str, Any]:
    """Train the classifier, or go on training; its variables, on the host.

    Args:
      config: of the run: `erm`, `backbone`, `data`, `seed`.
      run: the run directory; checkpoints and metrics are in stages/KEY of it.
      layout: devices.
      data: the data set.

    Raises:
      ValueError: an unknown `erm.select`, or weights that do not fit.
    """
    options = config.erm
    if options.select not in SELECT:
        raise ValueError(f"unknown erm.select={options.select!r}; there are {', '.join(SELECT)}")
    seen, _ = held_out(config, len(data.parts["train"]))
    part = select(datasets.split(data.parts["train"], config.data), seen)
    model = backbones.create(config.backbone.name, len(data.classes))
    variables = _init(model, part.image_shape, config.seed)
    if options.init_from:
        variables = backbones.load(
            config.backbone.name, options.init_from, part.image_shape, variables, keep_head=options.keep_head
        )
    elif (pretrained := pretrain(config, run, layout)) is not None:
        head = {backbones.HEAD: variables["params"][backbones.HEAD]}
        variables = pretrained | {"params": pretrained["params"] | head}
    prepare = make_prepare(config, isinstance(part, Arrays))
    child = _child(run, config, "erm")
    try:
        return _fit(
            child,
            layout,
            options,
            seed=config.seed,
            model=model,
            variables=variables,
            split=part,
            resident=feed.resident(part),
            loss=optax.softmax_cross_entropy_with_integer_labels,
            prepare=prepare,
            evaluate=_validation(config, layout, data, model, prepare),
            best=SELECT[options.select],
        )
    finally:
        child.close()


def held_out(config, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of n training images that ERM sees, and those that it does not (`erm.held_out`): int, in order."""
    if not 0 <= config.erm.held_out < 1:
        raise ValueError(f"erm.held_out={config.erm.held_out} is a share of the training images: from 0 to below 1")
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence((config.seed, _HELD_OUT)))).permutation(n)
    kept = round(n * config.erm.held_out)
    return np.sort(order[kept:]), np.sort(order[:kept])


def _init(model: nn.Module, image_shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    variables = jax.jit(model.init)(keys.stream(seed, "init"), jnp.zeros((1, *image_shape)))
    return jax.tree.map(np.asarray, {"batch_stats": {}} | dict(variables))


def _validation(config, layout: sharding.Layout, data: datasets.Grouped, model: nn.Module, prepare: Callable):
    """`state -> {"val/accuracy", "val/wga"}`; a group that validation lacks does not count."""
    part = datasets.split(data.parts["val"], config.data)
    groups = np.flatnonzero(data.counts("val"))
    resident = layout.replicate(feed.resident(part) | {"groups": data.groups("val")})
    size = -(-min(config.evaluation.batch_size, len(part)) // layout.data_shards) * layout.data_shards

    def correct(variables, batch, repeat):
        del repeat
        x, labels = prepare(batch)
        hit = model.apply(variables, x)[0].argmax(-1) == labels
        group = jnp.take(batch[sharding.RESIDENT]["groups"], batch["slot"], mode="clip")
        hits = {f"hits/{g}": hit & (group == g) for g in groups}
        return {"accuracy": hit} | hits | {f"members/{g}": group == g for g in groups}

    def evaluate(state: State) -> dict[str, float]:
        batches = feed.eval_batches(
            part, batch_size=size, process_index=jax.process_index(), process_count=jax.process_count()
        )
        found = loop.masked_means(layout, correct, state.variables, batches, resident=resident)
        worst = min(found[f"hits/{g}"] / found[f"members/{g}"] for g in groups)
        return {"val/accuracy": found["accuracy"], "val/wga": worst}

    return evaluate
