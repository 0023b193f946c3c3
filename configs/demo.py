"""What `make demo` sweeps: the three experiments on Scenes, nothing to download.

    python -m launch.sweep --config=configs/demo.py --workdir=runs/demo
    python -m launch.report runs/demo --tables

Local gradient alignment beside plain training, composed retrieval with RTD, text-based last-layer retraining: each is a
run of its own config on one of the machine's cores or GPUs. Nine minutes on two cores; the README has the tables.
"""

from configs.robustgrad import scenes_comparison

get_config = scenes_comparison.get_config


def sweep():
    """The longest first."""
    return [{"config": f"{name}.py"} for name in ("robustgrad/scenes_comparison", "rtd/scenes", "tldr/scenes")]
