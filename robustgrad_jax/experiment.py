"""Train a classifier whose input gradients resist perturbation, keep its last state or the best, measure it.

With `config.train=False` the training is left out, and the network of `config.init_from` is measured. A run leaves its
figures in `artifacts/figures`.

Configs: `configs/robustgrad/`. Method: Joo et al., "Towards More Robust Interpretation via Local Gradient Alignment",
AAAI 2023 (arXiv 2211.15900).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.data import DataSet, Spec
from launch.files import load_json, load_tree
from launch.processes import compiling
from launch.reading import shown
from launch.run import PLAN
from launch.stages import SettingError, Stage, about, section, setting, settings
from launch.store import Store
from launch.training.optim import Optimizer
from launch.training.sharding import MODES
from robustgrad_jax import gallery, regularizers
from robustgrad_jax.attributions import explainers
from robustgrad_jax.measures import evaluation
from robustgrad_jax.measures.evaluation import Compare
from robustgrad_jax.measures.settings import ADVERSARIAL_INSERTION, Evaluation
from robustgrad_jax.measures.under_attack import Attack
from robustgrad_jax.results import describe
from robustgrad_jax.stages import measurements
from robustgrad_jax.stages.classifier import Classifier, TrainingLoop
from robustgrad_jax.stages.inputs import Architecture, ImageSplits, pretrained
from robustgrad_jax.stages.measurements import Explanation, Measurement, RobustnessResult, Weights

__all__ = ["MOVED", "compare", "describe", "leave", "plan"]

MOVED = {"comparison": "write a sweep(), as configs/robustgrad/scenes_comparison.py has, or give --grid"}


# -- the plan -------------------------------------------------------------------------------------------------------


def plan(config: Any) -> RobustnessResult:
    """The run of a config as a stage; nothing is computed.

    Raises:
      SettingError, ValueError, FileNotFoundError: whatever could only fail later: names that do not exist, numbers out
        of range, weights that do not fit.
    """
    seed = setting(config, "seed", int, least=0)
    images = ImageSplits(settings(DataSet, config, "data"), seed)
    architecture = settings(Architecture, config, "model", precision=compiling.precision_of(config))
    options = settings(Evaluation, config, "evaluation")
    spec = images.data.spec()
    with section("evaluation"):
        options.check(spec)
    source = setting(config, "init_from", str)
    initial = pretrained(source, images, architecture) if source else None
    weights: Weights
    if setting(config, "train", bool):
        weights = settings(
            Classifier,
            config,
            images=images,
            architecture=architecture,
            regularizer=_regularizer(config),
            optimizer=settings(Optimizer, config, "optimizer"),
            initial=initial,
            mode=setting(config, "sharding.mode", str, known=MODES),
            loop=settings(TrainingLoop, config, "loop"),
            val_batch_size=options.batch_size,
        )
        weights.check()
    elif initial is None:
        raise SettingError("train", "=False: give --config.init_from=RUN_OR_FILE, a run directory or .safetensors")
    else:
        weights = initial
    return RobustnessResult(weights, tuple(_measurements(options, spec, weights, seed)))


def _regularizer(config: Any) -> regularizers.Penalty:
    """The regulariser that a config names; the settings of others are checked, too."""
    name = setting(config, "regularizer.name", str, known=regularizers.NAMES)
    options = config["regularizer"]
    sections = {key for key in options if isinstance(options[key], Mapping) or hasattr(options[key], "to_dict")}
    _refuse_old_names(options, sections)
    for other in ("l2_cosine", *sorted(sections & set(regularizers.NAMES))):
        _named_regularizer(config, other, sections)
    return _named_regularizer(config, name, sections)


def _named_regularizer(config: Any, name: str, sections: set[str]) -> regularizers.Penalty:
    """A regulariser from the section of its name, or from `regularizer` itself."""
    options, (kind, fixed) = config["regularizer"], regularizers.kind(name)
    fields = {field.name for field in dataclasses.fields(kind)}
    if name not in sections:
        return settings(kind, config, "regularizer", skip=set(options) - fields, **fixed)
    path = f"regularizer.{name}"
    common = {key: setting(config, f"regularizer.{key}", float) for key in {"radius"} & fields}
    try:
        return settings(kind, config, path, **common, **fixed)
    except SettingError as error:
        shared = {f"{path}.{key}": f"regularizer.{key}" for key in common}
        raise SettingError(shared.get(error.name, error.name), error.problem) from error


def _refuse_old_names(options: Any, sections: set[str]) -> None:
    """Raise `SettingError` for "regularizer.iga_weight", which is now called "regularizer.iga.weight"."""
    known = {field.name for field in dataclasses.fields(regularizers.Alignment)} | {"name"}
    for name in set(options) - sections - known:
        owner = next((part for part in sections if name.startswith(f"{part}_")), None)
        valid = f"it is regularizer.{owner}.{name.removeprefix(f'{owner}_')} now" if owner else "no such setting"
        raise SettingError(f"regularizer.{name}", f"={shown(options[name])}: {valid}")


def _measurements(options: Evaluation, spec: Spec, weights: Weights, seed: int) -> list[Measurement]:
    """Everything that is measured, in order."""
    shared: dict[str, Any] = {
        "weights": weights,
        "split": options.split,
        "seed": seed,
        "batch_size": options.batch_size,
    }
    chosen: list[Measurement] = [measurements.CleanAccuracy(**shared)]
    for name in options.names:
        _check_attribution(name, options, spec, weights)
        explanation = Explanation(weights.images, weights.architecture, name, _attribution_options(name, options), seed)
        chosen += _of_attribution(options, spec, shared | {"explanation": explanation})
    if options.upper_bound:
        chosen.append(
            measurements.UpperBound(
                radius=options.upper_bound_radius,
                draws=options.draws,
                compare=Compare(options.metrics, options.pixels(spec) if "top_k" in options.metrics else 1),
                examples=options.examples,
                **shared,
            )
        )
    return chosen


def _of_attribution(options: Evaluation, spec: Spec, shared: Mapping[str, Any]) -> list[Measurement]:
    """The measurements of one attribution; settings that do not matter for one of them are left at their defaults."""
    on_few = {**shared, "examples": options.attack_examples}
    pixels = options.pixels(spec)
    compare = Compare(options.metrics, pixels if "top_k" in options.metrics else 1)
    relu = shared["weights"].architecture.activation == "relu"
    chosen: list[Measurement] = []
    attacked = not options.attacked or shared["explanation"].name in options.attacked
    for kind in options.perturbations:
        if kind == "rps":
            chosen.append(
                measurements.RandomPerturbations(
                    radii=options.radii, draws=options.draws, compare=compare, examples=options.examples, **shared
                )
            )
            continue
        if not attacked:
            continue
        matters: dict[str, Any] = {
            "steps": options.attack_steps if kind != "random_sign" else 1,
            "gamma": options.attack_gamma if kind == "aam" else 1.0,
            "top_k": pixels if kind == "top_k" else 1,
            "clip": options.attack_clip,
        }
        chosen += [
            measurements.UnderAttack(
                attack=Attack(kind, radius, **matters),
                beta=options.attack_beta if relu else 1.0,
                compare=compare,
                curve_steps=options.curve_steps if ADVERSARIAL_INSERTION in options.curves else 0,
                pictures=options.pictures,
                **on_few,
            )
            for radius in options.attack_radii
        ]
    if not attacked:
        return chosen
    if names := tuple(curve for curve in options.curves if curve in evaluation.CURVES):
        chosen.append(measurements.PixelCurves(names=names, steps=options.curve_steps, **on_few))
    if options.sensitivity:
        radius, draws = options.sensitivity_radius, options.sensitivity_draws
        chosen.append(measurements.LocalStability(names=options.sensitivity, radius=radius, draws=draws, **on_few))
    return chosen


def _attribution_options(name: str, options: Evaluation) -> dict[str, Any]:
    """The settings that an attribution depends on."""
    return {
        "integrated_gradients": {"steps": options.path_steps},
        "integrated_gradients_published": {"steps": options.path_steps},
        "smoothgrad": {"samples": options.samples, "level": options.noise_level},
        "expected_gradients": {"samples": options.samples, "references": options.references},
        "grad_cam": {"layer": options.grad_cam_layer},
    }.get(name, {})


def _check_attribution(name: str, options: Evaluation, spec: Spec, weights: Weights) -> None:
    layer = options.grad_cam_layer if name == "grad_cam" else ""
    with about("evaluation.grad_cam_layer" if name == "grad_cam" else "evaluation.attributions"):
        explainers.check(name, layer, weights.architecture.module(spec), spec.image_shape)


# -- what a run leaves ----------------------------------------------------------------------------------------------


def leave(folder: Path, root: RobustnessResult, store: Store) -> None:
    """Draw the figures of a run, in its artifacts/figures."""
    trees = [stage.encode(store.get(stage)) for stage in root.measurements]
    gallery.draw(folder / "artifacts" / "figures", {name: [m] for name, m in gallery.gather(trees).items()})


def compare(folder: Path, members: Sequence[tuple[str, Path]]) -> None:
    """Draw the figures of several runs side by side, in a folder per attribution.

    Args:
      folder: to draw in.
      members: (title, run directory); those of one title are seeds of one setting.
    """
    series: dict[str, dict[str, list[gallery.Measured]]] = {}
    for title, path in members:
        for attribution, measured in gallery.gather(_kept(path)).items():
            series.setdefault(attribution, {}).setdefault(title, []).append(measured)
    for attribution, by_title in series.items():
        gallery.draw(folder / attribution, by_title)


def _kept(path: Path) -> list[Mapping[str, Any]]:
    """The measurements of a finished run, as its store keeps them."""
    plan = load_json(path / PLAN)
    store = path / plan["store"]
    names = {kind.__name__ for kind in _kinds(Measurement)}
    return [load_tree(store / key / "value") for key, kind in plan["stages"].items() if kind in names]


def _kinds(stage: type[Stage]) -> list[type[Stage]]:
    return [kind for sub in stage.__subclasses__() for kind in (sub, *_kinds(sub))]
