"""What a training step says to other devices, out of the compiled program, and what that costs on real ones.

    python -m benchmarks.scaling [--cases "lenet l2_cosine" …] [--modes jit pmap] [--devices 1 2 4 8]

Each step is compiled, not run, for so many fake CPU devices, at the batch of its published setting. The first table
counts the collectives of a step, and the bytes that each device hands to them. XLA on a GPU or a TPU merges all-reduces
that become ready at about the same time: there are fewer then, of the same bytes. The second is the roofline of one
device's share on eight: floating-point operations and memory traffic of the unpartitioned step over 8, at peak rates,
and a ring all-reduce of the bytes, at the bandwidth between devices.

Memory traffic is what XLA counts after it has fused for a CPU; an accelerator fuses more, so it is an upper bound.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Groups of one device each: nothing is sent.
_ALONE = re.compile(r"replica_groups=(\{(\{\d+\},?)+\}|\[\d+,1\]<=)")
_MOST = 8


@dataclass(frozen=True)
class Chip:
    """Peak rates by the makers' data sheets.

    Attributes:
      flops: of a dense matrix product in bfloat16, 1/s.
      memory: bytes/s.
      link: bytes/s in one direction, to the devices of the same machine or slice.
    """

    flops: float
    memory: float
    link: float


# NVIDIA H100 SXM5: 989 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s in both directions together.
# TPU v5e: 197 TFLOP/s, 819 GB/s, 1,600 Gbit/s a chip each way over four links, of which a ring uses two.
CHIPS = {"H100": Chip(989e12, 3.35e12, 450e9), "TPU v5e": Chip(197e12, 819e9, 100e9)}


@dataclass(frozen=True)
class Step:
    """A step and the shapes that it takes.

    Attributes:
      step: `step(state, batch, *, axis_name=None) -> (state, metrics)`.
      state: shapes.
      batch: shapes of the global batch.
      resident: shapes of what every device keeps whole.
    """

    step: Callable
    state: Any
    batch: Mapping[str, Any]
    resident: Mapping[str, Any]


def robustgrad(model: str, regularizer: str, devices: int) -> Step:
    """Local gradient alignment of a network for 32x32 images, batch 128."""
    import jax
    import jax.numpy as jnp

    from configs.robustgrad import base
    from launch.training import optim
    from robustgrad_jax import experiment, models, regularizers

    del devices
    config = base.get_config()
    config.regularizer.name = regularizer
    batch = config.batch_size
    optimizer, *_ = optim.of_run(config, examples=50_000)
    network = models.create(model, num_classes=10)
    penalty = partial(regularizers.create(config.regularizer), std=(0.2, 0.2, 0.2))
    step = experiment.make_step(network, optimizer, penalty, lambda b, step: (b["x"], b["y"]), 0)
    state = jax.eval_shape(lambda: experiment.create_state(network, optimizer, (32, 32, 3), 0))
    shapes = {"x": ((batch, 32, 32, 3), jnp.float32), "y": ((batch,), jnp.int32), "slot": ((batch,), jnp.int32)}
    return Step(step, state, _shapes(shapes), {})


def erm(devices: int) -> Step:
    """Fine-tuning of a ResNet-50 on 224x224 images, batch 32: the network of the text-based last-layer retraining."""
    from configs.tldr import waterbirds_resnet50
    from launch.training import sharding
    from tldr_jax import experiment

    del devices
    program = experiment.plan(waterbirds_resnet50.get_config()).train.erm.program(sharding.layout(devices=_first()))
    return Step(partial(program.step, program.numbers), program.state, program.batch, {})


def _first():
    import jax

    return jax.devices()[:1]


def rtd(devices: int) -> Step:
    """RTD of ViT-B/32's text tower, batch 512, captions of 20 tokens, bfloat16."""
    import jax
    import jax.numpy as jnp

    from clip_jax import model
    from clip_jax.config import VARIANTS
    from launch.training import optim
    from rtd_jax import phi
    from rtd_jax.text import compose
    from rtd_jax.tuning import step, training

    # Unrolled: XLA counts the inside of a loop over the layers once.
    config = replace(VARIANTS["ViT-B/32"], dtype="bfloat16", unroll=True)
    batch, prompt = 512, compose.Prompt((49406, 320, 1125, 539), 259, 49407)
    optimizer, _ = optim.create(
        {"name": "adamw", "learning_rate": 1e-5, "weight_decay": 0.01, "schedule": {"name": "constant"}},
        total_steps=2000,
        to_steps=lambda text: 0,
    )
    network = phi.init("phi", config.projection, config.text.width, jax.random.key(1))
    text = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))["text"]
    state = jax.eval_shape(partial(training.create_state, optimizer=optimizer), {"text": text})
    train = step.make_step(config, optimizer, network.module, step.Objective(), prompt=prompt, seed=0, shards=devices)
    embedding = ((batch, config.projection), jnp.float32)
    shapes = {"ids": ((batch, 20), jnp.int32), "slot": ((batch,), jnp.int32)}
    shapes |= {"reference": embedding, "target": embedding}
    return Step(train, state, _shapes(shapes), {"phi": jax.eval_shape(lambda: network.params)})


