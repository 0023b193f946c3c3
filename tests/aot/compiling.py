"""Programs of configs, through the compilers of accelerators."""

import importlib
import re
from dataclasses import dataclass
from typing import Any

import jax
import pytest
from ml_collections import FrozenConfigDict

from launch.aot import hlo, programs
from launch.aot.topologies import Topology, TopologyError, topology
from launch.processes import compiling
from launch.train import planned
from tests.commands import REQUIRED

only_with_system = pytest.mark.skipif(not REQUIRED, reason="minutes of compiling: `make test SYSTEM=yes`")
TPU, GPU = "v5e:2x4", "h100x8"


@dataclass(frozen=True)
class CompiledPass:
    """A program as it was compiled.

    Attributes:
      topology: that it was compiled for.
      arguments: the shapes of its arguments.
      module: what it does.
      peak: bytes on one device.
      text: the optimised HLO.
    """

    topology: Topology
    arguments: Any
    module: hlo.Module
    peak: int
    text: str

    @property
    def fits(self) -> bool:
        return self.peak < self.topology.chip.memory

    @property
    def in_float32(self) -> list[bool]:
        """Of every product and convolution, whether its operands are not rounded."""
        products = re.findall(r".* (?:convolution|dot)\(.*|.*__cu(?:dnn\$conv|blas).*", self.text)
        return ["operand_precision={highest,highest" in line for line in products]  # a bias may be the third operand

    def exchanged(self, *kinds: str, group: int | None = None) -> int:
        """Bytes of collectives of these kinds, among so many devices; by default of all."""
        chosen = [one for one in self.module.collectives if not kinds or one.kind in kinds]
        return sum(one.total for one in chosen if group in (None, one.group))


def config(name: str, **overrides: Any) -> FrozenConfigDict:
    """A config with overrides, as `dict(**{"a.b": 1})`."""
    values = importlib.import_module(f"configs.{name}").get_config()
    values.update_from_flattened_dict(overrides)
    return FrozenConfigDict(values)


def compiled(configs: list[FrozenConfigDict], name: str, only: str) -> CompiledPass:
    """The one program called `only` of a config, or of configs that stack, in their precision."""
    machine, roots = machine_of(name), [planned(one)[1] for one in configs]
    passes = programs.of_stack(roots, machine) if len(roots) > 1 else programs.of_plan(roots[0], machine)
    one = next(own for own in passes if own.name == only)
    with compiling.products(compiling.precision_of(configs[0])):
        return built(machine, one.function, *one.arguments)


def machine_of(name: str) -> Topology:
    """A topology; fails where its compiler is missing, since the tests that need it run only where it is required."""
    try:
        return topology(name)
    except TopologyError as error:
        pytest.fail(str(error))


def built(machine: Topology, function: Any, *arguments: Any, **static: Any) -> CompiledPass:
    """A jitted function as the machine's compiler makes it, at the least effort."""
    before = jax.config.jax_exec_time_optimization_effort  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("XLA_FLAGS", raising=False)  # libtpu ends the process at flags of tests/conftest.py
            made = function.lower(*arguments, **static).compile()
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
    peak = made.memory_analysis().peak_memory_in_bytes
    return CompiledPass(machine, arguments, hlo.Module.of(made.as_text()), peak, made.as_text())


def nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
