"""What the composed-retrieval configs have in common; the files beside this one set what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields; durations are strings such as "2000 steps"."""
    config = ConfigDict()
    config.experiment = "rtd_jax.experiment"
    config.seed = 0
    config.precision = "default"  # products of float32 on accelerators: default, high, highest (docs/precision.md)
    config.clip = "embedded:scenes"  # a folder, a hub name, or "embedded:scenes"
    config.checkpoint_dtype = "float32"  # of the weights in the run's folder `clip`

    config.best_by = "auto"  # what chooses the best states of φ and RTD: cirr, recall@1 on its val split, as published;
    # held_back, captions or images for φ, triplets for RTD; auto, cirr where evaluation.roots.cirr is given

    config.embedding = ConfigDict()
    config.embedding.dtype = "float32"  # of the frozen CLIP; "bfloat16" on accelerators (docs/precision.md)

    config.model = model = ConfigDict()
    model.dtype = "float32"  # of RTD's activations and matrix products; "bfloat16" on accelerators
    model.remat = "auto"  # recompute blocks in the backward pass: less memory, a third more work; yes, no, or
    # auto: if a tower has 24 blocks or more (from ViT-L/14 on)
    model.unroll = False  # all blocks in line instead of a loop: slower to compile; faster where they are small

    config.phi = phi = _stage(batch_size=512, duration="20000 steps", learning_rate=1e-4)
    phi.accumulation = 1  # parts that a device's share of a batch is computed in; negatives are of a part
    phi.loop.eval_every = "1000 steps"
    phi.load = ""  # φ's file (.safetensors, or .pt where PyTorch is installed); "": it is trained
    phi.method = "lincir"  # lincir (from captions), pic2word, searle (from images)
    phi.noise = 1.0  # lincir: level of the noise on a caption's embedding
    phi.dtype = "float32"  # of its activations and products, unless it is loaded; "bfloat16" on accelerators
    phi.dropout = -1.0  # below 0: the published one, 0.5 or Pic2Word's 0.1
    phi.unit_inputs = False  # φ takes embeddings of one length: for a CLIP whose images' and texts' lengths differ
    phi.inversion_steps = 350  # searle
    phi.phrases = ()  # searle: with "{}" in each; (): built-in ones

    config.captions = captions = ConfigDict()  # for lincir
    captions.source = "file"  # file, scenes
    captions.path = ""  # .txt, .jsonl, .json (COCO's), .csv, .tsv
    captions.column = "caption"
    captions.matcher = "auto"  # of keywords: spacy, lexicon, auto
    captions.keywords = "published"  # determiners too, and a random word where there is none; or nouns_adjectives
    captions.train_examples = 20_000  # scenes
    captions.val_examples = 500

    config.images = images = ConfigDict()  # for pic2word and searle
    images.source = "folder"  # folder, scenes
    images.path = ""
    images.train_examples = 5000  # scenes
    images.val_examples = 500
    images.target_pad = "auto"  # as evaluation.target_pad

    config.triplets = triplets = ConfigDict()
    triplets.source = "file"  # file, scenes
    triplets.path = ""  # .jsonl or .json; rtd_jax.text.generation makes one from captions
    triplets.skip_faulty = False  # leave out lines that cannot be used, instead of stopping at the first
    triplets.train_examples = 8000  # scenes
    triplets.val_examples = 1000  # held back to choose the best checkpoint

    config.rtd = rtd = _stage(batch_size=512, duration="2000 steps", learning_rate=1e-5)
    rtd.train = True  # False: φ alone is trained and measured
    rtd.restrict_vocabulary = True  # train the embeddings of tokens that the triplets use; the others only decay
    rtd.objective = objective = ConfigDict()
    objective.temperature = 0.07
    objective.noise = 0.5
    objective.negatives = "per_device"  # or global
    objective.concatenation = "refined"  # or plain: reference and modification in one text, without φ
    objective.hard_negatives = True  # "a photo of $" with the reference as its target, in the same batch
    objective.frozen_targets = True  # False: targets by the trained encoder
    objective.accumulation = 1  # parts that a device's share is computed in

    config.sharding = ConfigDict()
    config.sharding.mode = "jit"  # jit or pmap
    config.sharding.model = 1  # devices that share one copy of the text tower while RTD trains it (jit only)
    config.sharding.fsdp = False  # split parameters and the optimiser's states over all devices (jit only)

    config.evaluation = evaluation = ConfigDict()
    evaluation.benchmarks = ("scenes",)  # cirr, circo, fashioniq, genecis, scenes
    evaluation.roots = ConfigDict(dict(cirr="", circo="", fashioniq="", genecis=""))  # folders of their releases
    evaluation.genecis_images = ConfigDict(dict(visual_genome="", coco=""))
    evaluation.genecis_tasks = ("focus_attribute", "change_attribute", "focus_object", "change_object")
    evaluation.splits = ConfigDict(dict(cirr="val", circo="val", fashioniq="val"))  # cirr test1, circo test: files
    evaluation.skip_missing = False  # True: leave out missing images and the queries that need them, and count both
    evaluation.scenes = ConfigDict(dict(gallery=1500, queries=1000))
    evaluation.target_pad = "auto"  # pad elongated images before they are cropped: yes, no, or auto, as published: with
    # SEARLE's φ (phi.method, also beside phi.load), with no other
    evaluation.batch_size = 256
    evaluation.dtype = "float32"  # of galleries and queries as they are multiplied; "bfloat16" on accelerators
    return config


def _stage(*, batch_size: int, duration: str, learning_rate: float) -> ConfigDict:
    """The settings of a training stage: length, optimiser and loop."""
    stage = ConfigDict()
    stage.batch_size = batch_size  # over all devices
    stage.batches = "shuffled"  # or by_length: texts of similar length together, which takes fewer tokens a step
    stage.duration = duration
    stage.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = learning_rate
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 0.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8
    optimizer.momentum = 0.0
    optimizer.nesterov = False
    optimizer.decay_mask = (".*",)
    optimizer.schedule = schedule = ConfigDict()
    schedule.name = "constant"
    schedule.warmup = "0 steps"
    schedule.milestones = ()
    schedule.factor = 0.1
    schedule.final = 0.0
    stage.loop = loop = ConfigDict()
    loop.log_every = 50  # steps
    loop.eval_every = "100 steps"
    loop.checkpoint_every = "500 steps"
    loop.steps_per_call = 0  # steps of one compiled call; 0: by device and network
    return stage
