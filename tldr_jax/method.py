"""Text-based last-layer retraining on the cached embeddings: gap, projector, words, head (Park et al., WACV 2025).

Every step is a function of the config, and what it makes is kept in the run directory under the key of `stages`.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from launch.run import Run
from launch.training import duration
from tldr_jax import heads, metrics, projector, retrain, stages, words
from tldr_jax.classifier import backbones
from tldr_jax.heads import Head, draws
from tldr_jax.inputs import Inputs
from tldr_jax.projector import gap
from tldr_jax.projector import mlp as mlp_projector
from tldr_jax.words import WordSet, filters, templates, text
from tldr_jax.words.text import TextSet

KINDS = ("linear", "mlp")
SELECTIONS = ("by_wga", "by_class_balanced")
_CHUNK = 8192  # images in one shard of the moments
_FILES = {"celeba_tfds": "celeba"}  # the word list of a data set, where it has another name

Setting = tuple[float, int]  # ridge, gap rows


def check(config) -> None:
    """Refuse, before training, what could only fail after it.

    Raises:
      ValueError, FileNotFoundError: unknown names, or word lists that are not there.
    """
    if config.projector.kind not in KINDS:
        raise ValueError(f"no projector.kind={config.projector.kind!r}; there are {', '.join(KINDS)}")
    if config.projector.kind == "mlp" and config.retrain.grid.ridge:
        raise ValueError(f"retrain.grid.ridge={config.retrain.grid.ridge}: an mlp projector has no ridge, set ()")
    if config.gap.source not in gap.SOURCES:
        raise ValueError(f"no gap.source={config.gap.source!r}; there are {', '.join(gap.SOURCES)}")
    rows = {config.projector.gap_rows, *config.retrain.grid.gap_rows}  # the first is the filter's, whatever the grid
    if config.gap.source == "none" and any(rows):
        raise ValueError("gap.source='none' leaves the projector unconstrained: set projector.gap_rows=0 too")
    if wrong := sorted(count for count in rows if not 0 <= count <= config.gap.pairs):
        raise ValueError(f"projector.gap_rows={wrong[0]}: 0 to gap.pairs={config.gap.pairs}")
    templates.get(config.text.templates)
    duration.to_steps(config.retrain.duration, examples=1, batch_size=1)
    if config.retrain.evaluations < 1:
        raise ValueError(f"retrain.evaluations={config.retrain.evaluations}: at least 1")
    words.load(_source(config))


def settings(config) -> list[Setting]:
    """(ridge, gap rows) of every projector that heads are trained on."""
    grid = config.retrain.grid
    return list(
        itertools.product(
            grid.ridge or (config.projector.ridge,),
            grid.gap_rows or (config.projector.gap_rows,),
        )
    )


# -- the projector ----------------------------------------------------------------------------


def gap_rows(config, run: Run, inputs: Inputs, count: int) -> np.ndarray | None:
    """The modality gap in `count` rows, (count, d); None for 0, without a look at any pair."""
    if count == 0:
        return None

    def make():
        found = gap.pairs(config.gap)
        return {"differences": gap.differences(inputs.clip, found, batch_size=config.clip.batch_size)}

    return gap.rows(stages.keep(run, config, "gap", make)["differences"], count)


def projectors(config, run: Run, inputs: Inputs, wanted: Sequence[Setting]) -> list[Any]:
    """A projector for every (ridge, gap rows), fitted on the training images."""
    relu = backbones.kind(config.backbone.name).relu
    gaps = {rows: gap_rows(config, run, inputs, rows) for rows in {rows for _, rows in wanted}}
    x, y = inputs.images["train"], inputs.features["train"]
    if config.projector.kind == "mlp":
        arrays, options = (np.asarray(x), np.asarray(y)), config.projector.mlp
        fitted = {rows: mlp_projector.fit(*arrays, own, relu=relu, **options) for rows, own in gaps.items()}
        return [fitted[rows] for _, rows in wanted]

    def make():
        shards = ((x[start : start + _CHUNK], y[start : start + _CHUNK]) for start in range(0, len(x), _CHUNK))
        return dataclasses.asdict(projector.moments_of(shards))

    sums = stages.keep(run, config, "moments", make)
    moments = projector.Moments(**(sums | {"count": int(sums["count"])}))
    return [projector.solve(moments, gaps[rows], ridge=ridge, relu=relu) for ridge, rows in wanted]


# -- the words --------------------------------------------------------------------------------


def _source(config) -> str:
    return config.words.source or _FILES.get(config.data.name, config.data.name)


def _check_unchanged(config, run: Run) -> None:
    """Refuse a word list that is not what it was when this run directory kept what follows from it.

    Raises:
      ValueError: its words, anchors or pairs are others now.
    """
    name = _source(config)
    values = words.to_json(words.load(name))
    now = {field: values[field] for field in (*words.PARTS, "pairs", "unrelated")}
    if run.artifact(f"lists-{hashlib.sha256(name.encode()).hexdigest()[:12]}.json", lambda: now) != now:
        raise ValueError(
            f"the word list {name!r} has changed since {run.path} used it, and what is kept there follows from the old "
            "one: give the new one another name (words.source), or take another run directory"
        )


def word_lists(config, data) -> WordSet:
    """The words of the config, for the classes and spurious values of the data, in their order.

    Raises:
      ValueError: lists for other classes, other values or other pairs of them.
    """
    name = _source(config)
    found = words.load(name)
    for what, own, wanted in (("classes", found.classes, data.classes), ("values", found.values, data.spurious)):
        if tuple(own) != tuple(wanted):
            raise ValueError(
                f"words.source={name!r} has the {what} {', '.join(own)}; those of {config.data.name} are, in this "
                f"order, {', '.join(wanted)}"
            )
    if not np.array_equal(found.allowed, data.allowed):
        raise ValueError(f"words.source={name!r} combines other pairs than {config.data.name} has")
    if config.words.junk:
        found = words.with_junk(found, config.words.junk, seed=config.words.junk_seed)
    return found


def text_set(config, run: Run, inputs: Inputs, mapping) -> TextSet:
    """The words that the filters keep, under every template, embedded.

    Args:
      config: of the run.
      run: keeps the words that stayed and why others did not (words-….json), and the embeddings.
      inputs: the data, the CLIP and the head.
      mapping: the projector of the classifier filter.

    Raises:
      filters.EmptyWordListError: a filter leaves a list without words.
    """
    found, own = word_lists(config, inputs.data), templates.get(config.text.templates)
    options = dict(cache=run.path / "artifacts" / "texts", progress=False)

    def logits(embeddings: np.ndarray) -> np.ndarray:
        return np.asarray(heads.logits(inputs.head, projector.apply(mapping, embeddings)))

    def make():
        kept, report = filters.apply(
            inputs.clip,
            found,
            own,
            logits=logits,
            clip_target=config.words.clip_filter,
            clip_spurious=config.words.clip_filter,
            classifier=config.words.classifier_filter,
            **options,
        )
        logging.info("%s", report)
        return {"target": kept.target, "spurious": kept.spurious, "report": report.to_json()}

    kept = stages.keep(run, config, "words", make, suffix=".json")
    lists = {part: {name: tuple(listed) for name, listed in kept[part].items()} for part in words.PARTS}
    # all words, so that one embedding serves every choice of filters
    tables = text.embed(inputs.clip, found, own, **options)
    return text.narrow(tables, found, dataclasses.replace(found, **lists))


# -- the head ---------------------------------------------------------------------------------


def retrained(config, run: Run, inputs: Inputs) -> dict[str, np.ndarray]:
    """The text-trained heads of the grid and the two that validation images choose; kept in the run directory.

    The words are filtered once, with the config's own projector, whatever ridges and gap rows the grid has.

    Returns:
      `by_wga/kernel`, `by_wga/bias`, `by_class_balanced/…`: the chosen heads. Of all k members at e points: `ridge`,
      `gap_rows`, `learning_rate`, `weight_decay`, `seed` (k,), `steps` (e,), `loss`, `val/wga`, `val/class_balanced`,
      `test/wga` (k, e), which nothing is chosen by.

    Raises:
      ValueError: the word list has changed since the run directory used it.
      filters.EmptyWordListError: see `text_set`.
    """
    _check_unchanged(config, run)

    def make():
        found = plan(config, run, inputs)
        return settle(inputs, found, sweep(config, found, projector.stack(found.mappings), found.members))

    return stages.keep(run, config, "retrain", make)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the heads of a config are trained on.

    Attributes:
      texts: the words, embedded.
      mappings: a projector for each of the settings.
      settings: (ridge, gap rows).
      members: of the sweep.
      steps: of training.
    """

    texts: TextSet
    mappings: Sequence[Any]
    settings: list[Setting]
    members: retrain.Members
    steps: int

    def with_texts(self, texts: TextSet) -> "Plan":
        return dataclasses.replace(self, texts=texts)


