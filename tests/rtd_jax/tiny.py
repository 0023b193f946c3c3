"""The Scenes config made small: a step or two of everything."""

from configs.rtd import scenes
from launch.store import Store

SMALL = {
    "model.unroll": False,
    "phi.duration": "2 steps",
    "phi.batch_size": 16,
    "phi.optimizer.schedule.warmup": "0 steps",
    "phi.loop.eval_every": "1 steps",
    "phi.inversion_steps": 3,
    "captions.train_examples": 64,
    "captions.val_examples": 16,
    "images.train_examples": 32,
    "images.val_examples": 8,
    "triplets.train_examples": 64,
    "triplets.val_examples": 16,
    "rtd.duration": "1 steps",
    "rtd.batch_size": 8,
    "rtd.optimizer.schedule.warmup": "0 steps",
    "evaluation.scenes.gallery": 300,
    "evaluation.scenes.queries": 20,
}


def config(**fields):
    """The config, fields by dotted name."""
    config = scenes.get_config()
    config.update_from_flattened_dict({**SMALL, **{key.replace("__", "."): value for key, value in fields.items()}})
    return config


def made(store: Store) -> list[str]:
    """The classes, in snake case, of the kept stages that were made in this store and not only read from it."""
    return [use.key.rpartition("-")[0] for use in store.used.values() if use.seconds is not None]
