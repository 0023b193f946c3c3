"""What every robustgrad config has in common; the files beside this one set what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields with the published defaults (Joo et al., AAAI 2023); durations are strings such as "90 epochs"."""
    config = ConfigDict()
    config.experiment = "robustgrad_jax.experiment"
    config.seed = 0
    config.precision = "highest"  # products of float32 on accelerators: default, high, highest (docs/precision.md)
    config.batch_size = 128
    config.accumulation = 1  # parts that a device's share of it is computed in; batch norm is of each
    config.duration = "300 epochs"

    config.data = data = ConfigDict()
    # cifar10, fashion_mnist, imagenet100 (TFDS); idx, image_folder (files); digits, scenes (bundled)
    data.name = "cifar10"
    data.path = ""  # where the files or the prepared TFDS data are; "" is the usual place
    data.val_examples = 0  # held out of the training set, by seed; the published training has none
    data.train_examples = 0  # 0: all of them
    data.test_examples = 0
    data.image_size = 0  # 0: as stored (digits: 16, imagenet100: 224)
    data.crop_padding = 4  # pixels of zeros on each side before a random crop; 0: none
    data.flip = True
    data.workers = 0  # Grain worker processes for streamed sets; 0: threads
    data.memory = "auto"  # image_folder: decoded into memory if small and of one size; yes, no (streamed)
    data.cache = ""  # image_folder: where decoded images are kept; "": ~/.cache/alignax
    data.classes = ""  # image_folder: "", "imagenet100", or a text file with the class folders to keep
    data.correlation = 0.95  # scenes: the share of training images whose background gives the class away
    data.mean = ()  # per channel in [0, 1]; (): the data set's own
    data.std = ()

    config.model = model = ConfigDict()
    model.name = "lenet"
    model.activation = "softplus"  # ReLU has no second derivative
    model.beta = 3.0
    model.dtype = "float32"  # of activations and products; "bfloat16" on accelerators, for training without a penalty

    config.regularizer = regularizer = ConfigDict()
    regularizer.name = "l2_cosine"  # none, l2, cosine, l2_cosine; hessian, iga, atex, ig_norm, curvature
    regularizer.radius = 4.0  # ε, in 1/255 of the pixel range
    regularizer.l2_weight = 0.01
    regularizer.cosine_weight = 1.0
    regularizer.noise = "uniform"  # uniform, gaussian, gradient, gradient_sign
    regularizer.detach_source = True
    regularizer.variant = "difference"  # difference, jvp
    regularizer.hessian = ConfigDict({"weight": 1e-3})
    # Those below follow other papers; their numbers are from there where they fit, not from Joo et al.
    regularizer.iga = iga = ConfigDict()
    iga.weight = 0.5
    iga.steps = 3  # of sign ascent; 0: the triplet loss of the clean image
    regularizer.atex = atex = ConfigDict()
    atex.weight = 1.0
    atex.draws = 1
    atex.temperature = 1.0
    regularizer.ig_norm = ig_norm = ConfigDict()
    ig_norm.weight = 1.0
    ig_norm.steps = 2
    ig_norm.path_steps = 5
    ig_norm.attack_path_steps = 3
    ig_norm.sum = False  # True: IG-SUM-NORM
    ig_norm.beta = 0.1
    regularizer.curvature = curvature = ConfigDict()
    curvature.weight = 4.0
    curvature.h = 1.5  # ℓ2 length in the network's input

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"
    optimizer.learning_rate = 1e-3
    optimizer.weight_decay = 4e-5
    optimizer.clip_norm = 0.5
    optimizer.momentum = 0.0
    optimizer.nesterov = False
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8
    optimizer.decay_mask = (".*",)
    optimizer.schedule = schedule = ConfigDict()
    schedule.name = "step"  # constant, step, cosine
    schedule.milestones = ("100 epochs", "150 epochs")
    schedule.factor = 0.1
    schedule.warmup = "0 steps"
    schedule.final = 0.0

    config.sharding = ConfigDict()
    config.sharding.mode = "jit"  # jit: one global batch; pmap: batch norm per device

    config.loop = loop = ConfigDict()
    loop.log_every = 50  # steps
    loop.eval_every = "1 epoch"
    loop.checkpoint_every = "1 epoch"
    loop.steps_per_call = 0  # steps of one compiled call; 0: by device and network
    loop.best_metric = ""  # the last state is tested, as published; or the best by val/accuracy, val/cross_entropy
    loop.best_mode = "max"

    config.train = True  # False: measure the network of init_from
    config.init_from = ""  # a run directory of robustgrad_jax.experiment, or PyTorch weights as .safetensors

    config.evaluation = evaluation = ConfigDict()
    evaluation.batch_size = 128
    evaluation.split = "test"  # or "val": the images held out, to choose a weight by
    evaluation.examples = 0  # images for rps and the upper bound; 0: all
    evaluation.attributions = ("gradient",)
    evaluation.composites = ()  # LRP: epsilon, epsilon_plus, … as attributions lrp_epsilon, …
    evaluation.path_steps = 50  # of integrated_gradients
    evaluation.samples = 50  # of smoothgrad and expected_gradients
    evaluation.noise_level = 0.15  # of smoothgrad, as a share of an image's range
    evaluation.references = 100  # training images that expected_gradients draws from; 0: all
    evaluation.grad_cam_layer = ""  # "": the last one
    evaluation.attacked = ()  # attributions (LRP as lrp_epsilon) for attacks, curves, sensitivities; (): all
    evaluation.perturbations = ("rps", "aam")  # and top_k, mass_center, pgd, random_sign
    # and mse, sumnorm_ssim, sumnorm_mse, spearman, top_k
    evaluation.metrics = ("cosine", "pcc", "ssim", "ssim_published", "mse_published", "signed_cosine")
    evaluation.top_k = 0  # pixels of the metric and of the attack; 0: a fiftieth of the image
    evaluation.radii = (4.0, 8.0, 16.0)  # of rps: ε, in 1/255 of the pixel range
    evaluation.draws = 10
    evaluation.attack_radii = (4.0, 8.0, 16.0)
    evaluation.attack_steps = 100
    evaluation.attack_gamma = 0.5  # aam: weight of the heat map against that of the logits
    evaluation.attack_clip = True  # attacked images to the range of their batch, as published and as rps does
    evaluation.attack_beta = 20.0  # of the softplus that ReLU networks are attacked through
    evaluation.attack_examples = 0  # images for attacks, curves and sensitivity; 0: all
    evaluation.curves = ("insertion", "adversarial_insertion")  # and deletion
    evaluation.curve_steps = 20
    evaluation.sensitivity = ()  # max_sensitivity, average_sensitivity, local_lipschitz, …
    evaluation.sensitivity_radius = 4.0
    evaluation.sensitivity_draws = 10
    evaluation.upper_bound = True
    evaluation.upper_bound_radius = 4.0
    evaluation.pictures = 6  # attacked images that the figures show
    return config
