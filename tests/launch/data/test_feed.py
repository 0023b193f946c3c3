"""What stays on a device: rows come back as they were, every example is found again and is there once."""

import jax
import numpy as np
import pytest

from launch.data import Arrays, Stream, feed
from launch.data.splits import hold_out


@pytest.mark.parametrize(
    "shape", [(9, 32, 32, 3), (9, 28, 28, 1), (9, 77), (9, 128), (9, 3, 3, 1), (1, 5), (11, 24), (12, 64), (300, 1)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_a_table_gives_its_rows(shape, dtype):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    rows = np.array([0, len(array) - 1, len(array) // 2, 0], np.int32)
    table = feed.Table.of(array)
    taken = jax.jit(feed.Table.gather)(table, rows)
    assert taken.dtype == dtype and table.data.shape[-1] == 128 and len(table) == len(array)
    np.testing.assert_array_equal(taken, array[rows])
    np.testing.assert_array_equal(table.gather(np.array([len(array) + 3])), array[-1:])
    described = feed.Table.shapes(jax.ShapeDtypeStruct(shape, dtype))
    assert (described.row_shape, described.count) == (table.row_shape, table.count)
    assert (described.data.shape, described.data.dtype) == (table.data.shape, table.data.dtype)


def test_short_rows_share_a_vector():
    """Token ids of 24 columns: five texts to a vector."""
    array = np.random.default_rng(0).integers(0, 99, (101, 24)).astype(np.int32)
    table = feed.Table.of(array)
    assert table.data.shape == (21, 128)
    np.testing.assert_array_equal(table.gather(np.arange(101)), array)


def test_a_table_of_whole_vectors_is_no_copy():
    array = np.zeros((4, 32, 32, 3), np.uint8)
    assert np.shares_memory(feed.Table.of(array).data, array)


def test_each_split_finds_its_examples_and_none_is_there_twice():
    rng = np.random.default_rng(0)
    whole = Arrays(rng.integers(0, 256, (12, 3, 3, 1), dtype=np.uint8), rng.integers(0, 3, 12).astype(np.int32))
    splits = [part for seed in (0, 1) for part in hold_out(whole, seed=seed, val_examples=4, train_examples=0)]
    resident, rows = feed.pooled(splits)
    images = resident["images"]
    assert (len(images), images.row_shape) == (12, (3, 3, 1)) and resident["labels"].dtype == np.int32
    for split, own in zip(splits, rows, strict=True):
        np.testing.assert_array_equal(images.gather(own), split.images)
        np.testing.assert_array_equal(resident["labels"][own], split.labels)
        batch = next(feed.train_batches(split, seed=3, batch_size=5))
        both = [feed.materialize(batch, feed.resident(split)), feed.materialize(feed.moved(batch, own), resident)]
        np.testing.assert_array_equal(both[0]["image"], both[1]["image"])
    assert any((a != b).any() for a, b in zip(rows[:1], rows[2:3], strict=True))  # the seeds cut differently


def test_the_same_image_under_another_label_is_another_example():
    split = Arrays(np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 1], np.int32))
    resident, (rows,) = feed.pooled([split])
    assert resident["labels"].tolist() == [0, 1] and rows.tolist() == [0, 1]


def test_streamed_splits_have_no_table():
    split = Stream([None, None], np.zeros(2, np.int32), 4)
    assert feed.pooled([split, split]) == ({}, [None, None])
    batch = {"image": np.zeros(1)}
    assert feed.moved(batch, None) is batch
