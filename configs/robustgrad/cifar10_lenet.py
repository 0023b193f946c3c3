"""LeNet on CIFAR-10 with local gradient alignment, the published hyperparameters.

    python -m launch.train --config=configs/robustgrad/cifar10_lenet.py --workdir=runs/cifar10_lenet

Data: TFDS `cifar10`, prepared once (README). Other methods: `--config.regularizer.name=none|hessian|…`.
"""

from configs.robustgrad import base


def get_config():
    config = base.get_config()
    config.evaluation.batch_size = 100  # published; RPS clips to the range of a batch
    return config
