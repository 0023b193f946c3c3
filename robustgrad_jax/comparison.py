"""Train the same network with several regularisers, same seeds and budget, and put what came out side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from launch.files import write_atomically
from launch.run import Run
from robustgrad_jax import experiment


def columns(radii: Sequence[float]) -> dict[str, str]:
    """Column title -> key of a result: accuracy, and the three similarities at every radius."""
    names = {"cosine": "cosine", "pcc": "PCC", "ssim": "SSIM"}
    return {"accuracy": "test/accuracy"} | {
        f"{title} ε={radius:g}": f"rps-{radius:g}/{key}" for radius in radii for key, title in names.items()
    }


def table(results: Mapping[str, Sequence[Mapping[str, float]]], radii: Sequence[float]) -> str:
    """A Markdown table: one row a regulariser, mean ± standard deviation over its seeds (just the value for one seed).

    Args:
      results: regulariser -> one result a seed.
      radii: of the random perturbations, in 1/255.
    """
    titles = columns(radii)
    lines = ["| regulariser | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name, runs in results.items():
        cells = []
        for key in titles.values():
            values = [run[key] for run in runs]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def run(config, run: Run) -> dict[str, float]:
    """One run inside this one for every regulariser and seed of `config.comparison`; finished ones are kept."""
    results: dict[str, list] = {}
    for seed in config.comparison.seeds:
        for name in config.comparison.regularizers:
            member = ConfigDict(config)
            member.unlock()
            del member.comparison
            member.experiment = "robustgrad_jax.experiment"
            member.seed = seed
            member.regularizer.name = name
            child = run.child(f"{name}-seed{seed}", member)
            try:
                result = child.result()
                if result is None:
                    logging.info("%s, seed %d", name, seed)
                    result = child.finish(experiment.run(child.config, child))
            finally:
                child.close()
            results.setdefault(name, []).append(result)
    text = table(results, config.evaluation.radii)
    if run.writes:
        write_atomically(run.path / "table.md", text)
    means = {
        f"{name}/{key}": float(np.mean([r[key] for r in runs])) for name, runs in results.items() for key in runs[0]
    }
    return means
