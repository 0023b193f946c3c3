"""Stacks: members whose plans are equal up to stackable numbers, and why other members are in other stacks."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from launch.stages import Stage, counted_fields, walk
from launch.sweeps.members import Member, SweepError

_LONGEST = 40  # characters of a value that are shown


@dataclass(frozen=True)
class PlannedMember:
    """A member with its plan.

    Attributes:
      member: what is trained.
      experiment: the module that planned it.
      root: its plan.
    """

    member: Member
    experiment: ModuleType
    root: Stage


@dataclass(frozen=True)
class Difference:
    """A field that keeps stacks apart.

    Attributes:
      field: "Tuning.objective.noise": the class of the stage, and the field in it.
      values: its value in every stack.
      zero: whether the field is stackable, but 0 in some stacks and not in others.
    """

    field: str
    values: tuple[Any, ...]
    zero: bool = False

    @property
    def reason(self) -> str:
        """Why no program covers all values."""
        return f"{self.field}=0 needs another program" if self.zero else f"{self.field} cannot be stacked"


def group(members: Iterable[PlannedMember]) -> list[list[PlannedMember]]:
    """Group members into stacks; both keep their order."""
    stacks: dict[str, list[PlannedMember]] = {}
    for planned in members:
        stacks.setdefault(planned.root.stack_key, []).append(planned)
    return list(stacks.values())


def explain(stacks: Sequence[Sequence[PlannedMember]]) -> str:
    """Why there are several stacks, and which members each has; "" for one stack.

    Raises:
      SweepError: no stage of any plan stacks, or every stack has one member only.
    """
    roots = [stack[0].root for stack in stacks]
    if not any(stage.STACKS for root in roots for stage in walk(root)):
        names = ", ".join(dict.fromkeys(stack[0].experiment.__name__ for stack in stacks))
        raise SweepError(f"--executor=vmap: {names} cannot train several configs as one program; use --executor=local")
    if len(stacks) == 1:
        return ""
    differing = differences(roots)
    reasons = "; ".join(difference.reason for difference in differing)
    stackable = f"members of a stack may differ in {', '.join(stackable_fields(roots))}"
    if all(len(stack) == 1 for stack in stacks):
        raise SweepError(
            f"--executor=vmap: no two members fit into one program: {reasons}; {stackable}; use --executor=local"
        )
    lines = [f"{len(stacks)} stacks: {reasons}", stackable]
    for index, stack in enumerate(stacks):
        values = {d.field: d.values[index] for d in differing if not d.zero or d.values[index] == 0}
        label = ",".join(f"{field}={_shown(value)}" for field, value in values.items())
        lines.append(f"  {len(stack)} members  {label or 'the others'}")
    return "\n".join(lines)


def differences(roots: Sequence[Stage]) -> list[Difference]:
    """The fields in which plans of different stacks differ, each once."""
    return list({difference.field: difference for difference in _differences(roots, "the plan")}.values())


def _differences(values: Sequence[Any], name: str) -> Iterator[Difference]:
    """Where values of one field differ, by the innermost field.

    Args:
      values: one for each stack.
      name: of the field.
    """
    first, one_kind = values[0], len({type(value) for value in values}) == 1
    if one_kind and dataclasses.is_dataclass(first):
        owner = type(first).__name__ if isinstance(first, Stage) else name
        for field in counted_fields(first):
            label, inner = f"{owner}.{field.name}", [getattr(value, field.name) for value in values]
            if not field.metadata.get("stackable"):
                yield from _differences(inner, label)
            elif field.metadata.get("off_at_zero") and len({value == 0 for value in inner}) == 2:
                yield Difference(label, tuple(inner), zero=True)
    elif one_kind and isinstance(first, tuple | list) and len({len(value) for value in values}) == 1:
        for index, inner in enumerate(zip(*values, strict=True)):
            yield from _differences(inner, f"{name}[{index}]")
    elif one_kind and isinstance(first, Mapping) and all(value.keys() == first.keys() for value in values):
        for key in first:
            yield from _differences([value[key] for value in values], f"{name}[{key!r}]")
    elif any(value != first for value in values):
        yield Difference(name, tuple(values))


def stackable_fields(roots: Iterable[Stage]) -> list[str]:
    """The fields in which members of a stack may differ, by class and field: "Tuning.optimizer.learning_rate"."""
    return list(dict.fromkeys(name for root in roots for stage in walk(root) for name in _stackable(stage, "")))


def _stackable(value: Any, name: str) -> Iterator[str]:
    owner = type(value).__name__ if isinstance(value, Stage) else name
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if field.metadata.get("stackable"):
            yield f"{owner}.{field.name}"
        elif dataclasses.is_dataclass(inner) and not isinstance(inner, Stage | type):
            yield from _stackable(inner, f"{owner}.{field.name}")


def _shown(value: Any) -> str:
    """A value in a stack's label: of a stage or dataclass its class."""
    text = type(value).__name__ if dataclasses.is_dataclass(value) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
