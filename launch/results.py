"""Stages by the kind of their results, which say how these are kept."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from launch.stages import Stage


class FieldsStage(Stage):
    """A stage whose result is a dataclass or named tuple of arrays and JSON values, `RESULT`."""

    RESULT: ClassVar[Any]

    def encode(self, value: Any) -> dict[str, Any]:
        return value._asdict() if hasattr(value, "_asdict") else dict(vars(value))

    def decode(self, tree: Any) -> Any:
        return self.RESULT(**tree)


class NumbersStage(Stage):
    """A stage whose result are numbers by name, NaN among them."""

    def encode(self, value: Mapping[str, float]) -> dict[str, float | None]:
        return without_nan(value)

    def decode(self, tree: Any) -> dict[str, float]:
        return with_nan(tree)


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """As JSON has them: None for what is not finite."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    """The inverse of `without_nan`, with NaN for all that was not finite."""
    return {name: math.nan if value is None else value for name, value in values.items()}
