"""LeNet on CIFAR-10, nine ways of training, each at the weight that validation images chose for it.

    python -m launch.sweep --config=configs/robustgrad/cifar10_comparison.py:select --workdir=runs/cifar10_select
    python -m robustgrad_jax.studies.selection runs/cifar10_select
    python -m launch.sweep --config=configs/robustgrad/cifar10_comparison.py --workdir=runs/cifar10_comparison \
        --store=runs/cifar10_select/store
    python -m launch.report runs/cifar10_comparison --tables
    python -m robustgrad_jax.studies.theorems runs/cifar10_comparison --out=runs/cifar10_comparison

Data: TFDS `cifar10`, prepared once (README), or any folder of its images by class, with
`--config.data.name=image_folder --config.data.path=DIR` in both sweeps.

Budget: a hundredth of the published 300 epochs, with the schedule scaled by it: 3 epochs, the rate a tenth after 1 and
1.5. Batches of 32 instead of 128 make four times as many steps of it: after as few, a network has hardly bent, and the
attributions of all methods are alike. The same for all methods; the last checkpoint is measured. "select" trains every
method at three weights around the published one, seed 0, and measures validation images;
`robustgrad_jax.studies.selection` applies the rule. "final", the default, takes the weights of `CHOSEN`, with three
seeds for the first five methods; what "select" has trained is not trained again. The two take about five hours on two
cores. ":resnet18" is a third study, of the published weights and a smaller budget.
"""

from configs.robustgrad import base, cifar10_resnet18

FRACTION = 100  # of the published budget, one part is trained
SEEDS = (0, 1, 2)

_alone = lambda key, *values: tuple({f"regularizer.{key}": value} for value in values)
WEIGHTS = {  # around the published one, which stands in the middle
    "none": ({},),
    "l2_cosine": tuple(
        {"regularizer.l2_weight": l2, "regularizer.cosine_weight": cosine}
        for l2, cosine in ((0.002, 0.2), (0.01, 1.0), (0.05, 5.0))
    ),
    "hessian": _alone("hessian.weight", 1e-4, 1e-3, 1e-2),
    "l2": _alone("l2_weight", 0.01, 0.1, 1.0),
    "cosine": _alone("cosine_weight", 0.2, 1.0, 5.0),
    "iga": _alone("iga.weight", 0.1, 0.5, 2.5),
    "atex": _alone("atex.weight", 0.2, 1.0, 5.0),
    "ig_norm": _alone("ig_norm.weight", 0.2, 1.0, 5.0),
    "curvature": _alone("curvature.weight", 0.8, 4.0, 20.0),
}
CHOSEN = dict.fromkeys(WEIGHTS, 1) | {"none": 0}  # index of the weight, see `robustgrad_jax.studies.selection`
REPEATED = ("none", "l2_cosine", "hessian", "l2", "cosine")  # with all seeds, the others with the first


def get_config(study: str = "final"):
    """The config of one of `STUDIES`."""
    if study not in STUDIES:
        raise ValueError(f"no study {study!r}; there are {', '.join(STUDIES)}")
    config = cifar10_resnet18.get_config() if study == "resnet18" else base.get_config()
    config.data.val_examples = 5000
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    _shorten(config, 4 * FRACTION if study == "resnet18" else FRACTION)
    if study != "resnet18":
        config.batch_size = 32
    evaluation = config.evaluation
    evaluation.batch_size = 100
    evaluation.draws = 3
    evaluation.upper_bound = False
    evaluation.metrics = ("cosine", "pcc", "ssim")
    if study == "select":
        evaluation.split = "val"
        evaluation.examples = 1000
        evaluation.perturbations = ("rps",)
        evaluation.radii = (8.0,)
        evaluation.curves = ()
        return config
    evaluation.attributions = ("gradient", "integrated_gradients", "grad_cam")
    evaluation.composites = ("epsilon_plus",)
    evaluation.attacked = ("gradient",)
    evaluation.examples = 500 if study == "final" else 100
    evaluation.attack_examples = 200 if study == "final" else 100
    evaluation.attack_radii = (4.0, 8.0, 16.0) if study == "final" else (8.0,)
    return config


def _shorten(config, fraction: int) -> None:
    """Train one part of `fraction`, the schedule with it, and measure the last checkpoint."""
    scaled = lambda duration: f"{float(duration.removesuffix(' epochs')) / fraction:g} epochs"
    config.duration = scaled(config.duration)
    config.optimizer.schedule.milestones = tuple(map(scaled, config.optimizer.schedule.milestones))
    config.loop.eval_every = config.duration
    config.loop.checkpoint_every = "500 steps"


def _select():
    return [{"regularizer.name": name, **weight} for name, weights in WEIGHTS.items() for weight in weights]


def _final():
    return [
        {"regularizer.name": name, **WEIGHTS[name][at], "seed": seed}
        for name, at in CHOSEN.items()
        for seed in (SEEDS if name in REPEATED else SEEDS[:1])
    ]


def _resnet18():
    return [{"regularizer.name": name} for name in ("none", "l2_cosine", "hessian")]


STUDIES = {"select": _select, "final": _final, "resnet18": _resnet18}


def sweep(study: str = "final"):
    """The members of a study."""
    return STUDIES[study]()
