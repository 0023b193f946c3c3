"""The words and templates of each step of text training: arithmetic on (seed, step), in group-balanced epochs.

The pairs of a group, a class and a spurious value, are the grid of its target words × its spurious words. An epoch
visits, in every group, as many different pairs as the smallest group has: the others are subsampled, again in each
epoch. No list of pairs is shuffled for that. The j-th pair of an epoch is the image of j under a pseudo-random
permutation of the grid, a Feistel network over its two coordinates, so that a batch is computed from (seed, step)
alone, in memory for the batch alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.training import keys
from tldr_jax.words.text import TextSet

Array = np.ndarray | jax.Array

ROUNDS = 8  # of the Feistel network
# multipliers of the 32-bit finaliser of MurmurHash3, every bit of whose result depends on every bit of its argument
_MURMUR = (0x85EBCA6B, 0xC2B2AE35)
_GOLDEN = 0x9E3779B9  # spreads consecutive integers


class WordsByGroup(NamedTuple):
    """The words of one side, sorted by their class or spurious value.

    Attributes:
      order: int32 (W,), word numbers, those of one class (or value) together.
      start, count: int32 (C,) or (S,): where each class's words begin in `order`, and how many there are.
    """

    order: np.ndarray
    start: np.ndarray
    count: np.ndarray


class PairPlan(NamedTuple):
    """The structure of a text set that `draw` needs; a pytree of arrays.

    Attributes:
      target, spurious: words by class and by spurious value.
      groups: int32 (G, 2), (class, spurious value) of the allowed groups.
      pairs: int32 (), how many pairs of each group an epoch visits: those of the smallest group.
      templates: int32 (2,), templates of the target and of the spurious words.
      shared: bool (), one draw of a template for both words of a pair.
    """

    target: WordsByGroup
    spurious: WordsByGroup
    groups: np.ndarray
    pairs: np.ndarray
    templates: np.ndarray
    shared: np.ndarray

    @property
    def epoch(self) -> int:
        """Examples in an epoch."""
        return int(self.pairs) * len(self.groups)


class Draw(NamedTuple):
    """A batch of text examples, int32 (b,) each: numbers of words and templates, class, group (class · S + value)."""

    target: jax.Array
    target_template: jax.Array
    spurious: jax.Array
    spurious_template: jax.Array
    label: jax.Array
    group: jax.Array


def plan(text_set: TextSet, *, shared_templates: bool = True) -> PairPlan:
    """The plan by which the pairs of a text set are visited.

    Args:
      text_set: the words.
      shared_templates: both words of a pair are put into templates of the same number, as published; otherwise each has
        its own draw.

    Raises:
      ValueError: shapes that do not fit together, a class or value out of range, no allowed pair, or a class or value
        of an allowed pair that has no word (the error names it), templates that cannot be shared.
    """
    allowed = np.asarray(text_set.allowed, bool)
    tables = {"target": np.shape(text_set.target), "spurious": np.shape(text_set.spurious)}
    for name, shape in tables.items():
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"the {name} table must be (words, templates, d), none of it 0, got shape {shape}")
    if tables["target"][2] != tables["spurious"][2]:
        raise ValueError(f"target and spurious embeddings differ in width: shapes {tables}")
    if shared_templates and tables["target"][1] != tables["spurious"][1]:
        raise ValueError(f"target and spurious words share templates only of one number: shapes {tables}")
    if allowed.ndim != 2 or not allowed.any():
        raise ValueError(f"allowed must be (classes, spurious values) and allow a pair, got {allowed}")
    target = _words("class", text_set.target_class, tables["target"][0], np.any(allowed, 1))
    spurious = _words("spurious value", text_set.spurious_value, tables["spurious"][0], np.any(allowed, 0))
    groups = np.argwhere(allowed).astype(np.int32)
    sizes = target.count[groups[:, 0]].astype(np.int64) * spurious.count[groups[:, 1]]
    if sizes.min() * len(groups) >= 2**31:
        raise ValueError(f"an epoch of {sizes.min()} pairs in each of {len(groups)} groups is beyond 32-bit counting")
    templates = np.array([tables["target"][1], tables["spurious"][1]], np.int32)
    pairs = np.asarray(sizes.min(), np.int32)
    return PairPlan(target, spurious, groups, pairs, templates, np.asarray(shared_templates))


def _words(what: str, belongs: Array, words: int, used: Array) -> WordsByGroup:
    belongs = np.asarray(belongs)
    if belongs.shape != (words,):
        raise ValueError(f"{words} words need as many numbers of their {what}, got shape {belongs.shape}")
    if len(bad := np.flatnonzero((belongs < 0) | (belongs >= len(used)))):
        raise ValueError(f"word {bad[0]} is of {what} {belongs[bad[0]]}; valid: 0 to {len(used) - 1}")
    count = np.bincount(belongs, minlength=len(used)).astype(np.int32)
    if len(empty := np.flatnonzero((count == 0) & used)):
        raise ValueError(f"{what} {empty[0]} has no word: none was given, or a filter dropped all")
    order = np.argsort(belongs, kind="stable").astype(np.int32)
    return WordsByGroup(order, (np.cumsum(count) - count).astype(np.int32), count)


def secrets(seed) -> jax.Array:
    """The random numbers that make the draws of a seed (an int or traced integer), uint32; `draw` hashes with them."""
    return jax.random.bits(keys.stream(seed, "text draws"), (ROUNDS + 4,), jnp.uint32)


def draw(plan: PairPlan, secrets: jax.Array, step, batch_size: int) -> Draw:
    """The batch of a step: every group equally often (within one), no pair twice in an epoch, templates uniform.

    Args:
      plan: of the text set.
      secrets: of the seed.
      step: int or traced integer; (step + 1) · batch_size must stay below 2^31.
      batch_size: b. A batch may span the end of an epoch.
    """
    groups = len(plan.groups)
    slot = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    epoch, place = jnp.divmod(slot, jnp.asarray(plan.pairs, jnp.int32) * groups)
    group = place % groups
    label, value = jnp.asarray(plan.groups)[group].T
    rows, columns = jnp.asarray(plan.target.count)[label], jnp.asarray(plan.spurious.count)[value]
    # every group and epoch has its own permutation
    tweak = _mix(epoch.astype(jnp.uint32) * np.uint32(_GOLDEN) + group.astype(jnp.uint32))
    row, column = _permuted(place // groups, rows, columns, tweak, secrets)
    # hashed counters, not jax.random: the sweep compiles in half the time, and only the templates depend on them
    first, second = (
        (_mix(_mix(slot.astype(jnp.uint32) ^ a) + b) % jnp.asarray(count, jnp.uint32)).astype(jnp.int32)
        for (a, b), count in zip(secrets[ROUNDS:].reshape(2, 2), plan.templates, strict=True)
    )
    return Draw(
        target=jnp.asarray(plan.target.order)[jnp.asarray(plan.target.start)[label] + row],
        target_template=first,
        spurious=jnp.asarray(plan.spurious.order)[jnp.asarray(plan.spurious.start)[value] + column],
        spurious_template=jnp.where(plan.shared, first, second),
        label=label,
        group=label * len(plan.spurious.count) + value,
    )


def _permuted(index, rows, columns, tweak, secrets) -> tuple[jax.Array, jax.Array]:
    """Entry `index` of a random order of the grid rows × columns, per element: (row, column), int32.

    Each round adds to one coordinate, modulo its range, a hash of the other: a bijection, whatever the hash.
    """
    rows, columns, index = (jnp.asarray(a).astype(jnp.uint32) for a in (rows, columns, index))
    row, column = jnp.divmod(index, columns)
    for number in range(0, ROUNDS, 2):
        row = (row + _mix(column ^ tweak ^ secrets[number]) % rows) % rows
        column = (column + _mix(row ^ tweak ^ secrets[number + 1]) % columns) % columns
    return row.astype(jnp.int32), column.astype(jnp.int32)


def _mix(x: jax.Array) -> jax.Array:
    """A 32-bit hash of uint32 values."""
    x = (x ^ (x >> 16)) * np.uint32(_MURMUR[0])
    x = (x ^ (x >> 13)) * np.uint32(_MURMUR[1])
    return x ^ (x >> 16)
