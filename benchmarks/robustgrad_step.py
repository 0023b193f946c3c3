"""One training step of local gradient alignment: ours against the published step in PyTorch eager.

    python -m benchmarks.robustgrad_step [--cases lenet resnet18_cifar] [--regularizers none l2_cosine hessian]

Both sides run in processes of their own, one step each in turn, so that whatever else the machine does hits both alike;
the ratio is the median over the pairs. Peak memory is the process's largest resident set (host memory, so on CPU).
Both sides do the whole step: forward, penalty, gradients, clipping, update, on the same images and noise radius.

With `--devices N` ours runs in mode "pmap" over N CPU devices, each with its share of the batch: one a core uses both
cores of operations that XLA runs on one. Batch norm then sees that share, as under DistributedDataParallel, while
PyTorch's sees the whole batch; LeNet has none, its numbers are the same.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

CASES = {"lenet": 128, "resnet18_cifar": 32}  # model -> batch size; both on 32x32x3
REGULARIZERS = ("none", "l2_cosine", "hessian")
SCALE = 4 / 255 / 0.2


def jax_step(model: str, batch: int, regularizer: str):
    """() -> None, one step of ours, its result awaited."""
    from functools import partial

    import jax
    import numpy as np

    from configs.robustgrad import base
    from launch import duration, optim, sharding
    from robustgrad_jax import experiment, models, regularizers

    config = base.get_config()
    config.regularizer.name = regularizer
    to_steps = partial(duration.to_steps, examples=50_000, batch_size=batch)
    optimizer, _ = optim.create(config.optimizer, total_steps=to_steps(config.duration), to_steps=to_steps)
    network = models.create(model, num_classes=10)
    state = experiment.create_state(network, optimizer, (32, 32, 3), 0)
    penalty = partial(regularizers.create(config.regularizer), std=(0.2, 0.2, 0.2))
    step = experiment.make_step(network, optimizer, penalty, lambda b, step: (b["x"], b["y"]), 0)
    layout = sharding.layout("pmap" if jax.device_count() > 1 else "jit")
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(batch, 32, 32, 3)).astype(np.float32), "y": rng.integers(0, 10, batch)}
    data = layout.put(data | {"slot": np.arange(batch, dtype=np.int32)})
    compiled = layout.compile(step, state)
    held = [layout.place(state)]

    def run():
        held[0], metrics = compiled(held[0], data)
        jax.block_until_ready((held[0], metrics))

    return run


def torch_step(model: str, batch: int, regularizer: str):
    """() -> None, one step of the published procedure in PyTorch eager."""
    import numpy as np
    import torch

    from benchmarks import torch_robustgrad

    torch.manual_seed(0)
    network = torch_robustgrad.create(model).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=4e-5)
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(batch, 3, 32, 32)).astype(np.float32))
    y = torch.tensor(rng.integers(0, 10, batch))
    weights = {"l2": 0.01, "cosine": 1.0, "hessian": 1e-3}

    def run():
        noise = torch.randn_like(x) if regularizer == "hessian" else SCALE * (2 * torch.rand_like(x) - 1)
        loss, _ = torch_robustgrad.step_loss(network, x, y, regularizer=regularizer, noise=noise, weights=weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()

    return run


def serve(side: str, model: str, batch: int, regularizer: str) -> None:
    """Child process: a line in, one timed step, a line out."""
    run = {"jax": jax_step, "torch": torch_step}[side](model, batch, regularizer)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        # Linux counts kilobytes, macOS bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def pair(model: str, batch: int, regularizer: str, *, steps: int, warmup: int, devices: int, python: str) -> dict:
    """Alternate the two sides; medians, peaks, and the median of the pairwise ratios."""

    def launch(side):
        interpreter = python if side == "jax" else sys.executable
        command = [interpreter, "-m", "benchmarks.robustgrad_step", "--serve", side, model, str(batch), regularizer]
        # Huge pages for both: XLA maps its buffers anew every step, and small pages are faulted in one by one.
        env = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ | {"JAX_PLATFORMS": "cpu"}
        if side == "jax":
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    children = {side: launch(side) for side in ("torch", "jax")}

    def one(side):
        children[side].stdin.write("step\n")
        children[side].stdin.flush()
        line = children[side].stdout.readline()
        if not line:
            raise RuntimeError(f"the {side} side of {model} {regularizer} died; its error is above")
        return json.loads(line)

    try:
        rounds = [{side: one(side) for side in children} for _ in range(warmup + steps)][warmup:]
    finally:
        for child in children.values():
            child.stdin.close()
            child.wait()
    seconds = {side: [r[side]["seconds"] for r in rounds] for side in children}
    return {
        "torch": statistics.median(seconds["torch"]),
        "jax": statistics.median(seconds["jax"]),
        "ratio": statistics.median(t / j for t, j in zip(seconds["torch"], seconds["jax"], strict=True)),
        "torch_peak": rounds[-1]["torch"]["peak"],
        "jax_peak": rounds[-1]["jax"]["peak"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--regularizers", nargs="+", default=list(REGULARIZERS), choices=REGULARIZERS)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of our side")
    parser.add_argument("--jax_python", default=sys.executable, help="interpreter of our side, if another than this")
    parser.add_argument("--serve", nargs=4, metavar=("SIDE", "MODEL", "BATCH", "REGULARIZER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if any(CASES[case] % args.devices for case in args.cases):
        parser.error(f"--devices {args.devices} does not divide the batches {[CASES[case] for case in args.cases]}")
    if args.serve:
        side, model, batch, regularizer = args.serve
        serve(side, model, int(batch), regularizer)
        return
    print("| model, batch | regulariser | PyTorch s | ours s | ratio | PyTorch GB | ours GB |\n" + "|---" * 7 + "|")
    for model in args.cases:
        for regularizer in args.regularizers:
            row = pair(
                model,
                CASES[model],
                regularizer,
                steps=args.steps,
                warmup=args.warmup,
                devices=args.devices,
                python=args.jax_python,
            )
            print(
                f"| {model}, {CASES[model]} | {regularizer} | {row['torch']:.3f} | {row['jax']:.3f} | "
                f"**{row['ratio']:.2f}** | {row['torch_peak'] / 1e9:.2f} | {row['jax_peak'] / 1e9:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
