"""What a training logs while it runs: metrics.jsonl and TensorBoard, in one folder."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from absl import logging

from launch.files import write_atomically
from launch.reading import jsons
from launch.results import without_nan

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class Journal:
    """The logs of one training; only process 0 writes.

    Args:
      path: the folder, which exists.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.writes = jax.process_index() == 0
        self._tensorboard: SummaryWriter | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl, and the same values to TensorBoard."""
        if not self.writes:
            return
        if self._tensorboard is None:
            self._tensorboard = self._writer()
        finite = without_nan({name: float(value) for name, value in values.items()})
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": int(step), "time": round(time.time(), 3), **finite}) + "\n")
        for key, value in values.items():
            self._tensorboard.add_scalar(key, value, step)

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`, which a resumed training computes again, and lines that are damaged."""
        path = self.path / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        kept = []
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break  # cut off by a kill
            try:
                if jsons.parse(line.decode(), top=dict)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError) as error:
                logging.warning("%s, line %d is damaged and dropped (%s)", path, number, error)
        write_atomically(path, b"".join(kept))
        if self._tensorboard is None:
            self._tensorboard = self._writer(purge_step=step + 1)

    def _writer(self, purge_step: int | None = None) -> "SummaryWriter":
        from tensorboardX import SummaryWriter  # loads PyTorch where it is installed: seconds, not before it is needed

        return SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()
