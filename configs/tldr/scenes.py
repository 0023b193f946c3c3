"""Text-based last-layer retraining on Scenes: curved or angular shapes, 95 % of them on the background of their class.

    python -m launch.train --config=configs/tldr/scenes.py --workdir=runs/tldr_scenes

Nothing to download; a minute on two CPU cores. The classifier is a small CNN pretrained on attribute prediction for 300
steps, the stand-in for ImageNet weights; CLIP is the small one that comes with the package. The ridge is the published
50, scaled by the square of the image embeddings' norm, which is about 27 here and 10 there. The head's training is
longer and faster than published: the 120 pairs of words of a group make an epoch of four batches. Its rate falls along
a cosine, validation chooses one of ten steps, each word of a pair has its own template, and AFR's grid is coarse: our
settings, not the published ones.
"""

from configs.tldr import base


def get_config():
    config = base.get_config()
    config.data.name = "scenes"
    config.data.image_size = 32
    config.data.val_examples = 800
    config.data.flip = False
    config.backbone.name = "small_cnn"
    config.backbone.mean = (0.5, 0.5, 0.5)
    config.backbone.std = (0.27, 0.27, 0.27)
    config.pretrain.duration = "300 steps"
    config.pretrain.optimizer.name = "adamw"
    config.pretrain.optimizer.learning_rate = 3e-3
    config.pretrain.optimizer.weight_decay = 1e-2
    config.pretrain.optimizer.schedule.name = "cosine"
    config.erm.duration = "20 epochs"
    config.erm.batch_size = 64
    config.erm.optimizer.name = "adamw"
    config.erm.optimizer.learning_rate = 1e-3
    config.erm.optimizer.weight_decay = 1e-2
    config.erm.optimizer.schedule.name = "cosine"
    config.erm.eval_every = "5 epochs"
    config.erm.checkpoint_every = "20 epochs"
    config.clip.source = "embedded:scenes"
    config.gap.source = "scenes"
    config.projector.ridge = 400.0
    config.text.templates = "scenes"
    config.retrain.duration = "400 steps"
    config.retrain.evaluations = 10
    config.retrain.schedule = "cosine"
    config.retrain.shared_templates = False
    config.retrain.learning_rate = 1e-2
    config.afr.gammas = (4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
    config.afr.ridges = (0.0, 0.1, 0.2, 0.3, 0.4)
    config.afr.evaluations = 10
    config.afr.clip_norm = 0.0
    config.evaluation.batch_size = 500
    return config


def sweep():
    """Five classifiers, each with its own images."""
    return [{"seed": seed, "data.seed": seed} for seed in range(5)]