def plan(config, run: Run, inputs: Inputs) -> Plan:
    """Projectors, words and the members of the grid.

    Raises:
      ValueError: the word list has changed since the run directory used it.
      filters.EmptyWordListError: see `text_set`.
    """
    _check_unchanged(config, run)
    options, wanted = config.retrain, settings(config)
    base = (config.projector.ridge, config.projector.gap_rows)
    first, *mappings = projectors(config, run, inputs, [base, *wanted])
    found = text_set(config, run, inputs, first)
    steps = duration.to_steps(options.duration, examples=draws.plan(found).epoch, batch_size=options.batch_size)
    members = retrain.grid(
        learning_rates=options.grid.learning_rate or (options.learning_rate,),
        weight_decays=options.grid.weight_decay or (options.weight_decay,),
        seeds=options.grid.seed or (options.seed,),
        projectors=range(len(mappings)),
    )
    return Plan(found, mappings, wanted, members, steps)


def sweep(config, found: Plan, mappings, members: retrain.Members) -> retrain.Trained:
    """Train heads on the texts of a plan, for as long as it says.

    Args:
      mappings: stacked projectors.
      members: the heads.
    """
    options = config.retrain
    return retrain.sweep(
        found.texts,
        mappings,
        members,
        batch_size=options.batch_size,
        steps=found.steps,
        evaluations=min(options.evaluations, found.steps),
    )


