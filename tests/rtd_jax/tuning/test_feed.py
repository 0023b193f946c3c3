"""Batches of like length: a pure function of (seed, step), every row once an epoch, shares of one global batch."""

import itertools

import numpy as np
import pytest

import clip_jax
from configs.rtd import published
from launch.data import order
from rtd_jax import experiment
from rtd_jax.tuning import feed
from tests.rtd_jax import tiny

LENGTHS = np.random.default_rng(0).integers(4, 32, 96).astype(np.int32)


@pytest.fixture(scope="module")
def clip():
    return clip_jax.load(clip_jax.embedded("scenes"))


def test_every_row_once_an_epoch_and_alike_in_length():
    rows_at = feed.grouped_rows(96, seed=1, batch_size=8, lengths=LENGTHS)
    epoch = [rows_at(step) for step in range(12)]
    assert sorted(np.concatenate(epoch)) == list(range(96))
    spread = np.mean([np.ptp(LENGTHS[rows]) for rows in epoch])
    shuffled = feed.grouped_rows(96, seed=1, batch_size=8)
    assert spread < 4 < np.mean([np.ptp(LENGTHS[shuffled(step)]) for step in range(12)])
    means = [LENGTHS[rows].mean() for rows in epoch]
    assert means != sorted(means)  # not the short ones first


def test_shuffled_batches_are_the_published_ones():
    """A permutation cut into batches, the last partial one dropped; lengths as uneven as in the whole table."""
    config = tiny.config(rtd__batches="shuffled", rtd__batch_size=8)
    table = feed.TextTable({"x": np.arange(100.0)}, lengths=np.resize(LENGTHS, 100))
    rows_at = experiment.plan(config).tuned.tuning.rows_at(table)
    for number in (0, 1):
        expected = order.permutation(100, seed=0, epoch=number)[:96].reshape(12, 8)
        np.testing.assert_array_equal([rows_at(12 * number + step) for step in range(12)], expected)
    spread = lambda rows_at: np.mean([table.lengths[rows_at(step)].std() for step in range(12)])
    grouped = experiment.plan(tiny.config(rtd__batches="by_length")).tuned.tuning.rows_at(table)
    assert spread(rows_at) > 0.8 * table.lengths.std() > 4 * spread(grouped)


def test_the_published_config_trains_as_published():
    made = published.get_config()
    assert made.rtd.batches == made.phi.batches == "shuffled" and made.captions.keywords == "published"
    assert (made.phi.loop.eval_every, made.rtd.loop.eval_every) == ("1000 steps", "100 steps")
    assert made.best_by == made.evaluation.target_pad == made.images.target_pad == "auto"


def test_rows_are_a_function_of_seed_and_step():
    one, two = (feed.grouped_rows(96, seed=1, batch_size=8, lengths=LENGTHS) for _ in range(2))
    late = [two(step).tolist() for step in (40, 3, 17)]
    for step in range(41):
        one(step)
    assert [one(step).tolist() for step in (40, 3, 17)] == late
    assert feed.grouped_rows(96, seed=2, batch_size=8, lengths=LENGTHS)(3).tolist() != late[1]


def test_a_batch_never_holds_an_example_twice():
    with pytest.raises(ValueError, match="batch_size=97 is more than the 96"):
        feed.grouped_rows(96, seed=0, batch_size=97, lengths=LENGTHS)
    rows_at = feed.grouped_rows(90, seed=0, batch_size=40, lengths=LENGTHS[:90])
    assert all(len(set(rows_at(step))) == 40 for step in range(9))


def test_shares_make_up_the_global_batch(clip):
    words = ["red", "red circle", "red circle on the grass", "a small plain red circle that is on the grass by the sea"]
    ids = clip.tokenize(words * 6)
    table = feed.table(clip.config, {"x": np.arange(24.0)}, {"ids": ids})
    ends = [list(row).index(clip.tokenizer.end_id) + 1 for row in ids]
    assert table.lengths.tolist() == ends
    rows_at = feed.grouped_rows(24, seed=3, batch_size=4, lengths=table.lengths)
    take = lambda **share: list(itertools.islice(feed.batches(clip.config, table, rows_at, start=2, **share), 4))
    whole, parts = take(), [take(process_index=i, process_count=2) for i in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert batch["slot"].tolist() == [0, 1, 2, 3]
        for name in ("x", "ids", "slot"):
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), batch[name])
        np.testing.assert_array_equal(ids[batch["x"].astype(int)][:, : batch["ids"].shape[1]], batch["ids"])
    assert whole[0]["x"].tolist() == rows_at(2).tolist()


def test_columns_of_one_length():
    with pytest.raises(ValueError, match="columns of different lengths"):
        feed.TextTable({"a": np.zeros(3), "b": np.zeros(4)})
