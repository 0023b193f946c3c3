"""What batches of texts of similar length cost in recall and save in time on Scenes, three seeds.

    python -m launch.sweep --config=configs/rtd/grouping.py --workdir=runs/rtd_grouping
    python -m launch.report runs/rtd_grouping --tables

Members of a seed share its φ, trained on shuffled batches; each trains its own text encoder, whose log has the time.
"""

from configs.rtd import scenes

SEEDS = (0, 1, 2)
BATCHES = ("shuffled", "by_length")


def get_config():
    config = scenes.get_config()
    config.phi.batches = "shuffled"
    return config


def sweep():
    """Both kinds of batches within seeds."""
    return [{"seed": seed, "rtd.batches": batches} for seed in SEEDS for batches in BATCHES]
