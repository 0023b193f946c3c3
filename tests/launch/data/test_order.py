"""The order of batches against the definition, written out by brute force."""

import itertools

import numpy as np
import pytest

from launch.data import Arrays, feed


def arrays(n, shape=(2, 2, 1)):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones(shape, np.uint8)
    return Arrays(images, np.arange(n, dtype=np.int32))


def reference_rows(n, seed, count):
    """The first `count` rows of the endless sequence of epochs."""
    rows = []
    for epoch in itertools.count():
        if len(rows) >= count:
            return np.array(rows[:count])
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
        rows.extend(rng.permutation(n))


def take(batches, count):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (7, 7), (3, 8), (1, 5)])
def test_order_is_the_definition(n, batch_size):
    steps = 9
    expected = reference_rows(n, 5, steps * batch_size).reshape(steps, batch_size)
    found = take(feed.train_batches(arrays(n), seed=5, batch_size=batch_size), steps)
    np.testing.assert_array_equal([batch["row"] for batch in found], expected)
    for step in (0, 1, 8):
        rows = feed.index_batch(n, seed=5, step=step, batch_size=batch_size)
        assert rows.dtype == np.int32
        np.testing.assert_array_equal(rows, expected[step])


def test_every_example_once_an_epoch_and_epochs_differ():
    rows = np.concatenate([b["row"] for b in take(feed.train_batches(arrays(10), seed=0, batch_size=4), 5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])
    other = np.concatenate([b["row"] for b in take(feed.train_batches(arrays(10), seed=1, batch_size=4), 5)])
    assert list(other) != list(rows)


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_shares_of_the_processes_join_to_the_global_batch(process_count, start):
    split, expected = arrays(13), reference_rows(13, 2, 10 * 8).reshape(10, 8)
    shares = [
        take(
            feed.train_batches(split, seed=2, batch_size=8, start=start, process_index=k, process_count=process_count),
            4,
        )
        for k in range(process_count)
    ]
    for offset, parts in enumerate(zip(*shares, strict=True)):
        np.testing.assert_array_equal(np.concatenate([p["row"] for p in parts]), expected[start + offset])
        np.testing.assert_array_equal(np.concatenate([p["slot"] for p in parts]), np.arange(8))


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_evaluation_sees_every_example_once_and_masks_the_rest(process_count):
    split = arrays(13)
    shares = [
        list(feed.eval_batches(split, batch_size=8, process_index=k, process_count=process_count))
        for k in range(process_count)
    ]
    assert {len(share) for share in shares} == {2} == {feed.num_eval_batches(split, 8)}
    joined = [
        {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} for parts in zip(*shares, strict=True)
    ]
    rows = np.concatenate([b["row"][b["mask"]] for b in joined])
    np.testing.assert_array_equal(rows, np.arange(13))
    np.testing.assert_array_equal(np.concatenate([b["slot"] for b in joined]), np.arange(16))
    assert all(b["row"].max() < 13 for b in joined)


def test_materialise_gathers_rows_and_passes_streams_through():
    split = arrays(9)
    place = feed.resident(split)
    batch = next(feed.train_batches(split, seed=0, batch_size=4))
    found = feed.materialize(batch, place)
    np.testing.assert_array_equal(found["image"], split.images[batch["row"]])
    np.testing.assert_array_equal(found["label"], split.labels[batch["row"]])
    np.testing.assert_array_equal(found["slot"], batch["slot"])
    assert found["image"].dtype == np.uint8
    carried = {"image": split.images[:2], "label": split.labels[:2], "slot": np.arange(2)}
    assert feed.materialize(carried, {}) == carried


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        feed.train_batches(arrays(4), seed=0, batch_size=0)
    with pytest.raises(ValueError, match=r"batch_size=10 is not divisible by the 4 processes: take 8 or 12"):
        feed.train_batches(arrays(4), seed=0, batch_size=10, process_count=4)
    with pytest.raises(ValueError, match="batch_size=-1 must be at least 1"):
        feed.eval_batches(arrays(4), batch_size=-1)
    with pytest.raises(ValueError, match="process_index=2 of 2"):
        feed.eval_batches(arrays(4), batch_size=2, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="empty"):
        feed.train_batches(arrays(0), seed=0, batch_size=1)
    with pytest.raises(ValueError, match="step=-1"):
        feed.train_batches(arrays(4), seed=0, batch_size=1, start=-1)
