"""Debias a classifier with words: train it, look at its features through CLIP, retrain its last layer on text.

Configs: `configs/tldr/`. Method: Park et al., "TLDR: Text Based Last-layer Retraining for Debiasing Image Classifiers",
WACV 2025 (arXiv 2311.18291).

One run directory takes any number of settings of what comes after ERM (`REVISABLE`): a command with other words,
another ridge or another CLIP finds the classifier and its features there, and redoes what the change reaches.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict, FrozenConfigDict

from launch.files import write_atomically
from launch.run import Run
from tldr_jax import inputs, method, reference, tables
from tldr_jax.classifier import erm

REVISABLE = (
    "clip", "gap", "projector", "words", "text", "retrain", "dfr", "afr", "class_balanced", "baselines", "ablations",
    "evaluation",
)  # fmt: skip

STACKED = "tldr_jax.stacked"  # trains the heads of several configs as one program

_UNFILTERED = {"words.clip_filter": False, "words.classifier_filter": False}
# By name, what an ablation sets.
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no_gap": {"projector.gap_rows": 0, "retrain.grid.gap_rows": ()},
    "no_clip_filter": {"words.clip_filter": False},
    "no_classifier_filter": {"words.classifier_filter": False},
    "no_filters": _UNFILTERED,
    "mlp_projector": {"projector.kind": "mlp", "retrain.grid.ridge": ()},
}


def changed(config, overrides: Mapping[str, Any]) -> FrozenConfigDict:
    """The config with some fields, by dotted name, set to other values.

    Raises:
      KeyError: a field that there is not.
      TypeError: a value of another type.
    """
    found = ConfigDict(config.to_dict())  # of the config itself, a ConfigDict would share the nested parts
    found.lock()
    found.update_from_flattened_dict(dict(overrides))
    return FrozenConfigDict(found)


def check(config) -> None:
    """Refuse, before training, what could only fail after it.

    Raises:
      ValueError, FileNotFoundError: names that do not exist, of which the message lists those there are.
    """
    for name in config.ablations:
        if name not in ABLATIONS:
            raise ValueError(f"config.ablations has {name!r}; there are {', '.join(ABLATIONS)}")
    if config.erm.select not in erm.SELECT:
        raise ValueError(f"unknown erm.select={config.erm.select!r}; there are {', '.join(erm.SELECT)}")
    reference.check(config)
    for overrides in ({}, *(ABLATIONS[name] for name in config.ablations)):
        method.check(changed(config, overrides))


def measure(config, run: Run, found: inputs.Inputs) -> dict[str, float]:
    """Baselines, the method and its ablations on the test images.

    Returns:
      "METHOD/metric" -> value with `metrics.summary`'s metrics; the method is "tldr" where its head was chosen by
      validation WGA and "tldr_class_balanced" otherwise, and so for ablations. Then "projector/…" and "words/…".
    """
    result = {}
    for name in config.baselines:
        logging.info("baseline %s", name)
        result |= {f"{name}/{k}": v for k, v in reference.measure(name, config, run, found).items()}
    for name, overrides in {"tldr": {}, **{name: ABLATIONS[name] for name in config.ablations}}.items():
        logging.info("method %s", name)
        values = method.run_method(changed(config, overrides), run, found)
        result |= {f"{name}/{k}": v for k, v in values["by_wga"].items()}
        result |= {f"{name}_class_balanced/{k}": v for k, v in values["by_class_balanced"].items()}
    for key, value in method.diagnose(config, run, found).items():
        result[key if key.startswith("words/") else f"projector/{key}"] = value
    return result


def finish(config, run: Run, found: inputs.Inputs) -> dict[str, float]:
    """Everything that is measured on the embeddings; leaves table.md."""
    logging.info("%s", found.data.note)
    result = measure(config, run, found)
    if run.writes:
        write_atomically(run.path / "table.md", tables.one_run(result))
    return result


def run(config, run: Run) -> dict[str, float]:
    """Data, classifier, embeddings, then everything that is measured on them."""
    check(config)
    return finish(config, run, inputs.prepare(config, run))
