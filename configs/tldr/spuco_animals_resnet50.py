"""SpuCoAnimals: birds on land or water and dogs indoors or outdoors, ResNet-50 with ImageNet weights, CLIP ViT-B/32.

    python -m launch.train --config=configs/tldr/spuco_animals_resnet50.py --workdir=runs/spuco_animals_resnet50 \\
        --config.data.path=DIR --config.erm.init_from=resnet50.safetensors \\
        --config.gap.path=DIR/annotations/captions_val2014.json --config.gap.images=DIR/val2014

Data: DIR/spuco_birds and DIR/spuco_dogs as the spuco package unpacks them; the words of the birds' backgrounds go with
birds only, those of the dogs' with dogs. Weights and captions as in waterbirds_resnet50.py. ERM: by the published
command for Waterbirds, one epoch of the 42,000 images; with `:kirichenko` behind the name of this file to the end, in
the manner of Kirichenko et al. 2023 (SGD, 1e-3, weight decay 1e-4, 100 epochs, batch 128, crops and flips).
AFR's grid is the one for Waterbirds: its authors have none for this set.
"""

from configs.tldr import base


def get_config(erm="published"):
    config = base.get_config()
    config.data.name = "spuco_animals"
    config.data.workers = 8
    return base.with_erm(config, erm, epochs=100, batch_size=128, weight_decay=1e-4)
