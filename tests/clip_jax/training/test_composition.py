"""Which images a step sees: groups that agree in what they should, and an order that follows from (seed, step)."""

import numpy as np
import pytest

from clip_jax.training import composition
from launch.data import order
from launch.data.scenes import world

N, BATCH, GROUP = 6000, 48, 6
ATTRIBUTES = world.sample(world.stream(0, "test"), N)
COLOUR_BACKGROUND = (world.COLOUR, world.BACKGROUND)
SIZE_PATTERN = (world.SHAPE, world.COLOUR, world.BACKGROUND)


def composer(*alike, seed=0, **options):
    given = dict(batch_size=BATCH, alike=alike, group=GROUP, attributes=ATTRIBUTES) | options
    return composition.composer(N, seed=seed, **given)


@pytest.mark.parametrize("columns", [COLOUR_BACKGROUND, SIZE_PATTERN, (world.SIZE,)], ids=str)
def test_members_of_a_group_agree_in_the_columns_and_differ_in_the_others(columns):
    rows_at = composer(columns)
    seen = set()
    for step in range(20):
        rows = rows_at(step)
        assert rows.shape == (BATCH,) and rows.dtype == np.int32
        for group in ATTRIBUTES[rows].reshape(-1, GROUP, 5):
            assert (group[:, list(columns)] == group[0, list(columns)]).all()
            assert len(np.unique(group, axis=0)) == GROUP
        keys = ATTRIBUTES[rows][::GROUP][:, list(columns)]
        seen |= set(map(tuple, keys))
        if len(columns) > 1:
            assert len(np.unique(keys, axis=0)) == BATCH // GROUP  # as many groups as there is room for
    assert len(seen) > 0.5 * min(20 * BATCH // GROUP, np.prod([world.COUNTS[c] for c in columns]))


def test_every_image_of_a_group_comes_up():
    attributes = np.array([[0, 0]] * 3 + [[0, 1]] * 2 + [[1, 0]] * 4)
    rows_at = composition.composer(9, seed=0, batch_size=2, alike=[(0,)], group=2, attributes=attributes)
    counts = np.bincount(np.concatenate([rows_at(step) for step in range(600)]), minlength=9)
    assert (counts[5:] == 0).all()  # the group of 1 has only one kind of member
    assert np.allclose(counts[:3], 200, atol=50) and np.allclose(counts[3:5], 300, atol=50)


def test_shuffled_batches_are_the_ordinary_epochs():
    rows_at = composer((), seed=3)
    wanted = [order.index_batch(N, seed=3, step=step, batch_size=BATCH) for step in (0, 1, 200)]
    assert all(np.array_equal(rows_at(step), rows) for step, rows in zip((0, 1, 200), wanted, strict=True))


def test_kinds_come_equally_often():
    rows_at = composer((), COLOUR_BACKGROUND)
    is_grouped = []
    for step in range(400):
        group = ATTRIBUTES[rows_at(step)][:GROUP, list(COLOUR_BACKGROUND)]
        is_grouped.append((group == group[0]).all())
    assert 150 < sum(is_grouped) < 250


def test_a_batch_follows_from_seed_and_step():
    one, two, other = (composer((), COLOUR_BACKGROUND, seed=seed) for seed in (0, 0, 1))
    forwards = [one(step) for step in range(8)]
    backwards = [two(step) for step in reversed(range(8))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not any(np.array_equal(rows, other(step)) for step, rows in enumerate(forwards))
    assert len({rows.tobytes() for rows in forwards}) == 8


@pytest.mark.parametrize(
    "alike, options, expected",
    [
        ([], {}, r"alike=\(\)"),
        ([COLOUR_BACKGROUND], {"group": 7}, "batch_size=48 does not divide into groups of 7"),
        ([COLOUR_BACKGROUND], {"group": 0}, "groups of 0"),
        ([(0, 1, 2, 3, 4)], {}, r"columns \(0, 1, 2, 3, 4\) has 6 different members, the largest has 1"),
    ],
)
def test_what_cannot_be_composed(alike, options, expected):
    with pytest.raises(ValueError, match=expected):
        composer(*alike, **options)
