"""A new linear head trained on projected text, and whole sweeps of them as one program (Park et al., WACV 2025).

A step draws group-balanced pairs of words, averages the two embeddings of a pair, projects the mean and takes a step
of AdamW on the head's cross-entropy. The rate is constant: the published cosine is stepped once an epoch, after it, and
there is one epoch; "cosine" falls to 0 over the steps. All steps are one compiled loop. The members of a sweep
differ in learning rate, weight decay, seed and projector (that is, in ridge and gap rows). Members with one seed and
one projector see the same batches, which are projected once for all; all seeds of a projector share one product.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from launch.training import keys
from launch.training.optim import Optimizer, Schedule
from launch.training.program import LOSS, Batch, Metrics, Numbers, Program
from launch.training.sharding import RESIDENT
from tldr_jax import heads, metrics
from tldr_jax.heads import Head, draws
from tldr_jax.heads.members import Arranged, Members, arrange, grid
from tldr_jax.projector import FeatureMap, Projector, stack
from tldr_jax.words.text import TextSet

SCHEDULES = ("constant", "cosine")


class Trained(NamedTuple):
    """Heads of a sweep at its evaluation points.

    Attributes:
      heads: kernel (k, e, f, C) and bias (k, e, C), of JAX's default float.
      loss: (k, e), mean training loss of the steps that lead up to each point.
      steps: (e,), the step of each point; the last is the end.
    """

    heads: Head
    loss: np.ndarray
    steps: np.ndarray


class Choice(NamedTuple):
    """A head picked out of a sweep: which member, which evaluation point, its validation score."""

    member: int
    evaluation: int
    score: float
    head: Head


class Selection(NamedTuple):
    """Validation scores of all heads (k, e), and the best head by each; of equals the first."""

    wga: np.ndarray
    class_balanced: np.ndarray
    by_wga: Choice
    by_class_balanced: Choice


def train(
    text_set: TextSet,
    projector: FeatureMap,
    *,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-4,
    seed: int = 0,
    **options: Any,
) -> Trained:
    """One head; see `sweep`. The results have no member axis: heads (e, f, C), loss (e,)."""
    members = grid(learning_rates=[learning_rate], weight_decays=[weight_decay], seeds=[seed])
    trained = sweep(text_set, stack([projector]), members, **options)
    return Trained(Head(*(a[0] for a in trained.heads)), trained.loss[0], trained.steps)


def sweep(
    text_set: TextSet,
    projectors: Any,
    members: Members,
    *,
    batch_size: int = 128,
    epochs: float | None = None,
    steps: int | None = None,
    evaluations: int = 1,
    schedule: str = "constant",
    shared_templates: bool = True,
    tables: bool | None = None,
    devices: Sequence[Any] | None = None,
) -> Trained:
    """Train a head for every member, all in one compiled program.

    Args:
      text_set: the words' embeddings.
      projectors: stacked (`projector.stack`), a leading axis p in every array; linear ones or networks
        (`tldr_jax.projector.mlp`).
      members: see `grid`. Fastest where every projector is used with equally many seeds and every such pair with
        equally many optimiser settings; otherwise gaps are filled with wasted work.
      batch_size: text examples per step.
      epochs, steps: how long, in passes over the balanced pairs (`draws`) or in steps; one epoch if neither is given.
      evaluations: e, the number of evenly spaced points at which the heads are kept.
      schedule: of the learning rate, one of `SCHEDULES`.
      shared_templates: see `draws.plan`.
      tables: True projects every (word, template) once, before training, and gathers f-wide rows in each step; False
        projects each batch. None takes the cheaper by the number of rows, as long as the tables stay below 512 MB.
      devices: the members are divided among them, by projector, seed or setting, whichever divides evenly; by default
        all of this process.

    Raises:
      ValueError: embeddings of another width than the projector's, member arrays of unequal length or out of range,
        both epochs and steps, fewer steps than evaluations, and what `draws.plan` raises.
    """
    plan = draws.plan(text_set, shared_templates=shared_templates)
    devices = jax.local_devices() if devices is None else devices
    count = _steps(plan, batch_size, epochs, steps, evaluations)
    length = (batch_size, count, evaluations)
    places, ends, run = _loop(plan, text_set, projectors, members, devices, *length, schedule, tables)
    arranged = jax.tree.map(lambda a: np.asarray(a)[places.member], members)
    used = np.unique(members.projector)
    dtype = jnp.result_type(float)
    put = lambda a, dimensions: jax.device_put(np.asarray(a, dtype), places.sharding(devices, dimensions))
    projectors = jax.tree.map(lambda a: put(np.asarray(a)[used], 1), projectors)
    words = (put(text_set.target, 0), put(text_set.spurious, 0))
    settings = (put(arranged.learning_rate, 3), put(arranged.weight_decay, 3))
    seeds = jax.device_put(arranged.seed[:, :, 0].astype(np.int32), places.sharding(devices, 2))
    kept, loss = run(words, projectors, seeds, settings)
    # (e, p, s, m, …) -> (p · s · m, e, …) -> the places of the members (k, e, …)
    pick = lambda a: np.moveaxis(np.asarray(a), 0, 3).reshape(-1, len(ends), *a.shape[4:])[places.place]
    return Trained(Head(pick(kept.kernel), pick(kept.bias)), pick(loss), ends)


def program(
    text_set: TextSet,
    projectors: Any,
    numbers: Numbers,
    devices: Sequence[Any],
    *,
    batch_size: int,
    steps: int,
    evaluations: int,
    schedule: str = "constant",
    shared_templates: bool = True,
) -> Program:
    """What `sweep` compiles, from shapes in place of embeddings and projectors; its step is the whole training.

    Args:
      text_set, projectors, batch_size, steps, evaluations, schedule, shared_templates: see `sweep`.
      numbers: arrays "learning_rate", "weight_decay" and "seed": a head is trained for every combination.
      devices: the members are divided among them.
    """
    axes = {f"{name}s": range(len(values)) for name, values in numbers.items()}
    every = grid(**axes, projectors=range(len(jax.tree.leaves(projectors)[0])))
    plan = draws.plan(text_set, shared_templates=shared_templates)
    places, _, run = _loop(plan, text_set, projectors, every, devices, batch_size, steps, evaluations, schedule)
    place = jax.tree.map(lambda a: a[places.member].astype(int), every)

    def step(numbers: Numbers, state: Any, batch: Batch, *, axis_name: str | None = None) -> tuple[Any, Metrics]:
        del axis_name
        settings = [numbers[name][getattr(place, name)] for name in ("learning_rate", "weight_decay")]
        words, mappings = batch[RESIDENT]
        trained, loss = run(words, mappings, numbers["seed"][place.seed[:, :, 0]], settings)
        return {"step": state["step"] + steps, "heads": trained, "loss": loss}, {LOSS: loss.mean()}

    shape = lambda a: jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(float))
    resident = jax.tree.map(shape, ((text_set.target, text_set.spurious), projectors))
    start = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    state, _ = jax.eval_shape(step, numbers, start, {RESIDENT: resident})
    return Program(step, numbers, state, {}, resident)


def select(
    trained: Head,
    features: np.ndarray | jax.Array,
    labels: ArrayLike,
    spurious: ArrayLike,
    *,
    allowed: ArrayLike,
    names: metrics.Names | None = None,
) -> Selection:
    """Score every head of a sweep on validation images and pick the best by both criteria.

    Args:
      trained: `Trained.heads`, leading axes (k, e).
      features, labels, spurious: (n, f), (n,) and (n,).
      allowed, names: see `metrics.group_counts`.

    Raises:
      ValueError: see `metrics.group_accuracies` and `heads.predictions`.
    """
    allowed = np.asarray(allowed, bool)
    predicted = heads.predictions(trained, features)
    wga = metrics.worst_group(metrics.group_accuracies(predicted, labels, spurious, allowed, names=names))
    balanced = metrics.class_balanced(predicted, labels, names[0] if names else len(allowed))

    def best(scores: np.ndarray) -> Choice:
        index = np.unravel_index(np.argmax(scores), scores.shape)
        head = Head(*(np.asarray(a)[index] for a in trained))
        return Choice(int(index[0]), int(index[1]), float(scores[index]), head)

    return Selection(wga, balanced, best(wga), best(balanced))


def features(text_set: TextSet, projector: FeatureMap, draw: draws.Draw) -> jax.Array:
    """Features (b, f) of a batch of text examples: the projected mean of each pair's two embeddings."""
    return _projected((text_set.target, text_set.spurious), projector, draw, tables=False)


