"""Several classifiers and several CLIPs: every method, ridges with and without the gap constraint, junk words.

`config.study` says what is varied; everything else is a config of `tldr_jax.experiment`. All members share one run
directory, so that the classifier of a seed is trained once, whatever is tried on it. A run that was stopped goes on
with the first stage that is missing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from launch.files import write_atomically
from launch.run import Run
from tldr_jax import experiment, inputs, method, reference, tables
from tldr_jax.words import filters

REVISABLE = (*experiment.REVISABLE, "study")

# Column of the junk table -> what it sets.
_FILTERS: Mapping[str, Mapping[str, Any]] = {
    "both filters": {},
    "CLIP filter": experiment.ABLATIONS["no_classifier_filter"],
    "no filter": experiment.ABLATIONS["no_filters"],
}
_CONSTRAINT: Mapping[str, Mapping[str, Any]] = {
    "with the gap constraint": {},
    "without": experiment.ABLATIONS["no_gap"],
}

Cells = dict[tuple[str, str], list[float | None]]


def _worst(config, run: Run, found: inputs.Inputs) -> float | None:
    """WGA of the head chosen by validation WGA; None where a filter left a list without words."""
    try:
        return method.run_method(config, run, found)["by_wga"]["wga"]
    except filters.EmptyWordListError as error:
        logging.warning("%s", error)
        return None


def _variants(config, run: Run, found: inputs.Inputs) -> tuple[Cells, Cells]:
    """WGA by (ridge, constraint) and by (share of junk words, filters), a list of one value or one a draw."""
    options, ridges, junk = config.study, {}, {}
    for ridge in options.ridges:
        for column, overrides in _CONSTRAINT.items():
            own = {"projector.ridge": ridge, "retrain.grid.ridge": (), **overrides}
            own = experiment.changed(config, own)
            ridges[f"{ridge:g}", column] = [_worst(own, run, found)]
    for share in options.junk:
        for column, overrides in _FILTERS.items():
            draws = [{"words.junk": share, "words.junk_seed": draw} for draw in range(options.junk_draws)]
            junk[f"{share:.0%}", column] = [
                _worst(experiment.changed(config, {**draw, **overrides}), run, found) for draw in draws
            ]
    return ridges, junk


def _methods(config, run: Run, found: inputs.Inputs) -> dict[str, dict[str, float] | None]:
    """Method -> `metrics.summary`, chosen by validation WGA; None where a filter left a list without words."""
    values: dict[str, dict[str, float] | None] = {}
    for name in config.baselines:
        values[name] = reference.measure(name, config, run, found)
    overrides = {"tldr": {}, **{name: experiment.ABLATIONS[name] for name in config.ablations}}
    for name, own in overrides.items():
        both = (name, "by_wga"), (f"{name}_class_balanced", "by_class_balanced")
        try:
            chosen = method.run_method(experiment.changed(config, own), run, found)
        except filters.EmptyWordListError as error:
            logging.warning("%s: %s", name, error)
            chosen = {}
        values |= {key: chosen.get(selection) for key, selection in both}
    return values


def _gather(into: Cells, new: Cells) -> None:
    for key, values in new.items():
        into.setdefault(key, []).extend(values)


def check(config) -> None:
    """Refuse, before the first training, what could only fail after it.

    Raises:
      ValueError: nothing to vary, or what `experiment.check` refuses of any member.
    """
    if not config.study.seeds or not config.study.clips:
        raise ValueError("config.study: at least one of seeds and one of clips is needed")
    if config.study.junk and config.study.junk_draws < 1:
        raise ValueError(f"study.junk_draws={config.study.junk_draws}: at least 1")
    experiment.check(config)
    for share in config.study.junk:
        junk = experiment.changed(config, {"words.junk": share})
        method.word_lists(junk, inputs.read(config.data))


def run(config, run: Run) -> dict[str, float]:
    """Every member; writes table.md, and gives "METHOD/metric" (and "/std"), "ridge/…" and "junk/…"."""
    check(config)
    methods: dict[str, dict[str, list]] = {}
    by_clip: Cells = {}
    ridges, junk = {}, {}
    clips = {source: inputs.load_clip(source) for source in config.study.clips}
    for seed in config.study.seeds:
        data = None
        for number, (source, clip) in enumerate(clips.items()):
            logging.info("seed %d of the classifier, CLIP %s", seed, source)
            own = experiment.changed(config, {"seed": seed, "data.seed": seed, "clip.source": source})
            data = data or inputs.read(own.data)
            found = inputs.prepare(own, run, data=data, clip=clip)
            for name, values in _methods(own, run, found).items():
                by_clip.setdefault((tables.title(name), f"CLIP {number}"), []).append(values and values["wga"])
                if number and name in reference.WITHOUT_CLIP:
                    continue  # counted again, they would feign a smaller spread
                for metric in tables.METRICS:
                    methods.setdefault(name, {}).setdefault(metric, []).append(values and values[metric])
            for whole, part in zip((ridges, junk), _variants(own, run, found), strict=True):
                _gather(whole, part)
            jax.clear_caches()  # a program for every number of words that a filter leaves: they would pile up
    if run.writes:
        write_atomically(run.path / "table.md", _tables(config, methods, by_clip, ridges, junk))
    return _result(methods, {"ridge": ridges, "junk": junk})


def _tables(config, methods: Mapping, by_clip: Cells, ridges: Cells, junk: Cells) -> str:
    seeds, clips = len(config.study.seeds), len(config.study.clips)
    alone = " (methods without CLIP: over the seeds)" if clips > 1 else ""
    parts = [
        f"Mean ± standard deviation over {seeds} seeds of the classifier and its data and {clips} CLIPs{alone}.\n",
        tables.grid(
            "",
            {
                (tables.title(name), tables.METRICS[metric]): values
                for name, own in methods.items()
                for metric, values in own.items()
            },
        ),
    ]
    if clips > 1:
        parts += ["WGA by CLIP, over the seeds of the classifier:\n", tables.grid("", by_clip)]
    if ridges:
        parts += ["WGA by ridge:\n", tables.grid("ridge", ridges)]
    if junk:
        parts += [f"WGA with junk words, {config.study.junk_draws} draws each:\n", tables.grid("junk", junk)]
    return "\n".join(parts)


def _result(methods: Mapping, grids: Mapping[str, Cells]) -> dict[str, float]:
    cells = {f"{name}/{metric}": values for name, own in methods.items() for metric, values in own.items()}
    for kind, grid in grids.items():
        cells |= {f"{kind}/{row}/{column}": values for (row, column), values in grid.items()}
    result = {}
    for key, values in cells.items():
        found = [value for value in values if value is not None]
        result[key] = float(np.mean(found)) if found else float("nan")
        if len(found) > 1:
            result[f"{key}/std"] = float(np.std(found, ddof=1))
    return result
