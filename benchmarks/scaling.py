"""What a training step exchanges between devices, from the compiled program, and what that costs on real ones.

    python -m benchmarks.scaling [--cases "lenet l2_cosine" …] [--modes jit pmap] [--devices 1 2 4 8]

Each case is the program of a stage (`launch.training.program.Program`) at the batch of its published setting; it is
compiled for fake CPU devices, not run. The first table counts the collectives of a step, and the bytes that each device
contributes to them. XLA on a GPU or a TPU merges all-reduces that become ready at about the same time: they are fewer
there, with the same bytes. The second table is the roofline of one device's share on eight: floating-point operations
and memory traffic of the unpartitioned step over 8, at peak rates, and a ring all-reduce of the bytes, at the bandwidth
between devices.

Memory traffic is what XLA counts after it has fused for a CPU; an accelerator fuses more, so it is an upper bound.
"""

import argparse
import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from launch import stages

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
# TPU v5e: 197 TFLOP/s, 819 GB/s, 1,600 Gbit/s per chip each way over four links, of which a ring uses two.
CHIPS = {"H100": Chip(989e12, 3.35e12, 450e9), "TPU v5e": Chip(197e12, 819e9, 100e9)}


def stage_of(config: str, kind: str, overrides: Mapping[str, Any]) -> Any:
    """The stage of class `kind` in the plan of a config with overrides.

    Args:
      config: dotted name of the config file's module.
      kind: the name of a class with one stage in the plan.
      overrides: flat.
    """
    values = importlib.import_module(config).get_config()
    values.update_from_flattened_dict(overrides)
    root = importlib.import_module(values.experiment).plan(values)
    (stage,) = (stage for stage in stages.walk(root) if type(stage).__name__ == kind)
    return stage


def robustgrad(model: str) -> Any:
    """Local gradient alignment of a network for 32x32 images, batch 128."""
    overrides = {"model.name": model, "batch_size": 128, "regularizer.name": "l2_cosine"}
    return stage_of("configs.robustgrad.scenes", "Classifier", overrides)


def erm() -> Any:
    """Fine-tuning of a ResNet-50 on 224x224 images, batch 32: the network of the text-based last-layer retraining."""
    return stage_of("configs.tldr.waterbirds_resnet50", "Erm", {})


def rtd() -> Any:
    """RTD of ViT-B/32's text tower, batch 512, captions of 20 tokens, bfloat16."""
    from clip_jax.config import VARIANTS
    from clip_jax.training.clips import FreshClip

    sizes = VARIANTS["ViT-B/32"]
    clip = FreshClip(replace(sizes, text=replace(sizes.text, context_length=20)))

    class ShapesOnly:
        """A CLIP of the published size, without weights."""

        @staticmethod
        def outline():
            return clip.outline()

    overrides = {"rtd.batch_size": 512, "rtd.restrict_vocabulary": False, "model.dtype": "bfloat16"}
    # Unrolled: XLA counts the inside of a loop over the layers once.
    tuning = stage_of("configs.rtd.scenes", "Tuning", overrides | {"model.unroll": True})
    return replace(tuning, embeddings=replace(tuning.embeddings, clip=ShapesOnly()))


CASES: dict[str, Callable[[], Any]] = {
    "lenet l2_cosine": partial(robustgrad, "lenet"),
    "resnet18_cifar l2_cosine": partial(robustgrad, "resnet18_cifar"),
    "resnet50 erm": erm,
    "rtd text tower": rtd,
}


def compiled(stage: Any, mode: str, devices: int):
    """The compiled program of a stage over the first `devices` devices."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from launch.training import sharding

    layout = sharding.layout(mode, devices=jax.devices()[:devices])
    program = stage.program(layout)
    on = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    batch = on(program.batch, NamedSharding(layout.mesh, P("data")))
    if program.resident:
        batch |= {sharding.RESIDENT: on(program.resident, layout.replicated)}
    arguments = on(program.numbers, layout.replicated), on(program.state, layout.replicated), batch
    return layout.jit(program.step, program.state).lower(*arguments).compile()


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
    stage = CASES[case]()
    alone = compiled(stage, mode, 1)
    cost = alone.cost_analysis()
    for count in devices:
        program = alone if count == 1 else compiled(stage, mode, count)
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
    print("| step | mode | devices | collectives | MB per device |\n|---|---|---|---|---|", flush=True)
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
