"""One of several processes that embed the same inputs together, run by test_hosts.py: prints what came of it, as JSON.

    python -m tests.tldr_jax.hosts_worker FOLDER [ADDRESS PROCESSES PROCESS]

Process 0 writes the tables and FOLDER/images.npy, texts.npy, marked.npy.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import clip_jax
from launch.data import scenes
from launch.training import sharding
from tldr_jax.classifier import backbones, features
from tldr_jax.datasets import Part, preparation
from tldr_jax.datasets.captions import GapPairs
from tldr_jax.projector import gap

IMAGES, BATCH = 21, 4


class Counted:
    """Images that are decoded when they are indexed, and count how often they are."""

    def __init__(self, images: np.ndarray):
        self.images, self.asked = images, [0] * len(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int):
        self.asked[row] += 1
        return Image.fromarray(self.images[row]).resize((40, 36))


def run(folder: Path) -> dict:
    drawn = scenes.pairs(3, IMAGES, held_out=False)
    captions = [texts[0] for texts in drawn.captions]
    clip, asked = clip_jax.load(clip_jax.embedded("scenes"), put=lambda path, leaf: leaf), {}
    embedder = clip_jax.Embedder(clip_jax.placed(clip), BATCH)
    seen = Counted(drawn.images)
    found = {"images": embedder.images(seen), "texts": embedder.texts(captions)}
    asked["images"] = seen.asked
    seen = Counted(drawn.images)
    found["gap"] = gap.differences(clip, GapPairs(seen, captions), batch_size=BATCH)
    asked["gap"] = seen.asked
    cached = [clip_jax.embed_texts(clip, captions, cache=folder / "cache", progress=False) for _ in range(2)]
    found |= {"cached": cached[0], "again": cached[1], "one": embedder.texts(captions[:1])}
    seen = Counted(drawn.images)
    found |= tables(folder, clip, seen)
    asked["tables"] = seen.asked
    if jax.process_index() == 0:
        for name, rows in found.items():
            np.save(folder / f"{name}.npy", rows)
    same = {name: float(np.sum(rows)) for name, rows in found.items() if rows is not None}
    return {"asked": asked, "sums": same, "devices": jax.device_count()}


def tables(folder: Path, clip: clip_jax.Clip, seen: Counted) -> dict:
    """Both views of the images, in memory maps that process 0 writes."""
    backbone = backbones.Backbone("small_cnn", 32, mean=(0.5,) * 3, std=(0.27,) * 3)
    variables = jax.device_get(backbone.create(2).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))
    encoders = {
        "view": features.of_clip(clip, 2),
        "features": features.of_classifier(
            backbone, variables, outputs=2, batch_size=BATCH, crop=preparation.cut("center", 32)
        ),
    }
    folders = {name: folder / name for name in encoders}
    if jax.process_index() == 0:
        for path in folders.values():
            path.mkdir()
    zeros = np.zeros(IMAGES, np.int32)
    features._GATHERED = 3 * 2 * BATCH * 64  # several exchanges
    made = features.write(Part(seen, zeros, zeros), encoders, folders, batch_size=BATCH, check_stop=lambda: None)
    return {name: made.get(name) for name in encoders}


if __name__ == "__main__":
    if sys.argv[2:]:
        sharding.initialize(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    json.dump(run(Path(sys.argv[1])), sys.stdout)
