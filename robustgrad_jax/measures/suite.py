"""What `config.evaluation` asks for, as blocks: each is measured once, kept in the run directory, put in the result.

A block is one attribution under one perturbation (`gradient/rps`, `gradient/aam-8`), its curves or its sensitivity. A
stopped evaluation goes on with the first block that is missing. Keys of the result are attribution/perturbation/metric:
"gradient/rps-4/pcc".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn

from launch.data import Split, Splits, feed
from launch.data import splits as data_splits
from launch.run import Run
from launch.training import loop, sharding
from robustgrad_jax import attacks, metrics
from robustgrad_jax.attributions import explainers
from robustgrad_jax.measures import evaluation, under_attack
from robustgrad_jax.measures.evaluation import NONFINITE, Compare, Subject
from robustgrad_jax.measures.under_attack import ATTACKS, Attack

PERTURBATIONS = ("rps", *ATTACKS)
CURVES = (*evaluation.CURVES, "adversarial_insertion")
FOLDER = "evaluation"  # of the blocks, in artifacts/


@dataclass(frozen=True)
class Block:
    """One artifact of an evaluation.

    Attributes:
      name: "gradient/rps": where it is kept, and, up to the last "/", what its keys begin with.
      measure: (variables, batch, draw) -> {name: (n,)}, for `launch.training.loop.masked_means`.
      examples: the split that it is measured on.
      options: of `masked_means`.
      attacked: for a block under attack, what gives `masked_means` its `once`.
    """

    name: str
    measure: Callable
    examples: Split
    options: Mapping[str, Any] = field(default_factory=dict)
    attacked: Callable | None = None


# -- what is asked for -------------------------------------------------------------------------------


def check(config, splits: Splits) -> None:
    """Refuse, before training, what could only fail after it; `blocks` sees to the attributions.

    Raises:
      ValueError: a name that does not exist, of which the message lists those there are, or a number out of range.
    """
    options = config.evaluation
    for key, known in {
        "perturbations": PERTURBATIONS,
        "metrics": evaluation.SIMILARITIES,
        "curves": CURVES,
        "sensitivity": evaluation.SENSITIVITIES,
    }.items():
        for name in options[key]:
            if name not in known:
                raise ValueError(f"evaluation.{key} has {name!r}; there are {', '.join(known)}")
    for key in ("examples", "attack_examples"):
        data_splits.subset(splits.test, seed=config.seed, examples=options[key], name=f"evaluation.{key}")
    _check_numbers(options, pixels=splits.image_shape[0] * splits.image_shape[1])
    smallest = min(splits.image_shape[:2])
    if options.perturbations and "ssim" in options.metrics and smallest < metrics.SSIM_WINDOW:
        raise ValueError(
            f"images of shape {splits.image_shape} are smaller than SSIM's window of {metrics.SSIM_WINDOW} pixels: "
            "take a larger data.image_size, or evaluation.metrics without ssim"
        )
    if "adversarial_insertion" in options.curves and not set(options.perturbations) & set(ATTACKS):
        raise ValueError(
            "evaluation.curves has 'adversarial_insertion', but evaluation.perturbations no attack; add one of "
            + ", ".join(ATTACKS)
        )


def _check_numbers(options, pixels: int) -> None:
    at_least = dict.fromkeys(("draws", "attack_steps", "batch_size", "sensitivity_draws", "path_steps", "samples"), 1)
    for key, least in (at_least | {"curve_steps": 2, "pictures": 0, "top_k": 0}).items():
        if options[key] < least:
            raise ValueError(f"evaluation.{key}={options[key]}: at least {least}")
    if options.top_k > pixels:
        raise ValueError(f"evaluation.top_k={options.top_k}: the images have {pixels} pixels")
    for key in ("radii", "attack_radii", "sensitivity_radius", "upper_bound_radius", "attack_beta", "noise_level"):
        values = options[key] if isinstance(options[key], tuple) else (options[key],)
        if any(value <= 0 for value in values):
            raise ValueError(f"evaluation.{key}={options[key]}: above 0")
    if not 0 < options.attack_gamma <= 1:
        raise ValueError(f"evaluation.attack_gamma={options.attack_gamma}: above 0 and at most 1")


def blocks(config, model: nn.Module, splits: Splits, prepare: Callable) -> list[Block]:
    """Everything that is measured, in order.

    Raises:
      ValueError: see `check` and `explainers.create`.
    """
    check(config, splits)
    options = config.evaluation
    subset = partial(data_splits.subset, splits.test, seed=config.seed)
    examples = subset(examples=options.examples, name="evaluation.examples")
    few = subset(examples=options.attack_examples, name="evaluation.attack_examples")
    found = [Block("test", evaluation.accuracy(model, prepare), splits.test)]
    for name, explainer in explainers.create(config, model, splits, prepare).items():
        subject = Subject(model, prepare, explainer)
        for perturbation in options.perturbations:
            if perturbation == "rps":
                found.append(_random(name, subject, config, splits, examples))
                continue
            for radius in options.attack_radii:
                found.append(_attacked(name, subject, perturbation, radius, config, splits, few))
        if names := [curve for curve in options.curves if curve in evaluation.CURVES]:
            measure = evaluation.curves(subject, names=names, steps=options.curve_steps)
            found.append(Block(f"{name}/curves", measure, few))  # those of the attacks: their curves are compared
        if options.sensitivity:
            found.append(_sensitivity(name, subject, config, splits, few))
    if options.upper_bound:
        measure = evaluation.upper_bound(
            model, prepare, std=splits.std, radius=options.upper_bound_radius, seed=config.seed
        )
        repeated = {"repeats": options.draws, "finish": evaluation.hutchinson}
        found.append(Block("upper-bound", measure, examples, repeated))
    return found


def _random(name: str, subject: Subject, config, splits: Splits, examples: Split) -> Block:
    options = config.evaluation
    measure = evaluation.random_perturbation_similarity(
        subject, std=splits.std, radii=options.radii, compare=_compare(options, splits), seed=config.seed
    )
    repeated = {"repeats": options.draws, "once": evaluation.clean(subject), "finish": evaluation.count_nonfinite}
    return Block(f"{name}/rps", measure, examples, repeated)


def _compare(options, splits: Splits) -> Compare:
    height, width, _ = splits.image_shape
    return Compare(tuple(options.metrics), options.top_k or max(1, round(height * width / 50)))


def _attacked(name: str, subject: Subject, kind: str, radius: float, config, splits: Splits, examples: Split) -> Block:
    options, compare = config.evaluation, _compare(config.evaluation, splits)
    attack = Attack(
        kind=kind,
        radius=radius,
        std=tuple(splits.std),
        steps=options.attack_steps,
        gamma=options.attack_gamma,
        top_k=compare.top_k,
        seed=config.seed,
    )
    through = Subject(attacks.smoothed(subject.model, options.attack_beta), subject.prepare, subject.attribute)
    steps = options.curve_steps if "adversarial_insertion" in options.curves else 0
    measure = under_attack.under_attack(subject, attack, compare=compare, curve_steps=steps)
    run = under_attack.attacked(subject, through, attack)
    return Block(f"{name}/{attack.name}", measure, examples, attacked=run)


def _sensitivity(name: str, subject: Subject, config, splits: Splits, examples: Split) -> Block:
    options = config.evaluation
    measure = evaluation.sensitivities(
        subject,
        std=splits.std,
        radius=options.sensitivity_radius,
        names=options.sensitivity,
        samples=options.sensitivity_draws,
        seed=config.seed,
    )
    return Block(f"{name}/sensitivity", measure, examples)


# -- measuring ---------------------------------------------------------------------------------------


def evaluator(layout: sharding.Layout, split: Split, batch_size: int, check_stop: Callable) -> Callable:
    """`(fn, variables, **options) -> {name: mean}` over a split; its images are placed on the devices once."""
    placed = layout.replicate(feed.resident(split))
    shards = layout.data_shards
    batch_size = -(-min(batch_size, len(split)) // shards) * shards  # at most one padded row a device more than asked

    def means(fn, variables, **options):
        batches = feed.eval_batches(
            split,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return loop.masked_means(layout, fn, variables, batches, resident=placed, check_stop=check_stop, **options)

    return means


def measure(config, run: Run, layout: sharding.Layout, planned: list[Block], splits: Splits, variables) -> dict:
    """What the planned blocks measure of a network, each cached in the run directory.

    Args:
      planned: from `blocks`.
      variables: the network's, on the devices.

    Returns:
      "test/accuracy", "gradient/rps-4/pcc", "gradient/rps-4/examples", "gradient/rps-4/nonfinite", "upper-bound/bound",
      … -> value: means over the test images, but for the counts "examples" and "nonfinite". A mean over images of which
      some have an attribution that is not finite is NaN.
    """
    place, result = _Place(config, run, layout, splits, variables), {}
    for block in planned:
        values = place.keep(block)
        attribution, _, kind = block.name.rpartition("/")
        result |= _named(attribution, values) if attribution else {f"{kind}/{k}": v for k, v in values.items()}
    for key, count in result.items():
        if key.endswith(f"/{NONFINITE}") and count:
            logging.warning("%s: %d images have an attribution that is not finite; their means are NaN", key, count)
    return result


@dataclass(frozen=True)
class _Place:
    """Where blocks are measured and kept."""

    config: Mapping
    run: Run
    layout: sharding.Layout
    splits: Splits
    variables: Any
    evaluators: dict[int, Callable] = field(default_factory=dict)

    def means(self, block: Block) -> Callable:
        """`evaluator` of the block's examples; blocks of the same ones share it."""
        key = id(block.examples)
        if key not in self.evaluators:
            size = self.config.evaluation.batch_size
            self.evaluators[key] = evaluator(self.layout, block.examples, size, self.run.check_stop)
        return self.evaluators[key]

    def keep(self, block: Block) -> dict[str, float]:
        """A block's means, measured now or found in the run directory."""

        def make():
            logging.info("evaluation: %s, %d images", block.name, len(block.examples))
            pictures, options = {}, dict(block.options)
            if block.attacked is not None:
                options |= {"once": self._attack(block, pictures), "compile_once": False}
            values = self.means(block)(block.measure, self.variables, **options)
            if pictures:
                self.run.artifact(f"{FOLDER}/{block.name}.npz", lambda: pictures)
            return {k: v if np.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN

        values = self.run.artifact(f"{FOLDER}/{block.name}.json", make)
        return {k: np.nan if v is None else v for k, v in values.items()}

    def _attack(self, block: Block, pictures: dict) -> Callable:
        """The block's attack, which also puts the first batch's first images into `pictures`."""
        # On CPU the attack is a loop over a compiled step: in a loop of its own XLA is many times slower there.
        run = block.attacked if jax.default_backend() == "cpu" else jax.jit(block.attacked)
        count = min(self.config.evaluation.pictures, len(block.examples))
        mean, std = (np.asarray(value, np.float32) for value in (self.splits.mean, self.splits.std))

        @partial(jax.jit, out_shardings=self.layout.replicated)
        def first(found):
            images = {"image": found["x"], "attacked": found["moved"]}
            images = {k: jnp.clip(v * std + mean, 0, 1) for k, v in images.items()}
            maps = {"heatmap": found["before"]["heatmap"], "attacked_heatmap": found["after"]["heatmap"]}
            return {k: v[:count] for k, v in (images | maps | {"label": found["y"]}).items()}

        def once(variables, batch):
            found = run(variables, batch)
            if count and not pictures:
                pictures.update(jax.device_get(first(found)))
            return found

        return once


def _named(attribution: str, values: Mapping[str, float]) -> dict[str, float]:
    """A block's values under their keys in the result: counts as counts, the points of curves left out."""
    examples = values["examples"]
    found = {}
    for key, value in values.items():
        if key == "examples":
            continue
        group, name = key.split("/")
        if name.isdigit():
            continue
        found[f"{attribution}/{key}"] = round(value * examples) if name == NONFINITE else value
        found[f"{attribution}/{group}/examples"] = examples
    return found
