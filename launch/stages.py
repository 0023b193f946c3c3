"""A stage: settings as a frozen dataclass, and how its result is made from them.

    @dataclass(frozen=True)
    class Projector(Stage):
        features: Features  # another stage: what this one is made from
        ridge: float = stackable(50.0)  # members of one compiled program may differ in it
        batch_size: int = free(256)  # changes how fast the result is made, not what it is

        def make(self, store):
            x, y = store.get(self.features)
            return solve(x, y, self.ridge)

Fields are settings, checked in `__post_init__` by `require`; `settings` reads them from a config. `launch.store` makes
each stage once and keeps the result under the stage's key: class, version and fields. The plan of a run is the stage
at its root, which holds all others in its fields.
"""

import copy
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np

from launch.settings import (
    SettingError,
    about,
    is_number,
    require,
    require_distinct,
    require_known,
    require_number,
    section,
    setting,
    settings,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from launch.store import Store

__all__ = [
    "File",
    "SettingError",
    "Stage",
    "about",
    "children",
    "counted_fields",
    "describe",
    "free",
    "is_number",
    "numbers",
    "require",
    "require_distinct",
    "require_known",
    "require_number",
    "section",
    "setting",
    "settings",
    "stackable",
    "stacked_numbers",
    "walk",
    "with_numbers",
]

T = TypeVar("T", bound="DataclassInstance")
_LARGE = 64 << 20  # bytes: larger files are identified by size and time, smaller ones by content
_STACKED = "*"  # stands for every value of a stackable field


# -- fields ---------------------------------------------------------------------------------------------------------


def stackable(default: Any = dataclasses.MISSING, *, off_at_zero: bool = False, argument: bool = True) -> Any:
    """A number in which members of one compiled program may differ: an argument of the program.

    Args:
      default: of the field.
      off_at_zero: 0 switches a part of the program off, so that members with and without it need two programs.
      argument: False for a number that sweeps rarely vary: it is an argument only where the members of a stack differ
        in it, and a constant of the program otherwise.
    """
    metadata = {"stackable": True, "off_at_zero": off_at_zero, "argument": argument}
    return dataclasses.field(default=default, metadata=metadata)


def free(default: Any = dataclasses.MISSING) -> Any:
    """A field that changes how a result is made, not what it is, such as the batch size of a frozen pass."""
    return dataclasses.field(default=default, metadata={"free": True})


@dataclass(frozen=True)
class File:
    """A file or a folder that a stage reads; it counts by what is in it, not by where it is.

    Files above 64 MB count by size and time of change. A folder counts by the names and contents of its files.
    """

    path: str

    def digest(self) -> str:
        """A hash of the content.

        Raises:
          FileNotFoundError: there is nothing at `path`.
        """
        root = Path(self.path).expanduser()
        if not root.exists():
            raise FileNotFoundError(f"{self.path}: no such file or folder")
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        total = hashlib.sha256()
        for file in files:
            status = file.stat()
            if status.st_size > _LARGE:
                own = f"{status.st_size} {status.st_mtime_ns}".encode()
            else:
                own = hashlib.sha256(file.read_bytes()).digest()
            name = b"" if root.is_file() else str(file.relative_to(root)).encode()
            total.update(b"%d:%b%b" % (len(name), name, own))
        return total.hexdigest()[:32]


# -- stages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Base of all stages; see the module's docstring.

    Class attributes:
      VERSION: counted up when `make` changes what it gives for the same fields; results of earlier versions stay.
      KEPT: whether the result is written to disk. False for what is quickly read or computed again, such as a data set
        in its own files; then it lives in memory alone.
      STACKS: whether `make_together` makes several stages that differ only in stackable numbers as one program.
    """

    VERSION: ClassVar[int] = 1
    KEPT: ClassVar[bool] = True
    STACKS: ClassVar[bool] = False

    def make(self, store: "Store") -> Any:
        """Compute the result; other stages' results come from `store.get`. Every process of a run calls it."""
        raise NotImplementedError(f"{type(self).__name__} has no make()")

    def preflight(self, store: "Store") -> None:
        """Refuse what settings alone do not show, such as files that cannot be used.

        It is called before a run directory is touched, for what the run would have to make, in the order of `walk`. It
        may `store.get` stages with `KEPT = False`; they are in memory then, for `make`.

        Raises:
          SettingError, InputError: what is wrong, by name.
        """

    def check_devices(self) -> None:
        """Refuse what cannot be spread over all devices, such as a batch that does not divide; called with `preflight`.

        Members of a stack have a device or a part of one each: they are not asked.

        Raises:
          SettingError: what is wrong, by name.
        """

    @classmethod
    def make_together(cls, stages: Sequence[Self], store: "Store") -> dict[int, Exception]:
        """Make several stages as one program and put each into the store; only of classes with `STACKS = True`.

        The caller holds the locks of all stages, and none of them is in the store. What they are made from is in the
        store, and comes from `store.get`; each result is kept by `store.put`, under a key that does not say how it was
        made. `launch.training.fit.train_together` trains k stages in their own folders.

        Args:
          stages: with different keys and one `stack_key`; one alone where no two fit into the devices' memory.
          store: keeps their results.

        Returns:
          Why a stage was given up, by its index; all others are in the store.

        Raises:
          Preempted: the run was asked to stop; every stage can be continued, together or alone.
          Exception: nothing could be made of any stage.
        """
        raise NotImplementedError(f"{cls.__name__} has no make_together()")

    def encode(self, value: Any) -> Any:
        """The result as nested dicts and lists of arrays and JSON values, as `launch.files.save_tree` writes them."""
        return value

    def decode(self, tree: Any) -> Any:
        """The inverse of `encode`; arrays come memory-mapped and read-only."""
        return tree

    @property
    def key(self) -> str:
        """ "projector-5d0c7b2a91f4e3d0": the name of the class and a hash of all that decides the result."""
        return self._cached("_key", stacked=False)

    @property
    def stack_key(self) -> str:
        """The key with all stackable numbers left out: equal for stages that one program can make."""
        return self._cached("_stack_key", stacked=True)

    def _cached(self, name: str, *, stacked: bool) -> str:
        if name not in self.__dict__:
            text = json.dumps(describe(self, stacked=stacked), sort_keys=True, allow_nan=False)
            key = f"{_snake(type(self).__name__)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            object.__setattr__(self, name, key)
        return self.__dict__[name]


def describe(value: Any, *, stacked: bool = False) -> Any:
    """What decides a stage's result, as JSON values; of stages in its fields the keys.

    Args:
      value: a stage, or anything that a field may hold: numbers, strings, None, `File`, dataclasses, tuples, mappings.
      stacked: with "*" for stackable numbers, in nested stages too.

    Raises:
      TypeError: a value of another type; the field is named.
      ValueError: a number that is not finite.
    """
    if isinstance(value, File):
        return {"file": value.digest()}
    if _is_instance(value):
        fields = {f.name: _described_field(value, f, stacked) for f in counted_fields(value)}
        head = {"class": f"{type(value).__module__}.{type(value).__qualname__}"}
        return head | {"version": getattr(type(value), "VERSION", 1), "fields": fields}
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not finite")
        return int(value) if value.is_integer() else value  # 50 and 50.0 are one setting
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, tuple | list):
        return [_described_item(item, stacked) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _described_item(item, stacked) for name, item in sorted(value.items())}
    raise TypeError(f"a {type(value).__name__} has no key; take numbers, strings, File, tuples, dataclasses or stages")


