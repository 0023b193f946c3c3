"""Compile one program for a topology, and read from it what it needs and what it costs."""

import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.aot import hlo
from launch.aot.topologies import Topology

_LARGEST = 5  # arrays that are named
_UNNAMED = "an operation"
_REQUIRED = re.compile(r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TENSOR = re.compile(r"tensor<((?:\d+x)*)([a-z]\w*)>")
_LOCATION = re.compile(r'^(#loc\d+) = loc\("([^"]*)"')
MEMORY = ("arguments", "outputs", "aliased", "temporaries", "code")


@dataclass(frozen=True)
class Array:
    """One of the largest arrays of a program: an argument, or what one of its operations gives.

    Attributes:
      name: the path of an argument, or the operation, as JAX names it.
      shape: "f32[256,1024]".
      bytes: its size.
      whole: whether shape and size are those on all devices together, and not on one.
    """

    name: str
    shape: str
    bytes: int
    whole: bool = False


@dataclass(frozen=True)
class Cost:
    """What a program needs and costs on one device of a topology; bytes, seconds.

    Attributes:
      fits: whether its memory suffices.
      needed: at its peak; for one that does not fit, what the compiler says it needs, NaN if it does not say.
      available: to a program.
      memory: by kind, `MEMORY`; aliased are arguments that become outputs. {} where the compiler refused the program.
      largest: the largest arrays, of a program that does not fit.
      flops: operations in matrix products and convolutions; None where the compiler refused the program.
      traffic: bytes to and from memory, by the compiler; it takes a loop for one pass through it. None where it does
        not say, as XLA for CUDA.
      loops: whether the length of every loop is known; others count once.
      collectives: what is exchanged.
      estimate: by the compiler's own cost model, loops as in `traffic`; None where it has none.
      roofline: by what bounds it: "computing" at the peak rate in bfloat16, "memory" traffic, "exchange" in rings.
      compile_seconds: that compiling took here.
    """

    fits: bool
    needed: float
    available: float
    memory: Mapping[str, int] = field(default_factory=dict)
    largest: Sequence[Array] = ()
    flops: float | None = None
    traffic: float | None = None
    loops: bool = True
    collectives: Sequence[hlo.Collective] = ()
    estimate: float | None = None
    roofline: Mapping[str, float] = field(default_factory=dict)
    compile_seconds: float = math.nan

    @property
    def exchanged(self) -> int:
        """Bytes that a device puts into all collectives of one call."""
        return sum(one.total for one in self.collectives)

    @property
    def bound(self) -> str:
        """What the roofline's time is spent on; "" if nothing is known."""
        return max(self.roofline, key=lambda name: self.roofline[name], default="")


def cost(lowered: jax.stages.Lowered, arguments: Any, topology: Topology) -> Cost:
    """Compile a program for a topology; nothing runs, and nothing is allocated.

    Args:
      lowered: the program.
      arguments: the shapes that it was lowered for.
      topology: whose devices they are on.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses the program for another reason than its memory.
    """
    available, begin = topology.chip.memory, time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - begin
        largest = [*_arguments(arguments), *_values(lowered)]
        return Cost(False, _required(str(error)), available, largest=_first(largest), compile_seconds=seconds)
    seconds = time.perf_counter() - begin
    stats, module = compiled.memory_analysis(), hlo.Module.of(_text(compiled, lowered))
    assert stats is not None
    counts = compiled.cost_analysis() or {}
    sizes = (f"{kind}_size_in_bytes" for kind in ("argument", "output", "alias", "temp", "generated_code"))
    fits, traffic = stats.peak_memory_in_bytes <= available, counts.get("bytes accessed")
    return Cost(
        *(fits, stats.peak_memory_in_bytes, available),
        memory=dict(zip(MEMORY, (getattr(stats, size) for size in sizes), strict=True)),
        largest=() if fits else _first([*_arguments(arguments), *(Array(*one) for one in module.values)]),
        flops=module.flops,
        traffic=traffic,
        loops=module.loops_are_known,
        collectives=module.collectives,
        estimate=_estimate(counts.get("optimal_seconds")),
        roofline=_roofline(module.flops, traffic, module.collectives, topology),
        compile_seconds=seconds,
    )


def _text(compiled: jax.stages.Compiled, lowered: jax.stages.Lowered) -> str:
    """The optimised HLO.

    JAX cannot read back what a v5p's compiler moves to sparse cores in parts (jax 0.10, libtpu 0.0.52: "async-update
    instruction should have 1 operands"); then the program is compiled once more and the compiler writes the text.
    """
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError:
        with tempfile.TemporaryDirectory() as folder:
            lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            found = sorted(Path(folder).glob("*.after_optimizations.txt"))
            if not found:
                raise
            return found[-1].read_text()


def _estimate(seconds: float | None) -> float | None:
    """The cost model's seconds: each operation that it does not know has added -1."""
    return None if seconds is None else seconds - math.floor(seconds)


def _roofline(
    flops: float, traffic: float | None, exchanges: Sequence[hlo.Collective], topology: Topology
) -> dict[str, float]:
    chip, count = topology.chip, len(topology.devices)
    times = {"computing": flops / chip.flops, "exchange": sum(_sent(one, count) for one in exchanges) / chip.link}
    return times if traffic is None else times | {"memory": traffic / chip.bandwidth}


def _sent(one: hlo.Collective, devices: int) -> float:
    """Bytes that a device sends in one direction of a ring over the devices that exchange with each other."""
    others = (one.group or devices) - 1
    share = others / (others + 1)
    kinds = {"all-reduce": 2 * share, "all-gather": others, "collective-permute": 1}
    return kinds.get(one.kind, share) * one.total


def _required(message: str) -> float:
    """The bytes that a program needs by the message of a compiler for which they are too many."""
    match = _REQUIRED.search(message)
    return float(match[1]) * _UNITS[match[2]] if match else math.nan


def _first(arrays: Sequence[Array]) -> list[Array]:
    """The largest ones; of those of one shape the first that has a name."""
    by_shape: dict[str, Array] = {}
    for one in arrays:
        if one.shape not in by_shape or by_shape[one.shape].name == _UNNAMED:
            by_shape[one.shape] = one
    return sorted(by_shape.values(), key=lambda one: -one.bytes)[:_LARGEST]


def _arguments(arguments: Any) -> Iterator[Array]:
    """The arguments, by path; sizes on one device."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        if isinstance(leaf, jax.ShapeDtypeStruct):  # others are static
            shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
            name, kind = jax.tree_util.keystr(path, simple=True, separator="/"), np.dtype(leaf.dtype)
            text = f"{_short(kind.name)}[{','.join(map(str, shape))}]"
            yield Array(f"argument {name}", text, math.prod(shape) * kind.itemsize)


def _values(lowered: jax.stages.Lowered) -> Iterator[Array]:
    """What the operations of a program give, before it is divided among devices: sizes on all of them together."""
    text = lowered.as_text(debug_info=True)
    names = {match[1]: match[2] for line in text.splitlines() if (match := _LOCATION.match(line))}
    for line in text.splitlines():
        if " = stablehlo." not in line:
            continue
        results, location = line.partition(" loc(")[0].rpartition("->")[2], line.rpartition("loc(")[2]
        for sizes, kind in _TENSOR.findall(results):
            bits = re.search(r"\d+", kind)
            count = math.prod(int(size) for size in sizes.split("x") if size)
            shape = f"{kind}[{','.join(sizes.split('x')[:-1])}]"
            size = count * (int(bits[0]) if bits else 8) // 8
            yield Array(names.get(location.rstrip(")"), _UNNAMED), shape, size, whole=True)


def _short(dtype: str) -> str:
    """ "bfloat16" -> "bf16", as XLA says."""
    for long, short in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "s")):
        if dtype.startswith(long):
            return short + dtype.removeprefix(long)
    return dtype