def _projected(words, projector, draw: draws.Draw, tables: bool) -> jax.Array:
    target = jnp.asarray(words[0])[draw.target, draw.target_template]
    mean = (target + jnp.asarray(words[1])[draw.spurious, draw.spurious_template]) / 2
    return projector.activate(mean) if tables else projector(mean)


@jax.jit
def _project_table(projectors: Projector, table: jax.Array) -> jax.Array:
    """(W, T, d) -> (p, W, T, f), without the ReLU, which follows the mean of two rows."""
    return jax.vmap(Projector.affine, (0, None))(projectors, table)


@functools.partial(jax.jit, static_argnames=("batch_size", "steps", "schedule", "tables", "sharding"))
def _train(plan, words, projectors, seeds, settings, ends, batch_size: int, steps: int, schedule, tables, sharding):
    """The compiled loop of a sweep, over the dense grid (projectors p, seeds s, members m).

    Args:
      plan: of the pairs of words.
      words: target and spurious embeddings (W, T, d); with `tables` projected ones (p, W, T, f).
      projectors: arrays (p, …).
      seeds: (p, s).
      settings: learning rates and weight decays, (p, s, m).
      ends: (e,), the steps after which heads are kept.
      batch_size, steps, schedule, tables: see `sweep`.
      sharding: of arrays (p, s, m, …).

    Returns:
      Heads (e, p, s, m, …) and losses (e, p, s, m).
    """
    classes, (rates, decays) = len(plan.target.count), settings

    def per_seed(function, words_axis):
        """Map over projectors, then seeds: the projector is an operand of all its seeds, not copied for each."""
        inner = jax.vmap(function, (None, None, 0))
        return jax.vmap(inner, (words_axis, 0, 0))

    def batch(words, projector, secrets, step):
        draw = draws.draw(plan, secrets, step, batch_size)
        return _projected(words, projector, draw, tables), draw.label

    def update(head, state, rate, decay, x, y):
        def loss_of(head):
            return optax.softmax_cross_entropy_with_integer_labels(heads.logits(head, x), y).mean()

        loss, gradient = jax.value_and_grad(loss_of)(head)
        updates, state = optimizer(rate, decay, steps, schedule).update(gradient, state, head)
        return optax.apply_updates(head, updates), state, loss

    def step(number, carry):
        head, state, total = carry
        of_step = functools.partial(batch, step=number)
        # One batch (p, s, b, f) per projector and seed: the members m of both share it.
        x, y = per_seed(of_step, 0 if tables else None)(words, projectors, secrets)
        over_members = jax.vmap(update, (0, 0, 0, 0, None, None))
        head, state, loss = jax.vmap(jax.vmap(over_members))(head, state, rates, decays, x, y)
        return head, state, total + loss

    def segment(carry, bounds):
        """The steps up to the next point at which heads are kept, and their mean loss."""
        start, end = bounds
        head, state, total = jax.lax.fori_loop(start, end, step, (*carry, jnp.zeros(rates.shape)))
        return (head, state), (head, total / (end - start))

    secrets = jax.vmap(jax.vmap(draws.secrets))(seeds)
    # The width of the features is known only to the projectors, which may be networks.
    of_step = per_seed(functools.partial(batch, step=0), 0 if tables else None)
    width = jax.eval_shape(of_step, words, projectors, secrets)
    create = lambda seed: heads.init(keys.stream(seed, "head"), width[0].shape[-1], classes)
    # Members of one seed start from one head, whatever their projector and settings.
    start = jax.vmap(jax.vmap(create))(seeds)
    start = jax.tree.map(lambda a: jnp.repeat(a[:, :, None], rates.shape[2], 2), start)
    state = jax.vmap(jax.vmap(jax.vmap(lambda h, r, d: optimizer(r, d, steps, schedule).init(h))))(start, rates, decays)
    # Everything below is computed where a member's head and optimiser state are.
    start, state = jax.lax.with_sharding_constraint((start, state), sharding)
    bounds = (jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]]), jnp.asarray(ends))
    return jax.lax.scan(segment, (start, state), bounds)[1]


