"""The tables of text-based retraining on Scenes: five classifiers, ridges, junk words, ablations.

    python -m launch.train --config=configs/tldr/scenes_study.py --workdir=runs/tldr_scenes_study

Nothing to download; some two minutes of CPU time for each of the five classifiers, with one CLIP. With more CLIPs,
trained by configs/clip/scenes.py (seven minutes each), the same directory takes them up:

    python -m launch.train --config=configs/clip/scenes.py --config.seed=1 --workdir=runs/clip_scenes_1
    … --config.study.clips="('embedded:scenes','runs/clip_scenes_1/clip','runs/clip_scenes_2/clip')"
"""

from ml_collections import ConfigDict

from configs.tldr import scenes


def get_config():
    config = scenes.get_config()
    config.experiment = "tldr_jax.study"
    config.study = study = ConfigDict()
    study.seeds = (0, 1, 2, 3, 4)  # of the classifier and of its data
    study.clips = ("embedded:scenes",)
    study.ridges = (4.0, 40.0, 400.0, 4000.0, 40000.0)
    study.junk = (0.2, 0.4)  # shares of the words
    study.junk_draws = 3
    return config