CASES: dict[str, Callable[[int], Step]] = {
    "lenet l2_cosine": partial(robustgrad, "lenet", "l2_cosine"),
    "resnet18_cifar l2_cosine": partial(robustgrad, "resnet18_cifar", "l2_cosine"),
    "resnet50 erm": erm,
    "rtd text tower": rtd,
}


def _shapes(shapes: Mapping[str, tuple]) -> dict[str, Any]:
    import jax

    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def compiled(make: Callable[[int], Step], mode: str, devices: int):
    """The step's lowered and compiled program over the first `devices` devices."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from launch.training import sharding

    layout, found = sharding.layout(mode, devices=jax.devices()[:devices]), make(devices)
    on = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    batch = on(found.batch, NamedSharding(layout.mesh, P("data")))
    if found.resident:
        batch |= {sharding.RESIDENT: on(found.resident, layout.replicated)}
    return layout.compile(found.step, found.state).lower(on(found.state, layout.replicated), batch).compile()


def collectives(program: str) -> tuple[Counter, int]:
    """The collectives of a compiled program, by kind, and the bytes of their operands on one device.

    Args:
      program: HLO text. Collectives inside of loops are counted once.
    """
    counts, total = Counter(), 0
    pattern = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(([^)]*)\)")
    sizes = dict(re.findall(r"^\s*(?:ROOT )?(%?[\w.\-]+) = (\(.*?\)|\S+) ", program, re.MULTILINE))
    for line in program.splitlines():
        if not (match := pattern.search(line)) or _ALONE.search(line):
            continue
        counts[match[2]] += 1
        total += sum(_bytes(sizes[name]) for name in re.findall(r"%[\w.\-]+", match[4]))
    return counts, total


def _bytes(shape: str) -> int:
    """Of "f32[128,10]{1,0}", or of a tuple of such."""
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        count = 1
        for size in dims.split(","):
            count *= int(size) if size else 1
        total += count * bits // 8
    return total


def roofline(flops: float, traffic: float, exchanged: float, devices: int, chip: Chip) -> tuple[float, float, float]:
    """Seconds of one device's share: computing, memory, and a ring all-reduce of `exchanged` bytes."""
    ring = 2 * (devices - 1) / devices * exchanged / chip.link
    return flops / devices / chip.flops, traffic / devices / chip.memory, ring


def rows(case: str, mode: str, devices: Sequence[int]) -> tuple[list[str], list[str]]:
    """A case's lines of both tables."""
    first, second = [], []
    alone = compiled(CASES[case], mode, 1)
    cost = alone.cost_analysis()
    for count in devices:
        program = alone if count == 1 else compiled(CASES[case], mode, count)
        kinds, exchanged = collectives(program.as_text())
        shown = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none"
        first.append(f"| {case} | {mode} | {count} | {shown} | {exchanged / 1e6:.3f} |")
        if count != max(devices):
            continue
        for name, chip in CHIPS.items():
            times = [1e6 * t for t in roofline(cost["flops"], cost["bytes accessed"], exchanged, count, chip)]
            numbers = " | ".join(f"{t:.1f}" for t in times)
            limit = ("computing", "memory", "exchange")[times.index(max(times))]
            work = f"{cost['flops'] / 1e9:.1f} | {cost['bytes accessed'] / 1e9:.2f}"
            second.append(f"| {case} | {mode} | {name} | {work} | {numbers} | {limit} |")
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--modes", nargs="+", choices=("jit", "pmap"), default=["jit", "pmap"])
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, _MOST])
    args = parser.parse_args()
    flags = f"--xla_force_host_platform_device_count={max(args.devices)} --xla_backend_optimization_level=0"
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    print("| step | mode | devices | collectives | MB a device |\n|---|---|---|---|---|", flush=True)
    later = []
    for case in args.cases:
        for mode in args.modes:
            first, second = rows(case, mode, args.devices)
            print("\n".join(first), flush=True)
            later += second
    whole = "GFLOP, whole step | GB, whole step"
    print(f"\n| step | mode | chip | {whole} | computing µs | memory µs | exchange µs | bound by |")
    print("|---|---|---|---|---|---|---|---|---|\n" + "\n".join(later), flush=True)


if __name__ == "__main__":
    main()
