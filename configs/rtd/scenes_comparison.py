"""RTD on Scenes beside its ablations, three seeds: the README's table.

    python -m launch.sweep --config=configs/rtd/scenes_comparison.py --workdir=runs/rtd_comparison
    python -m launch.report runs/rtd_comparison --tables

About ten minutes on two cores. Members of a seed share its φ, its gallery and all rows of the published text encoder;
each trains its own text encoder. Add to `VARIANTS` to compare something else: the fields that it sets.
"""

from configs.rtd import scenes

SEEDS = (0, 1, 2)
VARIANTS = (
    {},  # the published objective
    {"rtd.objective.concatenation": "plain"},
    {"rtd.objective.hard_negatives": False},
    {"rtd.objective.frozen_targets": False},
)

get_config = scenes.get_config


def sweep():
    """Variants within seeds."""
    return [{"seed": seed, **variant} for seed in SEEDS for variant in VARIANTS]
