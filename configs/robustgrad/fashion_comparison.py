"""LeNet on Fashion-MNIST trained plainly and with local gradient alignment, same budget, three seeds.

    python -m launch.sweep --config=configs/robustgrad/fashion_comparison.py --workdir=runs/fashion_comparison
    python -m launch.report runs/fashion_comparison --tables

About five minutes per seed on two cores; data as for fashion_mnist_lenet.py. Small batches and a larger step than the
paper's, so that within minutes the plain network bends enough for its attributions to be fragile; the regulariser's
radius and weights are the published ones. Expect accuracy .88 for both, and under AAM of ε = 8 a Pearson correlation of
heat maps of .66 for the plain network, .82 for the regularised one.
"""

from configs.robustgrad import fashion_mnist_lenet


def get_config():
    config = fashion_mnist_lenet.get_config()
    config.batch_size = 32
    config.duration = "2000 steps"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule.milestones = ("1500 steps",)
    config.loop.eval_every = "500 steps"
    config.loop.checkpoint_every = "500 steps"
    config.data.val_examples = 1000
    config.data.test_examples = 2000
    config.evaluation.examples = 256
    config.evaluation.attack_examples = 128
    config.evaluation.attack_radii = (8.0,)
    config.evaluation.attack_clip = False  # the figures above are without
    return config


def sweep():
    return [{"seed": seed, "regularizer.name": name} for seed in (0, 1, 2) for name in ("none", "l2_cosine")]
