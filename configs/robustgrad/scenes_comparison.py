"""LeNet on Scenes trained plainly and with local gradient alignment, same seed, same budget; part of the demo.

    python -m launch.sweep --config=configs/robustgrad/scenes_comparison.py --workdir=runs/robustgrad_scenes_comparison
    python -m launch.report runs/robustgrad_scenes_comparison --tables

About eight minutes on one CPU core; three seeds by `--grid "seed=0,1,2"`. Expect accuracy 1.00 of both, and heat maps
that are more alike with the regulariser.
"""

from configs.robustgrad import scenes

get_config = scenes.get_config


def sweep():
    return [{"regularizer.name": name} for name in ("none", "l2_cosine")]
