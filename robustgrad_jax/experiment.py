"""Train a classifier whose input gradients resist perturbation, keep the best on validation, measure it on test data.

With `config.train=False` the training is left out, and the network of `config.init_from` is measured.

Configs: `configs/robustgrad/`. Method: Joo et al., "Towards More Robust Interpretation via Local Gradient Alignment",
AAAI 2023 (arXiv 2211.15900).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import linen as nn

from launch import data
from launch.data import augment, feed
from launch.files import write_atomically
from launch.run import Run
from launch.training import checkpoint, keys, loop, optim, sharding
from launch.training.state import NormState as State
from robustgrad_jax import gallery, models, regularizers, tables, trained
from robustgrad_jax.measures import evaluation, suite

STACKED = "robustgrad_jax.stacked"  # trains several configs as one program


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape, seed: int, initial: Any = None
) -> State:
    """The initial state for images of shape (h, w, c): with the variables `initial`, or random ones."""
    variables = initial
    if variables is None:
        variables = jax.jit(model.init)(keys.stream(seed, "init"), jnp.zeros((1, *image_shape)))
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


def make_step(
    model: nn.Module, optimizer: optax.GradientTransformation, penalty: Callable, augment_batch: Callable, seed: int
) -> Callable:
    """`step(state, batch, *, axis_name=None) -> (state, metrics)`: cross-entropy plus penalty, one update.

    Args:
      penalty: from `regularizers.create`.
      augment_batch: (batch, step) -> (x normalised, y).
      seed: of the regulariser's noise.
    """

    def step(state: State, batch, *, axis_name: str | None = None):
        x, y = augment_batch(batch, state.step)
        key = keys.stream(seed, "regularizer", state.step)

        def logits_fn(params, x):
            variables = {"params": params, "batch_stats": state.batch_stats}
            (logits, _), updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
            return logits, updates.get("batch_stats", {})

        def objective(params):
            value, logits, batch_stats, parts = penalty(logits_fn, params, x, y, key, batch["slot"])
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            accuracy = (logits.argmax(-1) == y).mean(dtype=logits.dtype)
            logs = {"cross_entropy": cross_entropy, "accuracy": accuracy, **parts}
            return cross_entropy + value, (batch_stats, logs)

        (loss, (batch_stats, logs)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        logs = {loop.LOSS: loss, **logs}
        if axis_name is not None:
            gradients, batch_stats, logs = jax.lax.pmean((gradients, batch_stats, logs), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        logs["gradient_norm"] = optax.global_norm(gradients)
        return State(state.step + 1, params, batch_stats, opt_state), logs

    return step


def make_prepare(splits: data.Splits, config) -> tuple[Callable, Callable]:
    """The pure functions from a batch to (x, y): for training (batch, step), augmented, and for evaluation (batch)."""
    mean, std = splits.mean, splits.std

    def prepare(batch):
        batch = feed.materialise(batch, batch.get(sharding.RESIDENT, {}))
        return augment.normalise(batch["image"], mean, std), batch["label"]

    def augmented(batch, step):
        batch = feed.materialise(batch, batch.get(sharding.RESIDENT, {}))
        image = batch["image"]
        if isinstance(splits.train, data.Arrays):  # streamed images were cropped and flipped on the host
            key = keys.stream(config.seed, "augment", step)
            image = augment.crop_flip(
                key, image, batch["slot"], padding=config.data.crop_padding, flip=config.data.flip
            )
        return augment.normalise(image, mean, std), batch["label"]

    return augmented, prepare


def best_of(config) -> tuple[str, str]:
    """What the best checkpoint goes by: a metric of validation, and max or min."""
    return config.loop.best_metric, config.loop.best_mode


def check_best(config) -> None:
    """Refuse, before training, a choice of the best checkpoint that there is not."""
    names = ("val/accuracy", "val/cross_entropy")
    if config.loop.best_metric not in names or config.loop.best_mode not in ("max", "min"):
        raise ValueError(
            f"loop.best_metric={config.loop.best_metric!r}, loop.best_mode={config.loop.best_mode!r}: the metrics are "
            f"{', '.join(names)}, the modes max and min"
        )


def train(config, run: Run, layout: sharding.Layout, model, splits: data.Splits, penalty: Callable, initial):
    """Train, or go on training; the variables of the best checkpoint, on the devices, and its step and metrics.

    Args:
      penalty: from `regularizers.create`.
      initial: variables to begin with, or None for random ones.
    """
    optimizer, _, steps, to_steps = optim.of_run(config, examples=len(splits.train))
    augmented, prepare = make_prepare(splits, config)
    state = create_state(model, optimizer, splits.image_shape, config.seed, initial)
    on_val = suite.evaluator(layout, splits.val, config.evaluation.batch_size, lambda: None)
    validate = evaluation.accuracy(model, prepare)

    def evaluate(state: State) -> dict[str, float]:
        values = on_val(validate, state.variables)
        return {f"val/{k}": v for k, v in values.items() if k != "examples"}

    with run.checkpoints(best=best_of(config)) as checkpoints:
        state = loop.fit(
            run,
            state=state,
            step=make_step(model, optimizer, partial(penalty, std=splits.std), augmented, config.seed),
            batches=lambda start: feed.train_batches(
                splits.train,
                seed=config.seed,
                batch_size=config.batch_size,
                start=start,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            steps=steps,
            layout=layout,
            checkpoints=checkpoints,
            evaluate=evaluate,
            resident=feed.resident(splits.train),
            log_every=config.loop.log_every,
            eval_every=to_steps(config.loop.eval_every),
            checkpoint_every=to_steps(config.loop.checkpoint_every),
        )
        best, best_step, best_metrics = checkpoints.restore_best(checkpoint.abstract(state))
    logging.info("%s: best at step %d of %d", config.regularizer.name, best_step, steps)
    return best.variables, {"best_step": best_step, **best_metrics}


@dataclass(frozen=True)
class Plan:
    """What a config asks for, read and checked: see `plan`."""

    layout: sharding.Layout
    splits: data.Splits
    model: nn.Module
    penalty: Callable
    blocks: list[suite.Block]
    initial: Any


def plan(config, layout: sharding.Layout) -> Plan:
    """Data, model, what will be measured, and the variables to begin with (None: random ones); nothing is computed yet.

    Args:
      config: of the run.
      layout: of what is measured.

    Raises:
      ValueError, FileNotFoundError: what could only fail later: names that do not exist, numbers out of range, weights
        that do not fit.
    """
    models.check(config.model.name)
    penalty = regularizers.create(config.regularizer)
    if not config.train and not config.init_from:
        raise ValueError("config.train=False: give --config.init_from=RUN_OR_FILE, a run directory or .safetensors")
    splits = data.load(config.data, seed=config.seed)
    if config.train and splits.val is None:
        raise ValueError("config.data.val_examples=0: hold out some, the best checkpoint is chosen on them")
    logging.info("%s", splits.note)
    model = models.create(
        config.model.name,
        num_classes=len(splits.classes),
        activation=config.model.activation,
        beta=config.model.beta,
    )
    check_best(config)
    blocks = suite.blocks(config, model, splits, make_prepare(splits, config)[1])
    initial = None
    if config.init_from:
        template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *splits.image_shape)))
        initial = trained.load(config.init_from, config, {"batch_stats": {}} | template)
    return Plan(layout, splits, model, penalty, blocks, initial)


def measure(config, run: Run, found: Plan, variables, values: dict[str, float]) -> dict[str, float]:
    """The run's result: `values` and what the network is worth; leaves the table and the figures.

    Args:
      variables: of the network, on the devices.
    """
    result = values | suite.measure(config, run, found.layout, found.blocks, found.splits, variables)
    if run.writes:
        write_atomically(run.path / "table.md", tables.one_run(result))
        gallery.of_run(run.path, result)
    return result


def run(config, run: Run) -> dict[str, float]:
    """Data, model, training or the weights of another run, and what the best checkpoint is worth."""
    layout = sharding.layout(config.sharding.mode)
    layout.check_batch(config.batch_size)
    found = plan(config, layout)
    if not config.train:
        return measure(config, run, found, layout.place(found.initial), {})
    variables, values = train(config, run, layout, found.model, found.splits, found.penalty, found.initial)
    return measure(config, run, found, variables, values)
