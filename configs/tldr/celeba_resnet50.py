"""CelebA, blond or not with sex as the spurious attribute, ResNet-50 with ImageNet weights, CLIP ViT-B/32.

    python -m launch.train --config=configs/tldr/celeba_resnet50.py --workdir=runs/celeba_resnet50 \\
        --config.data.path=DIR/celebA_v1.0 --config.erm.init_from=resnet50.safetensors \\
        --config.gap.path=DIR/annotations/captions_val2014.json --config.gap.images=DIR/val2014

Data: WILDS' celebA_v1.0, or TFDS' celeb_a in array_record format (`--config.data.name=celeba_tfds`). Weights and
captions as in waterbirds_resnet50.py. ERM: by the published command for Waterbirds, one epoch of the 162,770 images;
with `:kirichenko` behind the name of this file as in Kirichenko et al. 2023 (SGD, 1e-3, weight decay 1e-4, 50 epochs,
batch 100, crops and flips). AFR's grid is its authors' for CelebA. The features of all 202,599 images, 1.7 GB, are kept
in the store and mapped from there.
"""

from configs.tldr import base


def get_config(erm="published"):
    config = base.get_config()
    config.data.name = "celeba"
    config.data.workers = 8
    config.afr.gammas = tuple(1 + 2 * i / 9 for i in range(10))
    config.afr.ridges = (1e-3, 1e-2, 1e-1)
    config.afr.learning_rate = 2e-2
    config.afr.steps = config.afr.evaluations = 1000
    return base.with_erm(config, erm, epochs=50, batch_size=100, weight_decay=1e-4)
