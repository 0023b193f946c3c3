"""What a training says while it runs: metrics.jsonl and TensorBoard, in one folder."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from launch.files import write_atomically


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
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))
        finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": int(step), "time": round(time.time(), 3), **finite}) + "\n")
        for key, value in values.items():
            self._tensorboard.add_scalar(key, value, step)

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: a resumed training computes it again."""
        path = self.path / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # cut off by a kill
            if json.loads(line)["step"] <= step:
                kept.append(line)
        write_atomically(path, "".join(kept))
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()
