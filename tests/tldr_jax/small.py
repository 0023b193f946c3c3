"""The Scenes config cut down to a run of seconds."""

from ml_collections import ConfigDict, FrozenConfigDict

from configs.tldr import scenes

SMALL = {
    "data.train_examples": 64,
    "data.val_examples": 24,
    "data.test_examples": 24,
    "pretrain.duration": "1 steps",
    "pretrain.examples": 64,
    "pretrain.batch_size": 16,
    "erm.duration": "2 steps",
    "erm.batch_size": 16,
    "erm.eval_every": "0 steps",
    "gap.pairs": 20,
    "projector.mlp.hidden": 8,
    "projector.mlp.steps": 2,
    "words.classifier_filter": False,  # a classifier of two steps takes every word for the same class
    "retrain.duration": "6 steps",
    "retrain.evaluations": 2,
    "retrain.grid.learning_rate": (1e-2, 1e-1),
    "dfr.penalties": (1.0,),
    "dfr.draws": 1,
    "class_balanced.penalties": (1.0,),
    "class_balanced.draws": 1,
    "afr.gammas": (4.0,),
    "afr.ridges": (0.0,),
    "afr.steps": 2,
    "afr.evaluations": 1,
    "ablations": ("no_gap", "mlp_projector"),
    "evaluation.batch_size": 32,
}


def changed(config, overrides):
    """The config with some fields, by dotted name, set to other values."""
    copy = ConfigDict(config.to_dict())  # of the config itself, a ConfigDict would share the nested parts
    copy.lock()
    copy.update_from_flattened_dict(dict(overrides))
    return FrozenConfigDict(copy)


CONFIG = changed(scenes.get_config(), SMALL)
