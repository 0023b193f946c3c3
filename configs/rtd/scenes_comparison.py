"""RTD on Scenes beside its ablations, three seeds: the README's table.

    python -m launch.train --config=configs/rtd/scenes_comparison.py --workdir=runs/rtd_comparison

About ten minutes on two cores. One φ a seed, shared by that seed's members. Add to `comparison.variants` to compare
something else: a name, and the fields that it sets.
"""

from ml_collections import ConfigDict

from configs.rtd import scenes


def get_config():
    config = scenes.get_config()
    config.experiment = "rtd_jax.comparison"
    config.comparison = comparison = ConfigDict()
    comparison.seeds = (0, 1, 2)
    comparison.variants = (
        ("RTD", ()),
        ("RTD, plain concatenation", (("rtd.objective.concatenation", "plain"),)),
        ("RTD, no hard negatives", (("rtd.objective.hard_negatives", False),)),
        ("RTD, targets by the trained encoder", (("rtd.objective.frozen_targets", False),)),
    )
    return config
