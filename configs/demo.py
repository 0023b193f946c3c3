"""What `make demo` sweeps: the three experiments on Scenes, nothing to download.

    python -m launch.sweep --config=configs/demo.py --workdir=runs/demo
    python -m launch.report runs/demo --tables

Local gradient alignment beside plain training, composed retrieval with RTD, text-based last-layer retraining, each by
its own config, with the first seed where that has a sweep over seeds; each run on one of the machine's cores or GPUs.
Nine minutes on two cores; the README has the tables.
"""

from configs.robustgrad import scenes_comparison

get_config = scenes_comparison.get_config


def sweep():
    """The longest first."""
    return [
        {"config": "robustgrad/scenes_comparison.py"},
        {"config": "rtd/scenes.py"},
        {"config": "tldr/scenes.py", "data.seed": 0},
    ]
