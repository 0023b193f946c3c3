"""Train the same network with several regularisers, same seeds and budget, and put what came out side by side."""

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from launch.files import write_atomically
from launch.run import Run
from robustgrad_jax import experiment, gallery, tables


def run(config, run: Run) -> dict[str, float]:
    """One run inside this one for every regulariser and seed of `config.comparison`; finished ones are kept.

    Without seeds there, the config's own is taken. Leaves `table.md` and, in artifacts/, the figures of all
    regularisers, a folder an attribution.
    """
    results: dict[str, list] = {}
    for seed in config.comparison.seeds or (config.seed,):
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
            result = {k: np.nan if v is None else v for k, v in result.items()}  # JSON has no NaN
            results.setdefault(name, []).append((child.path, result))
    found = {name: [result for _, result in runs] for name, runs in results.items()}
    if run.writes:
        write_atomically(run.path / "table.md", tables.compared(found))
        gallery.side_by_side(run.path / "artifacts", results)
    means = {f"{name}/{key}": float(np.mean([r[key] for r in runs])) for name, runs in found.items() for key in runs[0]}
    return means
