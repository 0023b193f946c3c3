"""ResNet-18 (7x7 stem) on ImageNet-100 with local gradient alignment, the published hyperparameters.

    python -m launch.train --config=configs/robustgrad/imagenet100_resnet18.py --workdir=runs/imagenet100_resnet18

Data: TFDS `imagenet2012`, prepared once (README), or the ImageNet folders of 100 or 1,000 classes:
`--config.data.name=image_folder --config.data.path=DIR --config.data.classes=imagenet100`.

The published run of the Hessian penalty has batches of 64:
`--config.regularizer.name=hessian --config.batch_size=64`.
"""

from configs.robustgrad import base


def get_config():
    config = base.get_config()
    config.model.name = "resnet18"
    config.duration = "90 epochs"
    config.data.name = "imagenet100"
    config.data.image_size = 224
    config.data.crop_padding = 0  # streamed images take random resized crops
    config.data.workers = 8
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 1e-2
    config.optimizer.schedule.milestones = ("40 epochs", "60 epochs", "80 epochs")
    config.regularizer.l2_weight = 1.0
    config.regularizer.cosine_weight = 0.01
    config.regularizer.hessian.weight = 1e-3
    config.evaluation.examples = 1000
    config.evaluation.attack_examples = 1000
    config.evaluation.batch_size = 100  # published; RPS clips to the range of a batch
    return config
