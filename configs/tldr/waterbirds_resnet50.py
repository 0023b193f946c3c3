"""Waterbirds, ResNet-50 with ImageNet weights, CLIP ViT-B/32: the text stage's hyperparameters as published.

    python -m launch.train --config=configs/tldr/waterbirds_resnet50.py --workdir=runs/waterbirds_resnet50 \\
        --config.data.path=DIR/waterbirds_v1.0 --config.erm.init_from=resnet50.safetensors \\
        --config.gap.path=DIR/annotations/captions_val2014.json --config.gap.images=DIR/val2014

Data: WILDS' waterbirds_v1.0 (metadata.csv beside the images), and COCO's 2014 validation images with their captions,
of which 1,000 are used; or `--config.gap.source=coco_tfds`. The published command trains ERM for one epoch of the 4,795
images (SGD, 1e-4, weight decay 1e-2) without augmentation, the default here; with `:kirichenko` behind the name of this
file it is as in Kirichenko et al. 2023 (SGD, 1e-3, weight decay 1e-3, 100 epochs, crops and flips). Without a network,
`--config.clip.source` is a folder. Weights: torchvision's resnet50 or timm's, as safetensors; from a .pth file, on a
machine with PyTorch:

    python -c "import torch, safetensors.torch as s; \\
        s.save_file(torch.load('resnet50.pth', weights_only=True), 'resnet50.safetensors')"

Other text settings on the same directory redo only what they reach: `--config.projector.ridge=100.0`.
"""

from configs.tldr import base


def get_config(erm="published"):
    config = base.get_config()
    config.data.name = "waterbirds"
    config.data.workers = 8
    return base.with_erm(config, erm, epochs=100, batch_size=32, weight_decay=1e-3)
