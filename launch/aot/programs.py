"""What plans compile: the programs of trained stages, alone or stacked, and frozen passes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from launch.aot.topologies import Topology
from launch.stages import Stage, children, walk
from launch.training import fit, sharding
from launch.training.places import One
from launch.training.program import Pass


@dataclass(frozen=True)
class LoweredPass:
    """A pass with its program, which the compiler has not seen yet.

    Attributes:
      name: class of the stage, name of the pass; how many stages have the same program, if several do.
      calls: how often a run calls it, all stages together; 0 where only the data tells.
      arguments: the shapes that it was lowered for.
      program: for the devices of a topology.
    """

    name: str
    calls: int
    arguments: Any
    program: jax.stages.Lowered


def of_plan(root: Stage, topology: Topology) -> list[Pass]:
    """The passes of a run's stages, in the order in which they are made.

    Raises:
      ValueError: a stage cannot be computed on so many devices.
    """
    return [one for stage in walk(root) for one in (*_trained(stage, topology), *_frozen(stage, topology))]


def of_stack(roots: Sequence[Stage], topology: Topology) -> list[Pass]:
    """The passes of members that `launch.sweeps.stacks` has put together, where several are made as one program.

    Args:
      roots: their plans, equal up to stackable numbers.
      topology: to compile for.

    Raises:
      ValueError: a stage cannot be computed on so many devices.
    """
    seen: set[frozenset[str]] = set()

    def visit(stages: Sequence[Stage]) -> Iterator[Pass]:
        waiting = {stage.key: stage for stage in stages}
        if frozenset(waiting) in seen:
            return
        seen.add(frozenset(waiting))
        for parts in zip(*map(children, waiting.values()), strict=True):
            yield from visit(parts)
        first, kind = stages[0], type(stages[0])
        if len(waiting) > 1 and kind.STACKS:
            outline: Any = getattr(kind, "outline_together", None)
            if outline is not None:
                yield from outline(list(waiting.values()), topology.devices)
        else:
            yield from _trained(first, topology)
        yield from _frozen(first, topology)

    return list(visit(roots))


def lower(passes: Sequence[Pass]) -> list[LoweredPass]:
    """The passes for the devices of their topology; those with the same program are one."""
    found: dict[bytes, LoweredPass] = {}
    counts: dict[bytes, int] = {}
    for one in passes:
        program = one.function.lower(*one.arguments)
        digest = hashlib.sha256(program.as_text().encode()).digest()
        counts[digest] = counts.get(digest, 0) + 1
        before = found.get(digest)
        calls = one.calls + before.calls if before and one.calls and before.calls else 0 if before else one.calls
        found[digest] = LoweredPass(before.name if before else one.name, calls, one.arguments, program)
    named = lambda one, count: f"{one.name} (×{count})" if count > 1 else one.name
    return [
        LoweredPass(named(one, counts[digest]), one.calls, one.arguments, one.program) for digest, one in found.items()
    ]


def _trained(stage: Any, topology: Topology) -> list[Pass]:
    """What a stage that trains compiles for it; see `launch.training.program.TrainedStage`."""
    if not hasattr(stage, "layout"):
        return []
    layout = stage.layout(topology.devices)
    return fit.outlines(One(layout), type(stage).__name__, stage.program(layout), stage.loop)


def _frozen(stage: Any, topology: Topology) -> list[Pass]:
    """The passes of a stage that has some; see `launch.training.program.FrozenStage`."""
    if not hasattr(stage, "passes"):
        return []
    kind = type(stage).__name__
    passes = stage.passes(sharding.layout(devices=topology.devices))
    return [Pass(f"{kind}: {one.name}", one.function, one.arguments, one.calls) for one in passes]
