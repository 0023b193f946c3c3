"""One training step of local gradient alignment: ours against the published step in PyTorch, eager and compiled.

    python -m benchmarks.robustgrad_step [--cases "lenet none" "lenet l2_cosine" …] [--against eager compile]

All sides do the whole step: forward, penalty, gradients, clipping, update, on the same images and noise radius.
"compile" is torch.compile of the loss, whose input gradients are torch.func's: AOTAutograd has no double backward.
`--lenet N` and `--resnet18_cifar N` are the batch sizes, on 32x32x3.

On a CPU ours runs in mode "pmap" over one CPU device per core, each with its share of the batch (`--devices 1` for one
program over the whole batch): so all cores take part where XLA runs an operation on one. Batch norm then sees that
share, as under DistributedDataParallel, while PyTorch's sees the whole batch; LeNet has none, its numbers are the same.
"""

import os
from functools import partial

from benchmarks import alternate

BATCHES = {"lenet": 128, "resnet18_cifar": 32}  # also names of sizes
REGULARIZERS = ("none", "l2_cosine", "hessian")
SCALE = 4 / 255 / 0.2
CORES = max(n for n in range(1, (os.cpu_count() or 1) + 1) if all(batch % n == 0 for batch in BATCHES.values()))


def jax_step(model: str, batch: int, regularizer: str):
    """() -> None, one step of ours, its result awaited."""
    import jax
    import numpy as np

    from launch.training import keys, optim, sharding
    from robustgrad_jax import models, regularizers, training
    from robustgrad_jax.gradients import Draws

    settings = optim.Optimizer("adam", learning_rate=1e-3, weight_decay=4e-5, clip_norm=0.5)
    optimizer, _ = settings.create(total_steps=117_188, to_steps=lambda text: 0)
    network, penalty = models.create(model, num_classes=10), regularizers.create(regularizer)
    state = training.create_state(network, optimizer, (32, 32, 3), 0)

    def step(numbers, state, batch, *, axis_name=None):
        draws = Draws(keys.stream(numbers["seed"], "regularizer", state.step), batch["slot"])
        images, std = (batch["x"], batch["y"]), (0.2, 0.2, 0.2)
        return training.update(network, optimizer, penalty, state, *images, draws, std=std, axis_name=axis_name)

    layout = sharding.layout("pmap" if jax.device_count() > 1 else "jit")
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(batch, 32, 32, 3)).astype(np.float32), "y": rng.integers(0, 10, batch)}
    data = layout.put(data | {"slot": np.arange(batch, dtype=np.int32)})
    compiled, numbers = layout.jit(step, state), layout.replicate({"seed": np.int32(0)})
    held = [layout.place(state)]

    def run():
        held[0], metrics = compiled(numbers, held[0], data)
        jax.block_until_ready((held[0], metrics))

    return run


def torch_step(model: str, batch: int, regularizer: str, *, compile: bool):
    """() -> None, one step of the published procedure in PyTorch."""
    import numpy as np
    import torch

    from benchmarks.pytorch import robustgrad

    device = alternate.pytorch()
    torch.manual_seed(0)
    network = robustgrad.create(model).train().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=4e-5)
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(batch, 3, 32, 32)).astype(np.float32)).to(device)
    y = torch.tensor(rng.integers(0, 10, batch)).to(device)
    weights = {"l2": 0.01, "cosine": 1.0, "hessian": 1e-3}
    step_loss = torch.compile(robustgrad.functional_step_loss) if compile else robustgrad.step_loss

    def run():
        noise = torch.randn_like(x) if regularizer == "hessian" else SCALE * (2 * torch.rand_like(x) - 1)
        loss, _ = step_loss(network, x, y, regularizer=regularizer, noise=noise, weights=weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()

    return run


def sides(model: str, regularizer: str) -> alternate.Builders:
    case = model, alternate.size(model, BATCHES[model]), regularizer
    return {
        "ours": partial(jax_step, *case),
        "eager": partial(torch_step, *case, compile=False),
        "compile": partial(torch_step, *case, compile=True),
    }


CASES = {f"{model} {name}": sides(model, name) for model in BATCHES for name in REGULARIZERS}
QUICK = {"steps": 5, "cases": [case for case in CASES if case != "resnet18_cifar hessian"]}

if __name__ == "__main__":
    alternate.main("benchmarks.robustgrad_step", __doc__, CASES, devices=CORES, sizes=BATCHES, quick=QUICK)
