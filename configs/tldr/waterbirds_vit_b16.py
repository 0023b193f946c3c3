"""Waterbirds, ViT-B/16 with ImageNet weights: its features are not post-ReLU, and so the projector is linear.

    python -m launch.train --config=configs/tldr/waterbirds_vit_b16.py --workdir=runs/waterbirds_vit_b16 \\
        --config.data.path=DIR/waterbirds_v1.0 --config.erm.init_from=vit_b16.safetensors \\
        --config.gap.path=DIR/annotations/captions_val2014.json --config.gap.images=DIR/val2014

Data and the rest as in waterbirds_resnet50.py. Weights: torchvision's vit_b_16 or timm's vit_base_patch16_224; timm's
were trained with mean and standard deviation 0.5, torchvision's with ImageNet's: for those
`--config.backbone.mean="()" --config.backbone.std="()"`.
"""

from configs.tldr import waterbirds_resnet50


def get_config(erm="published"):
    config = waterbirds_resnet50.get_config(erm)
    config.backbone.name = "vit_b16"
    config.backbone.mean = (0.5, 0.5, 0.5)
    config.backbone.std = (0.5, 0.5, 0.5)
    return config
