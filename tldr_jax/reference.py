"""The methods that text-based retraining is compared with, on the same cached embeddings."""

from collections.abc import Callable, Mapping

import numpy as np

from launch.run import Run
from tldr_jax import retrain, stages
from tldr_jax.classifier import erm
from tldr_jax.heads import Head, baselines
from tldr_jax.inputs import Inputs
from tldr_jax.method import word_lists
from tldr_jax.words import templates, text
from tldr_jax.words.templates import fill


def _erm(config, run: Run, inputs: Inputs) -> dict[str, float]:
    del config, run
    return inputs.test(inputs.head)


def _zero_shot(config, run: Run, inputs: Inputs) -> dict[str, float]:
    """CLIP alone: the class anchors under all templates for target words."""
    found, own = word_lists(config, inputs.data), templates.get(config.text.templates)
    prompts = [
        fill(template, anchor, articles=own.articles)
        for anchor in found.target_anchors.values()
        for template in own.target
    ]
    cache = run.path / "artifacts" / "texts"
    embedded = text.embed_prompts(inputs.clip, prompts, cache=cache, progress=False)
    head = baselines.zero_shot(embedded.reshape(len(inputs.data.classes), len(own.target), -1))
    return inputs.test(head, inputs.images)


def _dfr(config, run: Run, inputs: Inputs) -> dict[str, float]:
    """On the validation images with their groups: what labelled images would give, an upper bound of words."""

    def make():
        found = baselines.dfr(
            np.asarray(inputs.features["val"]),
            *inputs.labels("val"),
            allowed=inputs.data.allowed,
            scale_on=inputs.features["train"],
            names=inputs.names,
            **config.dfr,
        )
        return _as_arrays(found.head) | {"penalty": found.penalty}

    return inputs.test(_as_head(stages.keep(run, config, "dfr", make)))


def _class_balanced(config, run: Run, inputs: Inputs) -> dict[str, float]:
    """On the validation images with their classes."""

    def make():
        found = baselines.class_balanced(
            np.asarray(inputs.features["val"]),
            inputs.labels("val")[0],
            classes=len(inputs.data.classes),
            scale_on=inputs.features["train"],
            **config.class_balanced,
        )
        return _as_arrays(found.head) | {"penalty": found.penalty}

    return inputs.test(_as_head(stages.keep(run, config, "class_balanced", make)))


def _afr(config, run: Run, inputs: Inputs) -> dict[str, float]:
    """On the training images that ERM did not see, if any were held out, else on all; chosen by validation WGA."""
    options = config.afr

    def make():
        seen, unseen = erm.held_out(config, len(inputs.features["train"]))
        rows = unseen if len(unseen) else seen
        trained = baselines.afr(
            inputs.features["train"][rows],
            inputs.labels("train")[0][rows],
            inputs.head,
            baselines.afr_grid(options.gammas, options.ridges),
            learning_rate=options.learning_rate,
            steps=options.steps,
            evaluations=options.evaluations,
        )
        chosen = retrain.select(
            trained,
            inputs.features["val"],
            *inputs.labels("val"),
            allowed=inputs.data.allowed,
            names=inputs.names,
        )
        return _as_arrays(chosen.by_wga.head) | {"setting": chosen.by_wga.member}

    return inputs.test(_as_head(stages.keep(run, config, "afr", make)))


METHODS: Mapping[str, Callable] = {
    "erm": _erm,
    "zero_shot": _zero_shot,
    "class_balanced": _class_balanced,
    "afr": _afr,
    "dfr": _dfr,
}
WITHOUT_CLIP = ("erm", "class_balanced", "afr", "dfr")  # the same numbers whatever CLIP there is


def check(config) -> None:
    """Refuse a baseline that does not exist.

    Raises:
      ValueError: lists those there are.
    """
    for name in config.baselines:
        if name not in METHODS:
            raise ValueError(f"config.baselines has {name!r}; there are {', '.join(METHODS)}")


def measure(name: str, config, run: Run, inputs: Inputs) -> dict[str, float]:
    """`metrics.summary` of a baseline on the test images."""
    return METHODS[name](config, run, inputs)


def _as_arrays(head: Head) -> dict[str, np.ndarray]:
    return {"kernel": head.kernel, "bias": head.bias}


def _as_head(arrays: Mapping[str, np.ndarray]) -> Head:
    return Head(arrays["kernel"], arrays["bias"])
