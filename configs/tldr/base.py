"""What every tldr config has in common; the files beside this one set what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields, as the code published with Park et al. (WACV 2025) has them in its one command, for Waterbirds."""
    config = ConfigDict()
    config.experiment = "tldr_jax.experiment"
    config.seed = 0  # of ERM: its fresh layers, order and crops
    config.precision = "high"  # products of float32 on accelerators: default, high, highest (docs/precision.md)

    config.data = data = ConfigDict()
    data.name = "waterbirds"  # celeba, celeba_tfds, scenes, spuco_animals, waterbirds
    data.path = ""  # the data set's folder; for celeba_tfds TFDS' ("" is the usual place)
    data.image_size = 224
    data.train_examples = 0  # a seeded subset; 0: all of them
    data.val_examples = 0
    data.test_examples = 0
    data.seed = 0  # of subsets, and of Scenes
    data.correlation = 0.95  # scenes: the share of training images whose background gives the class away
    data.preparation = ""  # where not cropped at random: squashed, face, center; "": the published one of the data set
    data.flip = False
    data.crop = False  # streamed images: random crops of 8 to 100 % of the area in training
    data.crop_padding = 0  # images in memory: pixels of zeros on each side before a random crop
    data.workers = 0  # Grain worker processes of streamed images; 0: threads

    config.backbone = backbone = ConfigDict()
    backbone.name = "resnet50"  # resnet50, vit_b16; of Scenes small_cnn, small_vit
    backbone.mean = ()  # per channel in [0, 1]; (): ImageNet's
    backbone.std = ()
    backbone.dtype = "float32"  # of activations and products in training; "bfloat16" on accelerators

    config.pretrain = pretrain = ConfigDict()  # scenes: attribute prediction in place of ImageNet weights
    pretrain.duration = "0 steps"
    pretrain.examples = 24_000
    pretrain.seed = 0
    pretrain.batch_size = 128
    pretrain.accumulation = 1  # parts that a device's share of it is computed in; batch norm is of each
    pretrain.optimizer = optimizer()
    pretrain.log_every = 100  # steps
    pretrain.eval_every = "0 steps"
    pretrain.checkpoint_every = "0 steps"  # at the end only
    pretrain.steps_per_call = 0  # steps of one compiled call; 0: by device and network

    config.erm = erm = ConfigDict()
    erm.init_from = ""  # torchvision's or timm's weights, .safetensors; "": random, or pretrained on Scenes
    erm.keep_head = False  # take the file's head too: with duration="0 steps", a classifier that is trained already
    erm.held_out = 0.0  # a share of the training images that ERM does not see, for AFR
    erm.duration = "1 epoch"
    erm.batch_size = 32
    erm.accumulation = 1  # as pretrain's
    erm.optimizer = optimizer()
    erm.select = "last"  # or best_accuracy, best_wga: by validation
    erm.log_every = 50
    erm.eval_every = "1 epoch"
    erm.checkpoint_every = "1 epoch"
    erm.steps_per_call = 0  # steps of one compiled call; 0: by device and network

    config.sharding = ConfigDict()
    config.sharding.mode = "jit"  # jit: one global batch; pmap: batch norm per device

    config.clip = clip = ConfigDict()
    clip.source = "openai/clip-vit-base-patch32"  # a folder, a hub name, or "embedded:scenes"
    clip.batch_size = 256

    config.embedding = ConfigDict()
    config.embedding.dtype = "float32"  # of the frozen CLIP and classifier; "bfloat16" on accelerators

    config.gap = gap = ConfigDict()  # the modality gap: CLIP(image) - CLIP(caption) over image-caption pairs
    gap.source = "coco"  # coco (annotations and images), coco_tfds, scenes, none
    gap.path = ""  # coco: the annotations' JSON file; coco_tfds: TFDS' folder
    gap.images = ""  # coco: the folder of images
    gap.split = "val"  # coco_tfds: train, val, test, restval
    gap.pairs = 1000
    gap.seed = 0

    config.projector = projector = ConfigDict()
    projector.kind = "linear"  # or mlp: an ablation, trained by gradient
    projector.ridge = 50.0
    projector.gap_rows = 1  # the pairs' differences averaged to this many rows; 0: no constraint
    projector.mlp = mlp = ConfigDict()
    mlp.hidden = 1024
    mlp.learning_rate = 1e-3
    mlp.weight_decay = 1e-4
    mlp.batch_size = 128
    mlp.steps = 3000
    mlp.seed = 0

    config.words = words = ConfigDict()
    words.source = ""  # a list that comes with the package, or a JSON file; "": the data set's
    words.clip_filter = True
    words.classifier_filter = True
    words.contested = 0.0  # share of every list that is words which a rival list has, too
    words.junk = 0.0  # share of every list that is words which do not belong there
    words.junk_seed = 0  # of both draws

    config.text = ConfigDict()
    config.text.templates = "imagenet"  # imagenet, photo, scenes

    config.retrain = retrain = ConfigDict()
    retrain.duration = "1 epoch"  # over the group-balanced pairs of words
    retrain.batch_size = 128
    retrain.evaluations = 1  # heads along the way that validation images choose from; 1: the last
    retrain.schedule = "constant"  # cosine: down to 0 over the steps; published is one stepped after each epoch
    retrain.shared_templates = True  # the two words of a pair in one template; False: each in its own
    retrain.seed = 0
    retrain.learning_rate = 1e-4
    retrain.weight_decay = 1e-4
    retrain.grid = grid = ConfigDict()  # more than one of each: all combinations as one program, chosen on validation
    grid.learning_rate = ()
    grid.weight_decay = ()
    grid.ridge = ()
    grid.gap_rows = ()
    grid.filters = ()  # of both, clip, classifier, none
    grid.seed = ()

    config.dfr = dfr = ConfigDict()  # Kirichenko et al. 2023, on validation images
    dfr.penalties = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # C, chosen on half of them
    dfr.draws = 20
    dfr.tuning_draws = 1
    dfr.seed = 0
    config.class_balanced = ConfigDict(dict(dfr))  # the same without group labels
    config.afr = afr = ConfigDict()  # Qiu et al. 2023, on the training images that erm.held_out keeps, else on all
    afr.gammas = tuple(4 + i / 2 for i in range(33))  # this and the rest as published for Waterbirds
    afr.ridges = (0.0, 0.1, 0.2, 0.3)
    afr.learning_rate = 1e-2
    afr.steps = 500
    afr.evaluations = 500  # points at which validation images may stop it: every step
    afr.clip_norm = 1.0  # of the gradient; 0.0: not clipped

    config.baselines = ("erm", "zero_shot", "class_balanced", "afr", "dfr")  # and projected_images
    config.ablations = ("no_gap", "no_clip_filter", "no_classifier_filter", "no_filters", "mlp_projector")

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 256
    return config


