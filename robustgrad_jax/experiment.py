"""Train a classifier whose input gradients resist perturbation, keep the best on validation, measure it on test data.

Configs: `configs/robustgrad/`. Method: Joo et al., "Towards More Robust Interpretation via Local Gradient Alignment",
AAAI 2023 (arXiv 2211.15900).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import linen as nn
from flax import struct

from launch import checkpoint, data, duration, keys, loop, optim, sharding
from launch.data import augment, feed
from launch.data import splits as data_splits
from launch.run import Run
from robustgrad_jax import evaluation, metrics, models, regularizers


@struct.dataclass
class State:
    """Everything that training changes. Random keys are not here: they follow from the seed and the step."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(model: nn.Module, optimizer: optax.GradientTransformation, image_shape, seed: int) -> State:
    """The initial state for images of shape (h, w, c)."""
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


def evaluator(layout: sharding.Layout, split, batch_size: int, check_stop: Callable) -> Callable:
    """`(fn, variables, **options) -> {name: mean}` over a split; its images are placed on the devices once."""
    placed = layout.replicate(feed.resident(split))
    shards = layout.data_shards
    batch_size = -(-min(batch_size, len(split)) // shards) * shards  # at most one padded row a device more than asked

    def means(fn, variables, **options):
        batches = feed.eval_batches(
            split,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return loop.masked_means(
            layout, fn, variables, batches, resident=placed, check_stop=check_stop, **options
        )

    return means


def check_evaluation(config, splits: data.Splits) -> None:
    """Refuse, before training, what could only fail after it."""
    options, names = config.evaluation, ("val/accuracy", "val/cross_entropy")
    data_splits.subset(splits.test, seed=config.seed, examples=options.examples, name="evaluation.examples")
    if options.draws < 1:
        raise ValueError(f"evaluation.draws={options.draws}: at least 1")
    if options.radii and min(splits.image_shape[:2]) < metrics.SSIM_WINDOW:
        raise ValueError(
            f"images of shape {splits.image_shape} are smaller than SSIM's window of {metrics.SSIM_WINDOW} pixels: "
            "take a larger data.image_size, or evaluation.radii=()"
        )
    if config.loop.best_metric not in names or config.loop.best_mode not in ("max", "min"):
        raise ValueError(
            f"loop.best_metric={config.loop.best_metric!r}, loop.best_mode={config.loop.best_mode!r}: the metrics are "
            f"{', '.join(names)}, the modes max and min"
        )


def measure(config, run: Run, layout: sharding.Layout, model, splits, prepare, variables) -> dict[str, float]:
    """Test accuracy, RPS at every radius and the upper-bound study, each cached in the run directory."""
    options = config.evaluation
    subset = data_splits.subset(splits.test, seed=config.seed, examples=options.examples, name="evaluation.examples")
    common = dict(std=splits.std, seed=config.seed)
    on_test = evaluator(layout, splits.test, options.batch_size, run.check_stop)
    on_subset = evaluator(layout, subset, options.batch_size, run.check_stop)
    result = run.artifact("test.json", lambda: on_test(evaluation.accuracy(model, prepare), variables))
    result = {f"test/{k}": v for k, v in result.items()}
    if options.radii:
        fn = evaluation.random_perturbation_similarity(model, prepare, radii=options.radii, **common)
        once = evaluation.clean_maps(model, prepare)
        values = run.artifact("rps.json", lambda: on_subset(fn, variables, repeats=options.draws, once=once))
        result |= values | {"rps/examples": values["examples"]}
        del result["examples"]
    if options.upper_bound:
        fn = evaluation.upper_bound(model, prepare, radius=options.upper_bound_radius, **common)
        finish = evaluation.hutchinson
        values = run.artifact(
            "upper-bound.json", lambda: on_subset(fn, variables, repeats=options.draws, finish=finish)
        )
        result |= {f"upper-bound/{k}": v for k, v in values.items()}
    return result


def run(config, run: Run) -> dict[str, float]:
    """Data, model, training, the best checkpoint, and what it is worth."""
    layout = sharding.layout(config.sharding.mode)
    layout.check_batch(config.batch_size)
    models.check(config.model.name)
    penalty = regularizers.create(config.regularizer)
    splits = data.load(config.data, seed=config.seed)
    if splits.val is None:
        raise ValueError("config.data.val_examples=0: hold out some, the best checkpoint is chosen on them")
    logging.info("%s", splits.note)
    check_evaluation(config, splits)
    model = models.create(
        config.model.name,
        num_classes=len(splits.classes),
        activation=config.model.activation,
        beta=config.model.beta,
    )
    to_steps = partial(duration.to_steps, examples=len(splits.train), batch_size=config.batch_size)
    steps = to_steps(config.duration)
    optimizer, _ = optim.create(config.optimizer, total_steps=steps, to_steps=to_steps)
    augmented, prepare = make_prepare(splits, config)
    state = create_state(model, optimizer, splits.image_shape, config.seed)
    on_val = evaluator(layout, splits.val, config.evaluation.batch_size, lambda: None)
    validate = evaluation.accuracy(model, prepare)

    def evaluate(state: State) -> dict[str, float]:
        values = on_val(validate, state.variables)
        return {f"val/{k}": v for k, v in values.items() if k != "examples"}

    with run.checkpoints(best=(config.loop.best_metric, config.loop.best_mode)) as checkpoints:
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
    result = measure(config, run, layout, model, splits, prepare, best.variables)
    return {"best_step": best_step, **best_metrics, **result}
