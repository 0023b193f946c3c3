"""Where text suffices: text-based retraining and its baselines over the classifier's features and the correlation.

    python -m launch.sweep --config=configs/tldr/scenes_map.py --workdir=runs/tldr_scenes_map
    python -m tldr_jax.map runs/tldr_scenes_map --out=runs/tldr_scenes_map/map.png
    python -m launch.report runs/tldr_scenes_map --tables

Four lengths of the classifier's pretraining, from 300 steps (poor features) to 5,000, by four correlations of class and
background in training, five seeds. Every method's settings are chosen on the same 800 validation images by worst-group
accuracy: DFR's C, AFR's γ, ridge and stopping point, TLDR's ridge, gap rows, filters, learning rate and stopping point.
Nothing to download; members of one length and seed share their pretraining, all share CLIP's embeddings of the words.
`scenes_map.py:contested` has a quarter of every list in the rival list too, `scenes_map.py:small_vit` another backbone,
both in four cells of the map.
"""

import itertools

from configs.tldr import scenes

STEPS = (300, 1000, 2000, 5000)
CORRELATIONS = (0.95, 0.98, 0.99, 0.995)
SEEDS = range(5)
CORNERS = ((300, 0.95), (2000, 0.95), (2000, 0.99), (5000, 0.995))


def get_config(kind: str = "small_cnn"):
    """The map with one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"no map {kind!r}; there are {', '.join(KINDS)}")
    config = scenes.get_config()
    config.baselines = ("erm", "zero_shot", "class_balanced", "afr", "dfr", "projected_images")
    config.ablations = ("no_gap", "no_filters")
    grid = config.retrain.grid
    grid.learning_rate = (1e-3, 3e-3, 1e-2, 3e-2)
    grid.ridge = (4.0, 40.0, 400.0, 4000.0)
    grid.gap_rows = (1, 10)
    grid.filters = ("both", "clip", "none")
    if kind == "contested":
        config.words.contested = 0.25
    if kind == "small_vit":
        config.backbone.name = "small_vit"
        config.pretrain.optimizer.learning_rate = 1e-3
    return config


KINDS = {
    "small_cnn": tuple(itertools.product(STEPS, CORRELATIONS)),
    "contested": CORNERS,
    "small_vit": CORNERS,
}


def sweep(kind: str = "small_cnn"):
    """The cells of a map, each with every seed."""
    return [
        {"pretrain.duration": f"{steps} steps", "data.correlation": correlation}
        | dict.fromkeys(("seed", "data.seed", "pretrain.seed"), seed)
        for steps, correlation in KINDS[kind]
        for seed in SEEDS
    ]
