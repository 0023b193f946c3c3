"""The small CLIP that comes with the package: 0.68 million parameters, trained on Scenes from nothing.

    python -m launch.train --config=configs/clip/scenes.py --workdir=runs/clip_scenes

Nothing to download; seven minutes on two CPU cores. Expect more than .98 in every zero-shot accuracy and in recall at
1, on compositions that were held out (clip_jax/checkpoints/scenes/README.md). The trained CLIP is the folder `clip` of
the run.
Other seeds: `--config.seed=1`; by contrast alone: `--config.attribute_weight=0.0`.
"""

from configs.clip import base


def get_config():
    config = base.get_config()
    config.duration = "3000 steps"
    config.attribute_weight = 1.0
    config.checkpoint_dtype = "float16"
    config.model.unroll = True
    config.data.alike = (
        (),
        ("colour", "background"),
        ("colour", "size", "pattern", "background"),  # the members of a group differ in shape alone
        ("shape", "colour", "background"),
    )
    config.loop.eval_every = "500 steps"
    return config
