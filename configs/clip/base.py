"""What the CLIP configs have in common; the files beside this one set what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields; durations are strings such as "30 epochs"."""
    config = ConfigDict()
    config.experiment = "clip_jax.training.experiment"
    config.seed = 0
    config.precision = "default"  # products of float32 on accelerators: default, high, highest (docs/precision.md)
    config.batch_size = 128  # over all devices: every other pair of it is a negative
    config.accumulation = 1  # parts that a device's share of it is computed in, with the same negatives
    config.duration = "2400 steps"
    config.init_from = ""  # a checkpoint's folder, a hub name, or "embedded:scenes"; "": a fresh model
    config.trainable = (".*",)  # regular expressions over parameter paths; ("text/.*", "logit_scale") locks the images
    config.attribute_weight = 0.0  # scenes: of a supervised loss on the image embedding, beside the contrastive one
    config.attribute_until = 0.6  # share of the steps at which it reaches 0; it decreases from half of that on
    config.checkpoint_dtype = "float32"  # of the weights in the run's folder `clip`

    config.data = data = ConfigDict()
    data.name = "scenes"  # scenes, captions
    data.val_examples = 1000  # images on which the best checkpoint is chosen
    data.test_examples = 1000
    data.train_examples = 24_000  # scenes: images
    data.captions_per_image = 8  # scenes: drawn once; each step draws the one it sees
    data.evaluation_seed = 0  # scenes: of validation and test images, the same for every `seed`
    data.alike = ((),)  # scenes: kinds of batch; () is shuffled, names are the attributes that a group's members share
    data.group = 8  # scenes: members of a group
    data.path = ""  # captions: .jsonl, .csv or .tsv with one image and caption per row
    data.val_path = ""  # captions: a file like it; "": held out of `path` by seed
    data.test_path = ""
    data.images = ""  # captions: the folder that image names are relative to; "": that of `path`
    data.image_column = "image"
    data.caption_column = "caption"
    data.workers = 0  # captions: threads that decode images; 0: one per core

    config.model = model = ConfigDict()
    model.dtype = "float32"  # of activations and matrix products; "bfloat16" on accelerators
    model.remat = "auto"  # recompute blocks in the backward pass: less memory, a third more work; yes, no, or
    # auto: if a tower has 24 blocks or more (from ViT-L/14 on)
    model.unroll = False  # all blocks in line instead of a loop: slower to compile; faster where they are small
    # The rest is for a fresh model.
    model.tokenizer_from = ""  # a checkpoint whose tokenizer to take; "": one of Scenes' words
    model.projection = 64
    model.activation = "quick_gelu"
    model.image = ConfigDict(dict(image_size=32, patch_size=8, width=96, layers=3, heads=4, mlp_width=384))
    model.text = ConfigDict(dict(context_length=32, width=96, layers=2, heads=4, mlp_width=384))

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = 2e-3
    optimizer.weight_decay = 0.1
    optimizer.clip_norm = 1.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.98
    optimizer.eps = 1e-8
    optimizer.momentum = 0.0
    optimizer.nesterov = False
    optimizer.decay_mask = (".*kernel",)  # no decay of biases, norms, embeddings and the temperature
    optimizer.schedule = schedule = ConfigDict()
    schedule.name = "cosine"
    schedule.warmup = "100 steps"
    schedule.milestones = ()
    schedule.factor = 0.1
    schedule.final = 0.0

    config.sharding = ConfigDict()
    config.sharding.mode = "jit"  # jit or pmap: the negatives are those of the global batch in both
    config.sharding.model = 1  # devices that share one copy of the parameters (jit only)
    config.sharding.fsdp = False  # split parameters and the optimiser's states over all devices (jit only)

    config.loop = loop = ConfigDict()
    loop.log_every = 50  # steps
    loop.eval_every = "400 steps"
    loop.checkpoint_every = "400 steps"
    loop.steps_per_call = 0  # steps of one compiled call; 0: by device and network
    loop.best_metric = "val/recall"  # the mean of recall at 1 in both directions
    loop.best_mode = "max"

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 256
    return config
