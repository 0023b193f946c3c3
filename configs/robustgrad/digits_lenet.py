"""LeNet on scikit-learn's bundled handwritten digits with local gradient alignment: nothing to download.

python -m launch.train --config=configs/robustgrad/digits_lenet.py --workdir=runs/digits_lenet
"""

from configs.robustgrad import base


def get_config():
    config = base.get_config()
    config.duration = "30 epochs"
    config.data.name = "digits"
    config.data.val_examples = 200
    config.loop.best_metric = "val/accuracy"
    config.data.crop_padding = 0
    config.data.flip = False
    config.optimizer.schedule.milestones = ("20 epochs", "25 epochs")
    config.evaluation.attack_examples = 200
    return config