def with_erm(config: ConfigDict, name: str, *, epochs: int, batch_size: int, weight_decay: float) -> ConfigDict:
    """The config with the classifier trained as `name` says: "published", as it is, or "kirichenko".

    The published one is nearly its ImageNet weights; Kirichenko et al. (ICLR 2023) train it to the end with SGD at 1e-3
    and augmentation. Our random crops, 8 to 100 % of the area as for ImageNet, are stronger than theirs.

    Args:
      config: of one data set.
      name: of the setting.
      epochs, batch_size, weight_decay: of "kirichenko", which differ between data sets.
    """
    if name not in ("published", "kirichenko"):
        raise ValueError(f"unknown setting of ERM {name!r}; valid names: 'published', 'kirichenko'")
    if name == "kirichenko":
        config.data.flip = config.data.crop = True
        config.erm.duration = f"{epochs} epochs"
        config.erm.batch_size = batch_size
        config.erm.optimizer.learning_rate = 1e-3
        config.erm.optimizer.weight_decay = weight_decay
    return config


def optimizer() -> ConfigDict:
    """SGD as published."""
    sgd = ConfigDict()
    sgd.name = "sgd"
    sgd.learning_rate = 1e-4
    sgd.weight_decay = 1e-2
    sgd.momentum = 0.9
    sgd.clip_norm = 0.0
    sgd.b1 = 0.9
    sgd.b2 = 0.999
    sgd.eps = 1e-8
    sgd.schedule = schedule = ConfigDict()
    schedule.name = "constant"
    schedule.warmup = "0 steps"
    schedule.final = 0.0
    return sgd
