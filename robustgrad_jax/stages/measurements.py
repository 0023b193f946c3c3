"""Measurements of a network: each is its own stage, so that more can be added without repeating any."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from launch.data import Split, Splits
from launch.data import splits as data_splits
from launch.networks import loops
from launch.results import NumbersStage, with_nan, without_nan
from launch.stages import Stage, free, stackable
from launch.store import Store
from launch.training import sharding
from launch.training.means import outline
from launch.training.program import Pass
from robustgrad_jax import attacks, training
from robustgrad_jax.attributions import explainers
from robustgrad_jax.measures import evaluation, means, under_attack
from robustgrad_jax.measures.evaluation import NONFINITE, Compare, Measure, Subject
from robustgrad_jax.measures.under_attack import Attack, RunAttack
from robustgrad_jax.stages.classifier import Classifier
from robustgrad_jax.stages.inputs import Architecture, ImageSplits, Pretrained

Weights = Classifier | Pretrained  # results have "variables"


class Inputs(Protocol):
    """Where a measurement finds what it needs besides the weights: a store, or outlines in its place."""

    def get(self, stage: Any, /) -> Any: ...


class _Outlines:
    """Data sets without their images, and what is made from them."""

    def get(self, stage: Any, /) -> Any:
        return stage.outline() if isinstance(stage, ImageSplits) else stage.make(self)


@dataclass(frozen=True)
class Explanation(Stage):
    """An attribution of an architecture; gives a `Subject`.

    Attributes:
      images: whose mean and std normalise, and whose training images expected_gradients refers to.
      architecture: of the network.
      name: of the attribution, see `robustgrad_jax.attributions.explainers.create`.
      options: of the attribution.
      seed: of random draws.
    """

    KEPT: ClassVar[bool] = False

    images: ImageSplits
    architecture: Architecture
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = stackable(0)

    def make(self, store: Inputs) -> Subject:
        splits, module = store.get(self.images), self.architecture.module(self.images.data.spec())
        prepare = training.Normalized(splits.mean, splits.std)
        attribute = explainers.create(
            self.name, self.options, model=module, splits=splits, prepare=prepare, seed=self.seed
        )
        return Subject(module, prepare, attribute)


@dataclass(frozen=True, kw_only=True)
class Measurement(Stage):
    """Means of a measure over images; gives {"values": name -> mean or None, "pictures": name -> array}.

    Attributes:
      weights: of the network that is measured.
      split: "test", or "val" for the images held out, by which settings can be chosen.
      examples: of the split, a seeded subset; 0 for all.
      seed: of the subset and of random draws.
    """

    GROUP: ClassVar[str] = ""  # prefix of the keys in the result where no attribution is measured

    weights: Weights
    split: str = "test"
    examples: int = 0
    batch_size: int = free(128)
    seed: int = stackable(0)

    def measure(self, store: Inputs) -> tuple[Measure, dict[str, Any]]:
        """What is measured of each image, and options of `masked_means`."""
        raise NotImplementedError(f"{type(self).__name__} has no measure()")

    def values(self, store: Store) -> dict[str, Any]:
        """{"values": …, "pictures": …}, with NaN for a mean over images of which one is not finite."""
        measure, options = self.measure(store)
        return {"values": self.means(store, measure, **options)}

    def passes(self, layout: sharding.Layout) -> list[Pass]:
        """See `launch.training.program.FrozenStage`."""
        measure, options = self.measure(_Outlines())
        spec = self.weights.images.data.spec()
        shapes = self.weights.architecture.shapes(spec)
        placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout.replicated)
        batch, count = means.outline(layout, spec, self.examples or spec.count(self.split), self.batch_size)
        wanted = {name: options[name] for name in ("repeats", "once") if name in options}
        return outline(layout, self.title, measure, jax.tree.map(placed, shapes), batch, batches=count, **wanted)

    def make(self, store: Store) -> dict[str, Any]:
        logging.info("%s: %s", type(self).__name__, self.title)
        return {"pictures": {}} | self.values(store)

    def encode(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """As plain JSON, which has no NaN, and arrays."""
        values = without_nan(value["values"])
        return {"attribution": self.attribution, "values": values, "pictures": value["pictures"]}

    def decode(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        return dict(tree) | {"values": with_nan(tree["values"])}

    @property
    def attribution(self) -> str:
        """The attribution that is measured, the prefix of its keys: "gradient"; "" for the network itself."""
        return ""

    @property
    def title(self) -> str:
        """For the log."""
        return self.attribution or self.GROUP

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values by their keys in the result."""
        return {f"{self.GROUP}/{name}": value for name, value in values.items()}

    def means(self, store: Store, measure: Measure, **options: Any) -> dict[str, float]:
        """Means of `measure` over the images of the split."""
        layout = sharding.layout()
        over_split = means.over_split(layout, self.measured(store), self.batch_size, store.stop.check)
        return over_split(measure, layout.place(store.get(self.weights)["variables"]), **options)

    def measured(self, store: Store) -> Split:
        """The images that are measured."""
        whole = getattr(store.get(self.weights.images), self.split)
        return data_splits.subset(whole, seed=self.seed, examples=self.examples, name="examples")

    def subject(self, store: Inputs) -> tuple[Any, training.Normalized, Splits]:
        """The network's module, what prepares a batch for it, and its data."""
        splits = store.get(self.weights.images)
        module = self.weights.architecture.module(self.weights.images.data.spec())
        return module, training.Normalized(splits.mean, splits.std), splits


