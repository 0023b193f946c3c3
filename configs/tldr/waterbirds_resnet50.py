"""Waterbirds, ResNet-50 with ImageNet weights, CLIP ViT-B/32: the text stage's hyperparameters as published.

    python -m launch.train --config=configs/tldr/waterbirds_resnet50.py --workdir=runs/waterbirds_resnet50 \\
        --config.data.path=DIR/waterbirds_v1.0 --config.erm.init_from=resnet50.safetensors \\
        --config.gap.path=DIR/annotations/captions_val2017.json --config.gap.images=DIR/val2017

Data: WILDS' waterbirds_v1.0 (metadata.csv beside the images), and COCO's 2017 validation images with their captions,
of which 1,000 are used; or `--config.gap.source=coco_tfds`. ERM as in Kirichenko et al. 2023 (SGD, 1e-3, 100 epochs of
4,795 images). Without a network, `--config.clip.source` is a folder. Weights: torchvision's resnet50 or timm's, as
safetensors; from a .pth file, on a machine with PyTorch:

    python -c "import torch, safetensors.torch as s; \\
        s.save_file(torch.load('resnet50.pth', weights_only=True), 'resnet50.safetensors')"

Other text settings on the same directory redo only what they reach: `--config.projector.ridge=100.0`.
"""

from configs.tldr import base


def get_config():
    config = base.get_config()
    config.data.name = "waterbirds"
    config.data.workers = 8
    return config
