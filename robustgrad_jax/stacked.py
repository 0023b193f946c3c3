"""Several configs of `robustgrad_jax.experiment` trained as one program; see `launch.sweeps.stacked`.

Training alone is stacked. What a member's best checkpoint is worth is measured afterwards, one member after the other,
as for a run by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import jax
import numpy as np
from absl import logging

from launch import data
from launch.data import feed
from launch.run import Preempted, Run
from launch.training import checkpoint, optim, sharding, stack
from robustgrad_jax import experiment, regularizers
from robustgrad_jax.measures import evaluation

# What members of a stack may differ in: numbers of the training step, and the seed.
STACKABLE = (
    "seed",
    "regularizer.radius",
    "regularizer.l2_weight",
    "regularizer.cosine_weight",
    "regularizer.hessian_weight",
    "regularizer.iga_weight",
    "regularizer.atex_weight",
    "regularizer.atex_temperature",
    "regularizer.ig_norm_weight",
    "regularizer.ig_norm_beta",
    "regularizer.curvature_weight",
    "regularizer.curvature_h",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.momentum",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.eps",
    "optimizer.schedule.factor",
    "optimizer.schedule.final",
)
# Of these, 0 switches a part of the optimiser and of its state off: members with and without it are two stacks.
OFF_AT_ZERO = ("optimizer.momentum", "optimizer.clip_norm")

Plans = Mapping[int, experiment.Plan]


def run(configs: Sequence[Mapping], runs: Sequence[Run]) -> Iterator[tuple[int, dict[str, float] | Exception]]:
    """Train the configs, which differ in fields of `STACKABLE`, as one program, then measure each.

    Args:
      configs: of the members.
      runs: their run directories, in the same order.

    Yields:
      (member, its result, or the error that ended it), each member once.

    Raises:
      ValueError: `train` is False.
      Preempted: a run was asked to stop; what there is was saved.
    """
    if not configs[0].train:
        raise ValueError("config.train=False: nothing is trained that could be stacked; take --executor=local")
    layout = sharding.layout(configs[0].sharding.mode)
    plans, refused = _plans(configs, layout)
    yield from refused.items()
    kept = [i for i in range(len(configs)) if i not in refused]
    if kept:
        for index, found in _run([configs[i] for i in kept], [runs[i] for i in kept], plans, layout):
            yield kept[index], found


def _plans(configs: Sequence[Mapping], layout: sharding.Layout) -> tuple[Plans, dict[int, ValueError]]:
    """What each seed's members share, and the members whose own numbers a run alone would refuse.

    In the program the numbers are traced, and nothing can be said of them.
    """
    plans: dict[int, experiment.Plan] = {}
    refused: dict[int, ValueError] = {}
    for index, config in enumerate(configs):
        try:
            regularizers.create(config.regularizer)
            if config.seed not in plans:
                plans[config.seed] = experiment.plan(config, layout)
            optim.of_run(config, examples=len(plans[config.seed].splits.train))
        except ValueError as error:
            refused[index] = error
    return plans, refused


def _run(
    configs: Sequence[Mapping], runs: Sequence[Run], plans: Plans, layout: sharding.Layout
) -> Iterator[tuple[int, dict[str, float] | Exception]]:
    """`run`, of configs whose numbers are in order."""
    with ExitStack() as opened:
        best = experiment.best_of(configs[0])
        checkpoints = [opened.enter_context(run.checkpoints(best=best)) for run in runs]
        state, failures = train(configs, runs, plans, checkpoints)
        yield from failures.items()
        template = checkpoint.abstract(layout.place(state))
        for index in (i for i in range(len(runs)) if i not in failures):
            try:
                found = plans[configs[index].seed]
                own, at, values = checkpoints[index].restore_best(template)
                logging.info("%s: best at step %d", runs[index].path, at)
                values = {"best_step": at, **values}
                yield index, experiment.measure(configs[index], runs[index], found, own.variables, values)
            except Preempted:
                raise
            except Exception as error:  # the others can still be measured
                yield index, error


def train(
    configs: Sequence[Mapping], runs: Sequence[Run], plans: Plans, checkpoints: Sequence[checkpoint.Checkpoints]
) -> tuple[experiment.State, stack.Failures]:
    """Train all members, or go on training; a state for its shapes, and who was given up.

    Args:
      plans: by seed.
      checkpoints: of the members.
    """
    config, found = configs[0], plans[configs[0].seed]
    _, _, steps, to_steps = optim.of_run(config, examples=len(found.splits.train))
    create, step, measure = functions(config, found, steps, to_steps)
    numbers = stack.numbers(configs, stack.varying(configs))
    states = jax.device_get(jax.jit(jax.vmap(create, axis_size=len(runs)))(numbers))
    failures: stack.Failures = {}
    for start, (indices, own) in stack.restore(states, checkpoints).items():
        if start >= steps:
            continue
        logging.info("a stack of %d members, from step %d of %d", len(indices), start, steps)
        place, seeds = stack.stack(len(indices)), [configs[i].seed for i in indices]
        resident, batches, val_batches = feeds(config, {seed: plans[seed].splits for seed in seeds}, seeds)
        means = stack.evaluator(place, measure)

        def evaluate(numbers, state, resident, means=means, val_batches=val_batches) -> stack.Values:
            values = means(numbers, state, resident, val_batches())
            return [{f"val/{k}": v for k, v in own.items() if k != "examples"} for own in values]

        lost = stack.fit(
            [runs[i] for i in indices],
            stack=place,
            numbers={key: values[indices] for key, values in numbers.items()},
            states=own,
            start=start,
            step=step,
            batches=batches,
            steps=steps,
            checkpoints=[checkpoints[i] for i in indices],
            evaluate=evaluate,
            resident=resident,
            log_every=config.loop.log_every,
            eval_every=to_steps(config.loop.eval_every),
            checkpoint_every=to_steps(config.loop.checkpoint_every),
        )
        failures |= {indices[i]: error for i, error in lost.items()}
    return stack.member(states, 0), failures


def functions(config, found: experiment.Plan, steps: int, to_steps: Callable) -> tuple[Callable, Callable, Callable]:
    """Of one member, pure, its numbers traced: the initial state, the step, what validation measures.

    Returns:
      `create(numbers) -> state`; `step(numbers, state, batch, resident) -> (state, metrics)`;
      `measure(numbers, state, batch) -> {name: (n,)}`.
    """

    def optimizer(own):
        return optim.create(own.optimizer, total_steps=steps, to_steps=to_steps)[0]

    def create(numbers) -> experiment.State:
        own = stack.substituted(config, numbers)
        return experiment.create_state(found.model, optimizer(own), found.splits.image_shape, own.seed, found.initial)

    def step(numbers, state: experiment.State, batch, resident):
        own = stack.substituted(config, numbers)
        penalty = partial(regularizers.create(own.regularizer), std=found.splits.std)
        augmented, _ = experiment.make_prepare(found.splits, own)
        one = experiment.make_step(found.model, optimizer(own), penalty, augmented, own.seed)
        return one(state, {**batch, sharding.RESIDENT: resident})

    accuracy = evaluation.accuracy(found.model, experiment.make_prepare(found.splits, config)[1])

    def measure(numbers, state: experiment.State, batch) -> dict[str, jax.Array]:
        del numbers
        return accuracy(state.variables, batch, None)

    return create, step, measure


def feeds(config, splits: Mapping[int, data.Splits], seeds: Sequence[int]) -> tuple[dict, Callable, Callable]:
    """What the stack reads.

    Args:
      splits: by seed.
      seeds: of the members.

    Returns:
      The images that all share; `batches(start)` of training and `val_batches()`, (k, b, …).
    """
    train, val = ([getattr(own, name) for own in splits.values()] for name in ("train", "val"))
    resident, rows = feed.pooled([*train, *val])
    rows_of = {seed: (rows[i], rows[i + len(splits)]) for i, seed in enumerate(splits)}
    size = min(config.evaluation.batch_size, len(val[0]))

    def stacked(by_seed: Mapping[int, Iterable[feed.Batch]], which: int) -> Iterator[dict[str, np.ndarray]]:
        for parts in zip(*by_seed.values(), strict=True):
            own = {seed: feed.moved(part, rows_of[seed][which]) for seed, part in zip(by_seed, parts, strict=True)}
            yield {name: np.stack([own[seed][name] for seed in seeds]) for name in own[seeds[0]]}

    def batches(start: int):
        make = partial(feed.train_batches, batch_size=config.batch_size, start=start)
        return stacked({seed: make(own.train, seed=seed) for seed, own in splits.items()}, 0)

    def val_batches():
        return stacked({seed: feed.eval_batches(own.val, batch_size=size) for seed, own in splits.items()}, 1)

    return resident, batches, val_batches
