"""Text-based retraining on Scenes: five classifiers, ridges with and without the gap constraint, junk words, filters.

    python -m launch.sweep --config=configs/tldr/scenes_study.py --workdir=runs/tldr_scenes_study
    python -m launch.report runs/tldr_scenes_study --tables

Nothing to download. All members share one store: the classifier of a seed is trained once, a CLIP embeds once. With
more CLIPs, trained by configs/clip/scenes.py (seven minutes each), name all of them, with commas:

    python -m launch.train --config=configs/clip/scenes.py --config.seed=1 --workdir=runs/clip_scenes_1
    … --config=configs/tldr/scenes_study.py:embedded:scenes,runs/clip_scenes_1/clip,runs/clip_scenes_2/clip
"""

from configs.tldr import scenes

SEEDS = range(5)  # of the classifier and of its data
RIDGES = (4.0, 40.0, 400.0, 4000.0, 40000.0)
JUNK, DRAWS = (0.2, 0.4), 3  # shares of the words, draws of each
FILTERS = (  # both, the CLIP filter alone, none
    {},
    {"words.classifier_filter": False},
    {"words.clip_filter": False, "words.classifier_filter": False},
)


def get_config(clips="embedded:scenes"):
    config = scenes.get_config()
    config.clip.source = clips.split(",")[0]
    config.baselines = ()  # by default a member is the method alone
    config.ablations = ()
    return config


def sweep(clips="embedded:scenes"):
    """The comparison with everything, then the method alone at each ridge and with junk, for every seed and CLIP."""
    everything = scenes.get_config()
    for seed in SEEDS:
        for number, clip in enumerate(clips.split(",")):
            own = {"seed": seed, "data.seed": seed} | ({"clip.source": clip} if number else {})
            # baselines that no CLIP changes, once per seed: repeated, they would understate the spread
            baselines = ("zero_shot",) if number else everything.baselines
            yield own | {"baselines": baselines, "ablations": everything.ablations}
            for ridge in RIDGES:
                yield own | {"projector.ridge": ridge}
                yield own | {"projector.ridge": ridge, "projector.gap_rows": 0}
            for share in JUNK:
                for filters in FILTERS:
                    for draw in range(DRAWS):
                        yield own | {"words.junk": share, "words.junk_seed": draw} | filters