def settle(inputs: Inputs, found: Plan, trained: retrain.Trained) -> dict[str, np.ndarray]:
    """The heads that validation images choose, and how all of them fare: what `retrained` returns."""
    members = found.members
    data, names = inputs.data, inputs.names
    chosen = retrain.select(
        trained.heads, inputs.features["val"], *inputs.labels("val"), allowed=data.allowed, names=names
    )
    on_test = heads.predictions(trained.heads, inputs.features["test"])
    of_groups = metrics.group_accuracies(on_test, *inputs.labels("test"), data.allowed, names=names)
    return {
        **{f"{name}/{leaf}": getattr(getattr(chosen, name).head, leaf) for name in SELECTIONS for leaf in Head._fields},
        "ridge": np.array([found.settings[i][0] for i in members.projector]),
        "gap_rows": np.array([found.settings[i][1] for i in members.projector]),
        "learning_rate": members.learning_rate,
        "weight_decay": members.weight_decay,
        "seed": members.seed,
        "steps": trained.steps,
        "loss": trained.loss,
        "val/wga": chosen.wga,
        "val/class_balanced": chosen.class_balanced,
        "test/wga": metrics.worst_group(of_groups),
    }


def run_method(config, run: Run, inputs: Inputs) -> dict[str, dict[str, float]]:
    """What the chosen heads are worth on the test images: `by_wga` and `by_class_balanced` -> `metrics.summary`."""
    found = retrained(config, run, inputs)
    return {name: inputs.test(Head(found[f"{name}/kernel"], found[f"{name}/bias"])) for name in SELECTIONS}


def diagnose(config, run: Run, inputs: Inputs) -> dict[str, float]:
    """`projector.diagnostics` of the config's projector on the validation images, and the words that are kept."""
    setting = (config.projector.ridge, config.projector.gap_rows)
    (mapping,) = projectors(config, run, inputs, [setting])
    found = projector.diagnostics(
        mapping,
        gap_rows(config, run, inputs, setting[1]),
        image_embeddings=inputs.images["val"],
        features=inputs.features["val"],
        labels=inputs.labels("val")[0],
        head=inputs.head,
    )
    return dict(found) | word_counts(text_set(config, run, inputs, mapping), inputs.names)


def word_counts(found: TextSet, names: metrics.Names) -> Mapping[str, float]:
    """How many words each list has."""
    pairs = ((names[0], found.target_class), (names[1], found.spurious_value))
    return {f"words/{name}": float(np.sum(np.asarray(of) == i)) for own, of in pairs for i, name in enumerate(own)}