def optimizer(learning_rate, weight_decay, steps: int, schedule: str) -> optax.GradientTransformation:
    """AdamW under a schedule over so many steps, with PyTorch's conventions; numbers may be traced."""
    adamw = Optimizer("adamw", learning_rate, weight_decay, schedule=Schedule(schedule))
    return adamw.create(total_steps=steps, to_steps=lambda _: 0)[0]


def _steps(plan: draws.PairPlan, batch_size: int, epochs: float | None, steps: int | None, evaluations: int) -> int:
    if epochs is not None and steps is not None:
        raise ValueError(f"give epochs or steps, not both (got epochs={epochs}, steps={steps})")
    if batch_size < 1 or evaluations < 1:
        raise ValueError(f"batch_size={batch_size} and evaluations={evaluations} must be at least 1")
    if steps is None:
        steps = math.ceil((1 if epochs is None else epochs) * plan.epoch / batch_size)
    if steps < evaluations:
        raise ValueError(f"{steps} steps cannot be evaluated at {evaluations} points: train longer, or at fewer points")
    if steps * batch_size >= 2**31:
        raise ValueError(f"{steps} steps of {batch_size} examples are beyond 32-bit counting; train for fewer")
    return steps


def _loop(plan, text_set, projectors, members, devices, batch_size, steps, evaluations, schedule, tables=None):
    """Where the members are, after which steps heads are kept, and `_train` of arrays; arguments as of `sweep`."""
    places = arrange(members, len(jax.tree.leaves(projectors)[0]), len(devices))
    affine = isinstance(projectors, Projector)
    if affine and projectors.weight.shape[-2] != np.shape(text_set.target)[-1]:
        raise ValueError(
            f"the projectors take embeddings of width {projectors.weight.shape[-2]}, "
            f"the words' have {np.shape(text_set.target)[-1]}"
        )
    if tables is None:
        tables = affine and _tables_pay(text_set, projectors, places, steps * batch_size)
    elif tables and not affine:
        raise ValueError("only an affine projector commutes with the mean of two words: tables=True needs a Projector")
    ends = np.ceil(np.linspace(0, steps, evaluations + 1)[1:] - 1e-9).astype(np.int32)
    sharding = places.sharding(devices, 3)

    def run(words, projectors, seeds, settings):
        if tables:
            words = tuple(map(functools.partial(_project_table, projectors), words))
        return _train(plan, words, projectors, seeds, settings, ends, batch_size, steps, schedule, tables, sharding)

    return places, ends, run


def _tables_pay(text_set: TextSet, projectors: Projector, places: Arranged, examples: int) -> bool:
    """Whether projecting all rows once is less work than projecting every batch, and fits."""
    rows = sum(math.prod(np.shape(table)[:2]) for table in (text_set.target, text_set.spurious))
    used, seeds = places.member.shape[:2]
    small = 4 * used * rows * projectors.weight.shape[-1] <= 512 * 2**20
    return small and rows < examples * seeds
