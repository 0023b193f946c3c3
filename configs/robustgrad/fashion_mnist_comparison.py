"""What `make demo` runs: LeNet trained plainly and with local gradient alignment, same seed, same budget.

    python -m launch.train --config=configs/demo.py --workdir=runs/demo

Fashion-MNIST where Debian's `dataset-fashion-mnist` is installed, scikit-learn's bundled digits otherwise; the log says
which. About six minutes on two cores. Three seeds: `--config.comparison.seeds="(0,1,2)"`. Small batches and a larger
step than the paper's, so that within minutes the plain network bends enough for its attributions to be fragile; the
regulariser's radius and weights are the published ones.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs.robustgrad import digits_lenet, fashion_mnist_lenet

_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def get_config():
    fashion = (_FASHION_MNIST / "train-images-idx3-ubyte.gz").is_file()
    config = (fashion_mnist_lenet if fashion else digits_lenet).get_config()
    config.experiment = "robustgrad_jax.comparison"
    config.comparison = ConfigDict({"regularizers": ("none", "l2_cosine"), "seeds": (0,)})
    config.batch_size = 32
    config.duration = "2000 steps"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule.milestones = ("1500 steps",)
    config.loop.log_every = 50
    config.loop.eval_every = "500 steps"
    config.loop.checkpoint_every = "500 steps"
    config.evaluation.examples = 256
    config.evaluation.attack_examples = 128
    config.evaluation.attack_radii = (8.0,)
    if fashion:
        config.data.val_examples = 1000
        config.data.test_examples = 2000
    return config
