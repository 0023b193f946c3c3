"""LeNet on Fashion-MNIST's IDX files with local gradient alignment: real images on a laptop.

    python -m launch.train --config=configs/robustgrad/fashion_mnist_lenet.py --workdir=runs/fashion_mnist_lenet

Data: Debian's `dataset-fashion-mnist`, or `--config.data.path=FOLDER` with the four IDX files; prepared TFDS data by
`--config.data.name=fashion_mnist`.
"""

from configs.robustgrad import base


def get_config():
    config = base.get_config()
    config.duration = "10 epochs"
    config.data.name = "idx"
    config.data.val_examples = 5000
    config.loop.best_metric = "val/accuracy"
    config.data.crop_padding = 0
    config.data.flip = False
    config.optimizer.schedule.milestones = ("6 epochs", "8 epochs")
    config.evaluation.examples = 1000
    config.evaluation.attack_examples = 200
    return config
