"""Streamed splits through Grain: batches read and decoded ahead in threads or worker processes."""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from launch.data import images
from launch.data.splits import Stream

_ORDER, _CROPS = 0x04DE, 0xC409  # streams of random numbers drawn from one seed


def train_batches(
    split: Stream, *, seed: int, batch_size: int, start: int, first: int, size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield this process's share [first, first + size) of every global batch from step `start` on; see `feed`.

    Position p in the endless sequence of examples determines the row, by a shuffle of its epoch p // n, and the
    generator of its crop. Slicing comes after both, so neither depends on where a run starts or on the number of
    processes.
    """
    n = len(split)
    # More epochs than any run reaches. An endless `repeat()` would overflow Grain's length in batches of one.
    examples = grain.MapDataset.range(n).shuffle(seed=_seed(seed, _ORDER)).repeat(2**52 // n)
    examples = examples.random_map(_TrainExample(split), seed=_seed(seed, _CROPS))
    shares = batch_size // size
    batches = examples.batch(size)[start * shares + first // size :: shares]
    slots = np.arange(first, first + size, dtype=np.int32)
    for batch in _read_ahead(batches, split.workers):
        yield {**batch, "slot": slots}


def eval_batches(split: Stream, *, batch_size: int, first: int, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield this process's share of the split in order, the last batch padded and masked; see `feed`."""
    n = len(split)
    padded = -(-n // batch_size) * batch_size
    shares = batch_size // size
    batches = grain.MapDataset.range(padded).map(_EvalExample(split)).batch(size)[first // size :: shares]
    for step, batch in enumerate(_read_ahead(batches, split.workers)):
        slots = np.arange(size, dtype=np.int32) + (step * batch_size + first)
        yield {**batch, "mask": slots < n, "slot": slots}


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    """Make a training example of a row and a generator; a class because workers receive it pickled."""

    split: Stream

    def __call__(self, row: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = self.split.source[row]
        if self.split.crop:
            image = images.random_resized_crop(image, self.split.image_size, rng, flip=self.split.flip)
        else:
            image = self.split.cut(image)
            if self.split.flip and rng.random() < 0.5:
                image = image[:, ::-1]
        return {"image": image, "label": self.split.labels[row]}


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    """Make an evaluation example of a row; rows past the end repeat the last one."""

    split: Stream

    def __call__(self, row: int) -> dict[str, np.ndarray]:
        row = min(row, len(self.split) - 1)
        return {"image": self.split.cut(self.split.source[row]), "label": self.split.labels[row]}


def _read_ahead(batches: grain.MapDataset, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches that are read ahead; their order is the same for any number of workers."""
    # Threads decode the examples of a batch; with workers, each process reads ahead whole batches.
    threads = max(1, images.decoding_threads() // max(1, workers))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    dataset = batches.to_iter_dataset(options)
    if workers:
        _mark_flags_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _mark_flags_parsed() -> None:
    """Mark absl's flags as parsed: Grain's workers read them, and only absl apps parse them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _seed(seed: int, stream: int) -> int:
    """Derive a seed of 32 bits, as Grain takes them."""
    return int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])
