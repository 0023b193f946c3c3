"""ResNet-18 (3x3 stem) on CIFAR-10 with local gradient alignment, the published hyperparameters.

    python -m launch.train --config=configs/robustgrad/cifar10_resnet18.py --workdir=runs/cifar10_resnet18

Data: TFDS `cifar10`, prepared once (README). The original trains on one device, with batch norm over
the whole batch, as the default `sharding.mode=jit` does on any number of them.
"""

from configs.robustgrad import base


def get_config():
    config = base.get_config()
    config.model.name = "resnet18_cifar"
    config.duration = "200 epochs"
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 1e-2
    config.regularizer.cosine_weight = 0.1
    config.regularizer.hessian.weight = 1e-4
    config.evaluation.batch_size = 100  # published; RPS clips to the range of a batch
    return config