@dataclass(frozen=True, kw_only=True)
class CleanAccuracy(Measurement):
    """Accuracy and cross-entropy of the clean images: "test/accuracy", or "val/accuracy"."""

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        return {f"{self.split}/{name}": value for name, value in values.items()}

    @property
    def title(self) -> str:
        return self.split

    def measure(self, store: Inputs) -> tuple[Measure, dict[str, Any]]:
        module, prepare, _ = self.subject(store)
        return evaluation.accuracy(module, prepare), {}


@dataclass(frozen=True, kw_only=True)
class UpperBound(Measurement):
    """The quantities of the paper's upper-bound study, over gaussian draws.

    Attributes:
      radius: ε, in units of 1/255 of the pixel range.
      draws: per image.
      compare: the heat maps before and after.
      batch_size: perturbed images are clipped to the range of their batch.
    """

    GROUP: ClassVar[str] = "upper-bound"

    radius: float
    draws: int
    compare: Compare
    batch_size: int = 128

    def measure(self, store: Inputs) -> tuple[Measure, dict[str, Any]]:
        module, prepare, splits = self.subject(store)
        measure = evaluation.upper_bound(
            module, prepare, std=splits.std, radius=self.radius, compare=self.compare, seed=self.seed
        )
        finish = partial(evaluation.hutchinson, radius=self.radius, draws=self.draws)
        return measure, {"repeats": self.draws, "finish": finish}

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        """As those of `Measurement`, with the number of images that are not finite for their share."""
        named = super().named(values)
        key = f"{self.GROUP}/{NONFINITE}"
        return named | {key: round(named[key] * values["examples"])}


@dataclass(frozen=True, kw_only=True)
class AttributionMeasurement(Measurement):
    """A measurement of one attribution.

    Attributes:
      explanation: the attribution.
    """

    explanation: Explanation

    @property
    def attribution(self) -> str:
        return self.explanation.name

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        """ "gradient/rps-4/pcc" -> value: counts as counts, the points of curves left out."""
        examples = values["examples"]
        result = {}
        for key, value in values.items():
            if key == "examples":
                continue
            group, name = key.split("/")
            if name.isdigit():
                continue
            result[f"{self.attribution}/{key}"] = round(value * examples) if name == NONFINITE else value
            result[f"{self.attribution}/{group}/examples"] = examples
        return result


@dataclass(frozen=True, kw_only=True)
class RandomPerturbations(AttributionMeasurement):
    """Similarity of attributions under random perturbations, RPS.

    Attributes:
      radii: ε, in units of 1/255 of the pixel range.
      draws: per image.
      compare: the attributions before and after.
      batch_size: perturbed images are clipped to the range of their batch.
    """

    radii: tuple[float, ...]
    draws: int
    compare: Compare
    batch_size: int = 128

    def measure(self, store: Inputs) -> tuple[Measure, dict[str, Any]]:
        subject, std = store.get(self.explanation), store.get(self.weights.images).std
        measure = evaluation.random_perturbation_similarity(
            subject, std=std, radii=self.radii, compare=self.compare, seed=self.seed
        )
        return measure, dict(repeats=self.draws, once=evaluation.clean(subject), finish=evaluation.count_nonfinite)


