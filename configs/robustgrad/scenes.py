"""LeNet on Scenes, curved against angular shapes, with local gradient alignment: nothing to download.

    python -m launch.train --config=configs/robustgrad/scenes.py --workdir=runs/robustgrad_scenes

About five minutes on one CPU core. The backgrounds say nothing about the class here, and the test images show
compositions that training does not. Small batches and 2,000 steps instead of 300 epochs; the regulariser's radius and
weights are the published ones. Accuracy is 1.00; scenes_comparison.py sets it beside plain training.
"""

from configs.robustgrad import base


def get_config():
    config = base.get_config()
    config.batch_size = 32
    config.duration = "2000 steps"
    config.data.name = "scenes"
    config.data.val_examples = 500
    config.loop.best_metric = "val/accuracy"
    config.data.correlation = 0.5
    config.data.crop_padding = 0
    config.data.flip = False
    config.optimizer.learning_rate = 5e-4  # at the published 1e-3 one seed in three stays at chance
    config.optimizer.schedule.milestones = ("1500 steps",)
    config.loop.eval_every = "500 steps"
    config.loop.checkpoint_every = "500 steps"
    config.evaluation.examples = 256
    config.evaluation.attack_examples = 128
    config.evaluation.attack_radii = (8.0,)
    return config
