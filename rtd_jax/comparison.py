"""RTD and its ablations side by side: the same φ and budget for all members of a seed, several seeds."""

import re

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from launch.files import write_atomically
from launch.run import Run
from rtd_jax import experiment, figures, tables

BASELINES = ("image", "text", "image_text", "phi", "oracle")


def run(config, run: Run) -> dict[str, float]:
    """A run inside this one for φ and one for every variant of `config.comparison`, each seed; finished ones are kept.

    A member's embeddings are kept in this run's folder `cache`, for the others. Leaves `table.md`, mean ± standard
    deviation over seeds.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for seed in config.comparison.seeds:
        base = _member(config, run, seed)
        base.rtd.train = False
        child, result = _finished(run, f"phi-seed{seed}", base)
        found.setdefault("phi", []).append(result)
        for title, changes in config.comparison.variants:
            member = _member(config, run, seed)
            member.phi.load = str(experiment.phi_file(child))
            member.update_from_flattened_dict(dict(changes))
            name = re.sub(r"\W+", "_", title.lower()).strip("_")
            folder, result = _finished(run, f"{name}-seed{seed}", member)
            found.setdefault(title, []).append(result)
    if run.writes:
        write_atomically(run.path / "table.md", table(found))
        figures.bars(run.path / "artifacts" / "recall.png", _rows(found))
    return {
        f"{title}/{key}": float(np.mean([result[key] for result in results]))
        for title, results in found.items()
        for key in results[0]
    }


def _member(config, run: Run, seed: int) -> ConfigDict:
    member = ConfigDict(config.to_dict())  # a copy of all levels
    del member.comparison
    member.experiment = "rtd_jax.experiment"
    member.seed = seed
    member.cache = member.cache or str(run.path / "cache")
    return member


def _finished(run: Run, name: str, config: ConfigDict):
    """The folder and the result of a member, run now if it has not been."""
    child = run.child(name, config)
    try:
        result = child.result()
        if result is None:
            logging.info("%s", name)
            result = child.finish(experiment.run(child.config, child))
        return child.path, result
    finally:
        child.close()


def _rows(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """task -> row title -> one mapping of metrics a seed: the baselines, φ, and every variant's own row."""
    by_task: dict[str, dict[str, list[dict[str, float]]]] = {}
    for title, results in found.items():
        for result in results:
            for task, rows in tables.by_task(result).items():
                if task in ("phi", "rtd"):
                    continue  # how their training went
                wanted = BASELINES if title == "phi" else ("rtd",)
                for row in (row for row in rows if row in wanted):
                    label = row if title == "phi" else f"φ + {title}"
                    by_task.setdefault(task, {}).setdefault(label, []).append(rows[row])
    last = lambda rows: {name: rows[name] for name in sorted(rows, key=lambda name: name == "oracle")}
    return {task: last(rows) for task, rows in by_task.items()}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A table a task: baselines, φ, the variants, the upper bound."""
    return "\n".join(tables.over_seeds(rows, task) for task, rows in _rows(found).items())