@dataclass(frozen=True, kw_only=True)
class UnderAttack(AttributionMeasurement):
    """Similarity of attributions before and after an attack, adversarial insertion, and pictures.

    Attributes:
      attack: the attack on the images.
      beta: of the softplus that ReLU networks are attacked through.
      compare: the attributions before and after.
      curve_steps: levels of the adversarial insertion curve; 0 for none.
      pictures: how many attacked images are kept.
      batch_size: attacked images are clipped to the range of their batch.
    """

    attack: Attack
    beta: float
    compare: Compare
    curve_steps: int = 0
    pictures: int = 0
    batch_size: int = 128

    @property
    def title(self) -> str:
        return f"{self.attribution}, {self.attack.name}"

    def measure(self, store: Inputs) -> tuple[Measure, dict[str, Any]]:
        subject, splits = store.get(self.explanation), store.get(self.weights.images)
        through = Subject(attacks.smoothed(subject.model, self.beta), subject.prepare, subject.attribute)
        attacked = under_attack.attacked(subject, through, self.attack, std=tuple(splits.std), seed=self.seed)
        measure = under_attack.under_attack(subject, self.attack, compare=self.compare, curve_steps=self.curve_steps)
        return measure, {"once": attacked, "compile_once": False}

    def values(self, store: Store) -> dict[str, Any]:
        measure, options = self.measure(store)
        pictures: dict[str, np.ndarray] = {}
        options["once"] = self._keeping(options["once"], store.get(self.weights.images), pictures)
        values = self.means(store, measure, **options)
        return {"values": values, "pictures": {self.attack.name: pictures} if pictures else {}}

    def _keeping(self, attacked: RunAttack, splits: Splits, pictures: dict[str, np.ndarray]) -> RunAttack:
        """The attack, which also puts the first images of the first batch into `pictures`."""
        whole = jax.jit(attacked)
        count = min(self.pictures, self.examples or len(getattr(splits, self.split)))
        mean, std = (np.asarray(value, np.float32) for value in (splits.mean, splits.std))

        @partial(jax.jit, out_shardings=sharding.layout().replicated)
        def first(result: Mapping[str, Any]) -> dict[str, jax.Array]:
            images = {"image": result["x"], "attacked": result["moved"]}
            images = {k: jnp.clip(v * std + mean, 0, 1) for k, v in images.items()}
            maps = {"heatmap": result["before"]["heatmap"], "attacked_heatmap": result["after"]["heatmap"]}
            return {k: v[:count] for k, v in (images | maps | {"label": result["y"]}).items()}

        def once(variables: Any, batch: evaluation.Batch) -> dict[str, Any]:
            result = (whole if loops.in_program(batch) else attacked)(variables, batch)
            if count and not pictures:
                pictures.update(jax.device_get(first(result)))
            return result

        return once


@dataclass(frozen=True, kw_only=True)
class PixelCurves(AttributionMeasurement):
    """Insertion and deletion curves: those of `names`, with `steps` levels."""

    names: tuple[str, ...]
    steps: int

    def measure(self, store: Inputs) -> tuple[Measure, dict[str, Any]]:
        return evaluation.curves(store.get(self.explanation), names=self.names, steps=self.steps), {}


@dataclass(frozen=True, kw_only=True)
class LocalStability(AttributionMeasurement):
    """Sensitivities of an attribution: those of `names`, over `draws` perturbations of size `radius` per image."""

    names: tuple[str, ...]
    radius: float
    draws: int

    def measure(self, store: Inputs) -> tuple[Measure, dict[str, Any]]:
        measure = evaluation.sensitivities(
            store.get(self.explanation),
            std=store.get(self.weights.images).std,
            radius=self.radius,
            names=self.names,
            samples=self.draws,
            seed=self.seed,
        )
        return measure, {}


@dataclass(frozen=True)
class RobustnessResult(NumbersStage):
    """The result of a run: how the training went, and all measurements.

    Its keys are "best_step", "val/accuracy", "test/accuracy", "gradient/rps-4/pcc", "gradient/rps-4/examples",
    "gradient/rps-4/nonfinite", "upper-bound/bound", …: means over the test images, except for the counts "examples" and
    "nonfinite". A mean over images of which one has an attribution that is not finite is NaN.
    """

    weights: Weights
    measurements: tuple[Measurement, ...]

    def make(self, store: Store) -> dict[str, float]:
        result: dict[str, float] = {}
        if isinstance(self.weights, Classifier):
            trained = store.get(self.weights)
            result |= {"best_step": trained["best_step"], **trained["metrics"]}
        for measurement in self.measurements:
            result |= measurement.named(store.get(measurement)["values"])
        for key, count in result.items():
            if key.endswith(f"/{NONFINITE}") and count:
                logging.warning("%s: %d images have an attribution that is not finite; their means are NaN", key, count)
        return result