def _described_item(value: Any, stacked: bool) -> Any:
    if isinstance(value, Stage):
        return {"stage": value.stack_key if stacked else value.key}
    return describe(value, stacked=stacked)


def _described_field(owner: Any, field: dataclasses.Field, stacked: bool) -> Any:
    value = getattr(owner, field.name)
    if stacked and field.metadata.get("stackable"):
        return [_STACKED, value == 0] if field.metadata.get("off_at_zero") else _STACKED
    try:
        return _described_item(value, stacked)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{type(owner).__name__}.{field.name}: {error}") from error


def _is_instance(value: Any) -> bool:
    """Whether a value is a dataclass, and not the class itself."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def counted_fields(value: Any) -> list[dataclasses.Field]:
    """The fields of a dataclass that count for the result: all that are not `free`."""
    return [field for field in dataclasses.fields(value) if not field.metadata.get("free")]


def children(stage: Any) -> Iterator[Stage]:
    """The stages in the fields of a stage, in tuples, mappings and plain dataclasses too; in order."""
    for field in dataclasses.fields(stage):
        yield from _stages_in(getattr(stage, field.name))


def _stages_in(value: Any) -> Iterator[Stage]:
    if isinstance(value, Stage):
        yield value
    elif _is_instance(value):
        yield from children(value)
    elif isinstance(value, tuple | list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _stages_in(item)


def walk(stage: Stage, there: Callable[[Stage], bool] = lambda stage: False) -> list[Stage]:
    """The stage and all that it is made from, each key once, those before that are needed by others.

    Args:
      stage: the root.
      there: stages that are left out, with all that they are made from, unless others are made from it.
    """
    found: dict[str, Stage] = {}

    def visit(one: Stage) -> None:
        if one.key not in found and not there(one):
            for child in children(one):
                visit(child)
            found[one.key] = one

    visit(stage)
    return list(found.values())


# -- numbers of a program -------------------------------------------------------------------------------------------


def numbers(value: Any) -> dict[str, Any]:
    """{"optimizer.learning_rate": 1e-3, …}: the numbers of a stage that are arguments of its program.

    They are those of its stackable fields and of the plain dataclasses in it, but for the ones with `argument=False`
    and those that are switched off at 0. Stages in its fields are results when this one is made: they add none.
    """
    return {name: own for name, (own, argument) in _numbers(value, "").items() if argument}


def stacked_numbers(members: Sequence[Any]) -> dict[str, list[Any]]:
    """The numbers of stages that one program makes, a value for each: `numbers`, and all others that differ."""
    each = [_numbers(member, "") for member in members]
    values = {name: [own[name][0] for own in each] for name in each[0]}
    return {name: own for name, own in values.items() if each[0][name][1] or any(value != own[0] for value in own)}


def _numbers(value: Any, prefix: str) -> dict[str, tuple[Any, bool]]:
    numbers_by_name: dict[str, tuple[Any, bool]] = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if field.metadata.get("stackable"):
            off = field.metadata["off_at_zero"] and own == 0  # a program without that part does not read it
            numbers_by_name[prefix + field.name] = own, field.metadata["argument"] and not off
        elif dataclasses.is_dataclass(own) and not isinstance(own, Stage | type):
            numbers_by_name |= _numbers(own, f"{prefix}{field.name}.")
    return numbers_by_name


def with_numbers(value: T, given: Mapping[str, Any]) -> T:
    """The same stage with other numbers, by the names of `numbers`; traced ones too, so nothing is checked."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, number in given.items():
        first, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(first, {})[rest] = number
        else:
            own[first] = number
    unknown = (set(own) | set(nested)) - {field.name for field in dataclasses.fields(value)}
    if unknown:
        raise ValueError(f"{type(value).__name__} has no number {min(unknown)!r}")
    changed = copy.copy(value)
    for cached in ("_key", "_stack_key"):
        changed.__dict__.pop(cached, None)
    for name, inner in nested.items():
        own[name] = with_numbers(getattr(value, name), inner)
    for name, number in own.items():
        object.__setattr__(changed, name, number)
    return changed


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
