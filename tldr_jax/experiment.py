"""Debias a classifier with words: train it, look at its features through CLIP, retrain its last layer on text.

Configs: `configs/tldr/`. Method: Park et al., "TLDR: Text Based Last-layer Retraining for Debiasing Image Classifiers",
WACV 2025 (arXiv 2311.18291).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from launch.data.scenes import IMAGE_SIZE
from launch.files import write_atomically
from launch.networks.dtypes import DTYPES
from launch.processes import compiling
from launch.stages import (
    File,
    SettingError,
    about,
    require_distinct,
    require_known,
    section,
    setting,
    settings,
)
from launch.store import Store
from launch.training.fit import Loop
from launch.training.sharding import MODES
from tldr_jax import datasets, results, words
from tldr_jax.classifier.backbones import Backbone
from tldr_jax.classifier.training import BestCheckpoint
from tldr_jax.datasets.preparation import PREPARATIONS, PUBLISHED
from tldr_jax.stages import comparison, images, text
from tldr_jax.stages.heads import ChosenHeads, Heads
from tldr_jax.words import WordSet, templates
from tldr_jax.words.templates import Templates, fill

FILTERS = {"both": (True, True), "clip": (True, False), "classifier": (False, True), "none": (False, False)}
SELECT = ("last", "best_accuracy", "best_wga")
_WORDS = {"celeba_tfds": "celeba"}  # the word list of a data set that shares another's

# Settings of the section `data` by what they configure.
_AUGMENTATION = ("flip", "crop", "crop_padding", "workers")
_CADENCE = ("log_every", "eval_every", "checkpoint_every", "steps_per_call")
_SIZES = tuple(f"{split}_examples" for split in datasets.SPLITS)

Projector = text.LinearProjector | text.NetworkProjector


@dataclass(frozen=True)
class ProjectorSettings:
    """The section `projector`, but for the network of `mlp`; see `text.LinearProjector`."""

    kind: str = "linear"
    ridge: float = 50.0
    gap_rows: int = 1

    def __post_init__(self) -> None:
        require_known(self, "kind", ("linear", "mlp"))


@dataclass(frozen=True)
class HeadGrid:
    """The section `retrain.grid`: all combinations of these values are trained; () for the one of `retrain` itself."""

    learning_rate: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()
    ridge: tuple[float, ...] = ()
    gap_rows: tuple[int, ...] = ()
    filters: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_distinct(self, "ridge", "gap_rows", "filters")
        require_known(self, "filters", FILTERS)


describe = results.describe
MOVED = {"study": "write a sweep(), as configs/tldr/scenes_study.py has; several CLIPs: --config=FILE:CLIP,CLIP"}


def with_projectors(heads: Heads, change: Callable[[Projector], Projector]) -> Heads:
    """The heads with all projectors changed, those of the classifier filter too; equal ones become one."""
    filtered = heads.words.projector
    kept = heads.words if filtered is None else replace(heads.words, projector=change(filtered))
    return replace(heads, words=kept, projectors=tuple(dict.fromkeys(map(change, heads.projectors))))


def ablations(network: text.NetworkFit) -> Mapping[str, Callable[[Heads], Heads]]:
    """The ablations by name.

    Args:
      network: of `mlp_projector`.
    """

    def by_network(projector: Projector) -> Projector:
        if isinstance(projector, text.NetworkProjector):
            return projector
        return text.NetworkProjector(
            images=projector.moments.images,
            features=projector.target,
            gap=projector.gap,
            gap_rows=projector.gap_rows,
            fit=network,
        )

    return {
        "no_gap": lambda t: with_projectors(t, lambda own: replace(own, gap=None, gap_rows=0)),
        "no_clip_filter": lambda t: replace(t, words=replace(t.words, clip_filter=False)),
        "no_classifier_filter": lambda t: replace(t, words=replace(t.words, projector=None)),
        "no_filters": lambda t: replace(t, words=replace(t.words, clip_filter=False, projector=None)),
        "mlp_projector": lambda t: with_projectors(t, by_network),
    }


def plan(config) -> comparison.Comparison:
    """The stages of a config; nothing is computed.

    Raises:
      SettingError, ValueError, FileNotFoundError: a setting that cannot be used, a word list or a file that is missing.
    """
    splits = {split: _split(config, split) for split in datasets.SPLITS}
    erm = _erm(config, splits)
    dtype = setting(config, "embedding.dtype", str, known=DTYPES)
    with about("clip.source"):
        clip = images.FrozenClip.named(setting(config, "clip.source", str), compiling.precision_of(config), dtype)
    size, clip_size = (setting(config, f"{name}.batch_size", int, least=1) for name in ("evaluation", "clip"))
    views = {split: images.ClipImages(clip, own, clip_size, size) for split, own in splits.items()}
    # Only the zero-shot baseline asks for CLIP's embeddings of the test images.
    beside = views if "zero_shot" in setting(config, "baselines", tuple[str, ...]) else views | {"test": None}
    features = {split: images.Features(erm, own, dtype, size, beside[split]) for split, own in splits.items()}
    word_set = _word_set(config, splits["train"].groups)
    forms = templates.get(setting(config, "text.templates", str, known=templates.SETS))
    base, projectors, network = _projectors(config, clip, views["train"], features["train"])
    embedded = settings(
        text.EmbeddedWords,
        config,
        "words",
        skip=("source", "clip_filter", "classifier_filter"),
        clip=clip,
        words=word_set,
        templates=forms,
    )
    by_clip, by_classifier = (setting(config, f"words.{name}_filter", bool) for name in ("clip", "classifier"))
    filtered = lambda by_clip, by_classifier: text.KeptWords(embedded, by_clip, base if by_classifier else None)
    kept, grid = filtered(by_clip, by_classifier), settings(HeadGrid, config, "retrain.grid")
    candidates = [filtered(*FILTERS[name]) for name in grid.filters] or [kept]
    heads = _heads(config, words=candidates[0], projectors=projectors, val=features["val"])
    known = {"tldr": lambda own: own, **ablations(network)}
    ablated = ("tldr", *setting(config, "ablations", tuple[str, ...], known=ablations(network)))
    return comparison.Comparison(
        features["train"],
        features["test"],
        views["test"],
        _baselines(config, features, clip, word_set, forms, (base, views["val"])),
        tuple((name, _chosen([known[name](replace(heads, words=own)) for own in candidates])) for name in ablated),
        comparison.Diagnostics(base, views["val"], features["val"], kept),
    )


def leave(folder: Path, root: comparison.Comparison, store: Store) -> None:
    """Write words.json into the run directory: the words that the filters kept, and why others were dropped."""
    kept = store.get(root.diagnostics.words)
    content = {**kept.words, "report": kept.report, "problem": kept.problem}
    write_atomically(folder / "words.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")


# -- the parts of a plan ----------------------------------------------------------------------------------------------


def _split(config, split: str) -> images.ImageSplit:
    own = dict(split=split, examples=setting(config, f"data.{split}_examples", int))
    skip = ("image_size", "preparation", *_AUGMENTATION, *_SIZES)
    return settings(images.ImageSplit, config, "data", skip=skip, **own)


def _preparation(config, name: str) -> str:
    """How the images of a data set are cut to size: as published, or as the config says."""
    chosen: str = setting(config, "data.preparation", str)
    if name == "scenes":
        if chosen:
            raise SettingError("data.preparation", f"={chosen!r}: Scenes' images have their size already; set ''")
        return ""
    return setting(config, "data.preparation", str, known=PREPARATIONS) if chosen else PUBLISHED[name]


def _erm(config, splits: Mapping[str, images.ImageSplit]) -> images.Erm:
    """The classifier, with its pretraining if there is one."""
    size, precision = setting(config, "data.image_size", int), compiling.precision_of(config)
    backbone = settings(Backbone, config, "backbone", image_size=size, precision=precision)
    if splits["train"].name == "scenes" and backbone.image_size != IMAGE_SIZE:
        raise SettingError("data.image_size", f"={backbone.image_size}: Scenes has images of {IMAGE_SIZE} pixels")
    select = setting(config, "erm.select", str, known=SELECT)
    loop = _loop(config, "erm")
    best = None if select == "last" else BestCheckpoint(select.removeprefix("best_"), loop.eval_every)
    others = [name for name in config.data if name not in _AUGMENTATION]
    given = dict(backbone=backbone, sharding=setting(config, "sharding.mode", str, known=MODES), loop=loop)
    weights = setting(config, "erm.init_from", str)
    pretrain = given | {"loop": _loop(config, "pretrain")}
    pretraining = settings(images.Pretraining, config, "pretrain", skip=_CADENCE, **pretrain)
    start: images.Pretraining | File | None = File(weights) if weights else None
    if start is None and pretraining.trains:
        if splits["train"].name != "scenes":
            raise SettingError(
                "pretrain.duration",
                f"={pretraining.duration!r}: attributes are known for Scenes only, not for {splits['train'].name!r}; "
                "set it to '0 steps' and erm.init_from to published weights",
            )
        pretraining.check_batch(pretraining.training_data().count)
        start = pretraining
    erm = settings(
        images.Erm,
        config,
        "erm",
        skip=("init_from", "select", *_CADENCE),
        images=splits["train"],
        val=splits["val"],
        start=start,
        best=best,
        seed=setting(config, "seed", int, least=0),
        augmentation=settings(images.Augmentation, config, "data", skip=others),
        preparation=_preparation(config, splits["train"].name),
        eval_batch_size=setting(config, "evaluation.batch_size", int, least=1),
        **given,
    )
    erm.check_batch(erm.training_data().count)
    return erm


def _loop(config, path: str) -> Loop:
    return settings(Loop, config, path, skip=[name for name in config[path] if name not in _CADENCE])


def _word_set(config, groups: datasets.Groups) -> WordSet:
    """The words of the config, for the classes and spurious values of the data, in their order.

    Raises:
      SettingError: lists for other classes, other values or other pairs of them.
    """
    name: str = setting(config, "data.name", str)
    source: str = setting(config, "words.source", str) or _WORDS.get(name, name)
    with about("words.source"):
        word_set = words.load(source)
    for what, own, expected in (
        ("classes", word_set.classes, groups.classes),
        ("values", word_set.values, groups.spurious),
    ):
        if own != tuple(expected):
            raise SettingError(
                "words.source",
                f"={source!r} has the {what} {', '.join(own)}; those of {name} are, in this order, "
                f"{', '.join(expected)}",
            )
    if (word_set.allowed != groups.allowed).any():
        raise SettingError("words.source", f"={source!r} combines other pairs than {name} has")
    return word_set


def _projectors(
    config, clip: images.FrozenClip, view: images.ClipImages, features: images.Features
) -> tuple[Projector, tuple[Projector, ...], text.NetworkFit]:
    """The projector of the filter, those that heads are trained on, and how a network is fitted in their place."""
    own, grid = (
        settings(ProjectorSettings, config, "projector", skip=("mlp",)),
        settings(HeadGrid, config, "retrain.grid"),
    )
    network = settings(text.NetworkFit, config, "projector.mlp")
    if own.kind == "mlp" and grid.ridge:
        raise SettingError("retrain.grid.ridge", f"={grid.ridge}: an mlp projector has no ridge, set ()")
    gap = None
    if setting(config, "gap.source", str) != "none":
        gap = settings(text.Gap, config, "gap", clip=clip, batch_size=view.batch_size)
    elif own.gap_rows or any(grid.gap_rows):
        raise SettingError(
            "gap.source", "='none' leaves the projector unconstrained: set projector.gap_rows=0 and grid.gap_rows=()"
        )
    if own.kind == "mlp":
        create = lambda ridge, **gaps: text.NetworkProjector(images=view, features=features, fit=network, **gaps)
    else:
        create = partial(text.LinearProjector, moments=text.ImageMoments(view, features))
    constrained = lambda ridge, rows: create(ridge=float(ridge), gap=gap if rows else None, gap_rows=rows)
    with section("projector"):
        base = constrained(own.ridge, own.gap_rows)
    ridges, rows = grid.ridge or (own.ridge,), grid.gap_rows or (own.gap_rows,)
    with section("retrain.grid"):
        return base, tuple(constrained(ridge, count) for ridge in ridges for count in rows), network


def _heads(config, **parts: Any) -> Heads:
    grid = settings(HeadGrid, config, "retrain.grid")
    one = lambda name: (setting(config, f"retrain.{name}", int if name == "seed" else float),)
    axes = ("learning_rate", "weight_decay", "seed")
    heads = settings(Heads, config, "retrain", skip=("grid",), **{name: one(name) for name in axes}, **parts)
    with section("retrain.grid"):
        return replace(heads, **{name: getattr(grid, name) for name in axes if getattr(grid, name)})


def _chosen(candidates: Sequence[Heads]) -> Heads | ChosenHeads:
    """One of several heads, chosen on validation images; ablated ones may be equal."""
    different = tuple(dict.fromkeys(candidates))
    return different[0] if len(different) == 1 else ChosenHeads(different)


def _baselines(
    config,
    features: Mapping[str, images.Features],
    clip: images.FrozenClip,
    word_set: WordSet,
    forms: Templates,
    projected: tuple[Projector, images.ClipImages],
) -> tuple[tuple[str, comparison.Baseline], ...]:
    pair: dict[str, Any] = dict(train=features["train"], val=features["val"])
    prompts = tuple(
        tuple(fill(template, words_of_class.anchor, articles=forms.articles) for template in forms.target)
        for words_of_class in word_set.target
    )
    known: dict[str, comparison.Baseline] = {
        "erm": comparison.ErmHead(features["train"].erm),
        "zero_shot": comparison.ZeroShot(clip, prompts),
        "class_balanced": settings(comparison.ClassBalanced, config, "class_balanced", **pair),
        "afr": settings(comparison.Afr, config, "afr", **pair),
        "dfr": settings(comparison.Dfr, config, "dfr", **pair),
        "projected_images": settings(
            comparison.ProjectedImages, config, "dfr", projector=projected[0], images=projected[1], **pair
        ),
    }
    names = setting(config, "baselines", tuple[str, ...], known=known)
    return tuple((name, known[name]) for name in names)
