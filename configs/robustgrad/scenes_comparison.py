"""LeNet on Scenes trained plainly and with local gradient alignment, same seed, same budget; part of the demo.

    python -m launch.train --config=configs/robustgrad/scenes_comparison.py --workdir=runs/robustgrad_scenes_comparison

About eight minutes on one CPU core; three seeds by `--config.comparison.seeds="(0,1,2)"`. Expect accuracy 1.00 of
both, and heat maps that are more alike with the regulariser.
"""

from ml_collections import ConfigDict

from configs.robustgrad import scenes


def get_config():
    config = scenes.get_config()
    config.experiment = "robustgrad_jax.comparison"
    config.comparison = ConfigDict({"regularizers": ("none", "l2_cosine"), "seeds": ()})  # (): the run's own
    return config
