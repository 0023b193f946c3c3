"""The smallest configs of CLIP's training, and what a run of them logged."""

import importlib
import json
from pathlib import Path

from ml_collections import ConfigDict

CAPTIONS = str(Path(__file__).with_name("captions.csv"))  # of two images that do not exist
SMALL = {
    "batch_size": 16,
    "duration": "4 steps",
    "data.train_examples": 300,
    "data.captions_per_image": 2,
    "data.val_examples": 20,
    "data.test_examples": 30,
    "data.alike": ((), ("colour", "background")),
    "data.group": 2,
    "model.image.width": 16,
    "model.image.layers": 1,
    "model.image.mlp_width": 16,
    "model.text.width": 16,
    "model.text.layers": 1,
    "model.text.mlp_width": 16,
    "model.projection": 8,
    "optimizer.schedule.warmup": "1 steps",
    "loop.log_every": 1,
    "loop.eval_every": "2 steps",
    "evaluation.batch_size": 16,
}


def load(name) -> ConfigDict:
    return importlib.import_module(f"configs.clip.{name}").get_config()


def small(**overrides) -> ConfigDict:
    config = load("scenes")
    config.update_from_flattened_dict(SMALL | overrides)
    return config


def logged(workdir) -> list[dict]:
    """The rows that the run's training logged."""
    (path,) = workdir.glob("store/clip_training-*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]
