"""Settings: read from a config into dataclasses, checked against their types and by `require…` in `__post_init__`.

`launch.stages` has these names, too.
"""

import contextlib
import dataclasses
import math
import numbers
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from launch.reading import printable, shown
from launch.reading.values import Unfit, checked, types_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from ml_collections import ConfigDict

T = TypeVar("T", bound="DataclassInstance")


class SettingError(ValueError):
    """A setting that cannot be used.

    Attributes:
      name: the setting, dotted, as the config has it: "phi.optimizer.learning_rate".
      problem: its value, what is valid, what to do.
    """

    def __init__(self, name: str, problem: str):
        self.name, self.problem = name, problem
        super().__init__(printable(f"{name}{problem}"))


# -- checks -----------------------------------------------------------------------------------------------------------


def require(ok: Any, owner: Any, name: str, problem: str) -> None:
    """Raise `SettingError` for a field of `owner` unless `ok`; `problem` says what is valid."""
    if not ok:
        raise SettingError(name, f"={shown(getattr(owner, name))}: {problem}")


def require_known(owner: Any, name: str, known: Iterable[str]) -> None:
    """Raise `SettingError` unless a field is one of the known names, or a tuple of them without repetition."""
    valid = tuple(known)
    value = getattr(owner, name)
    for item in value if isinstance(value, tuple) else (value,):
        if item not in valid:
            of = f" has {shown(item)}" if isinstance(value, tuple) else f"={shown(item)}"
            raise SettingError(name, f"{of}; valid names: {', '.join(map(repr, valid))}")
    if isinstance(value, tuple):
        require_distinct(owner, name)


def require_distinct(owner: Any, *names: str) -> None:
    """Raise `SettingError` for fields that are tuples with an entry twice."""
    for name in names:
        value = getattr(owner, name)
        twice = next((item for index, item in enumerate(value) if item in value[:index]), None)
        require(twice is None, owner, name, f"has {shown(twice)} twice")


def require_number(
    owner: Any,
    *names: str,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise `SettingError` unless fields, or the entries of tuples, are finite numbers within bounds."""
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    limits = " and ".join(f"{what} {bound:g}" for what, bound in bounds.items() if math.isfinite(bound))
    for name in names:
        value = getattr(owner, name)
        for item in value if isinstance(value, tuple) else (value,):
            ok = is_number(item) and math.isfinite(item) and least <= item <= most and above < item < below
            require(ok, owner, name, f"must be a number, {limits}" if limits else "must be a finite number")


def is_number(value: Any) -> bool:
    """Whether a value is a real number; a bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


# -- reading ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def section(prefix: str) -> Iterator[None]:
    """Settings that are refused inside are named with `prefix` before them."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{prefix}.{error.name}" if prefix else error.name, error.problem) from error


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Errors inside that are about the setting `name`, but do not say so, become a `SettingError` that does."""
    try:
        yield
    except SettingError:
        raise
    except (ValueError, OSError) as error:
        raise SettingError(name, f": {error}") from error


def setting(
    config: "Mapping | ConfigDict",
    name: str,
    declared: Any,
    *,
    known: Iterable[str] | None = None,
    least: float = -math.inf,
) -> Any:
    """One value of a config, by its dotted name.

        seed = setting(config, "seed", int, least=0)

    Args:
      config: the whole config.
      name: of the value.
      declared: its type, as a dataclass would declare it.
      known: the names that it may be, or that the entries of a tuple may be; None for any.
      least: the smallest number that it may be.

    Raises:
      SettingError: it is missing, has another type, is none of the names, or too small.
    """
    value: Any = config
    for part in name.split("."):
        if not _is_section(value) or part not in value:
            raise SettingError(name, ": missing; it has no default")
        value = value[part]
    value = _typed(name, value, declared)
    owner = types.SimpleNamespace(**{name: value})
    if known is not None:
        require_known(owner, name, known)
    if least > -math.inf:
        require_number(owner, name, least=least)
    return value


def settings(
    kind: type[T], config: "Mapping | ConfigDict", path: str = "", /, *, skip: Iterable[str] = (), **given: Any
) -> T:
    """A dataclass from a section of a config: fields from keys of the same name, nested dataclasses from sections.

        phi = settings(Phi, config, "phi", clip=clip, seed=seed)

    Args:
      kind: a dataclass, such as a stage.
      config: the whole config.
      path: of the section, dotted; "" for the top level, of which only fields of `kind` are read.
      skip: keys of the section that others read.
      given: fields that do not come from this section: other stages, a seed.

    Raises:
      SettingError: a value has another type than the field, or is refused by the class; the section is missing, has a
        key that is no field, or lacks a field that has no default. The message names the path.
    """
    part: Any = config
    for name in path.split(".") if path else ():
        if not _is_section(part) or name not in part or not _is_section(part[name]):
            raise SettingError(path, f": no such section; {kind.__name__} is read from it")
        part = part[name]
    fields, declared = {f.name: f for f in dataclasses.fields(kind)}, types_of(kind)
    values = dict(given)
    for name in part:
        if name in given or name in skip or (not path and name not in fields):
            continue
        full = f"{path}.{name}" if path else name
        if name not in fields:
            raise SettingError(full, f": no such setting; {path} has {', '.join(fields)}")
        value = part[name]
        if _is_section(value) and isinstance(declared[name], type) and dataclasses.is_dataclass(declared[name]):
            values[name] = settings(declared[name], config, full)
        else:
            values[name] = _typed(full, dict(value.items()) if _is_section(value) else value, declared[name])
    with section(path):
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and field.init and name not in values:
                raise SettingError(name, ": missing, and it has no default")
        return kind(**values)


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "to_dict")


def _typed(name: str, value: Any, declared: Any) -> Any:
    try:
        return checked(value, declared)
    except Unfit as error:
        raise SettingError(name, f"={shown(value)}: {error}") from error
