"""Durations: epochs and examples as optimiser steps.

A duration is one string, ``"90 epochs"``, ``"1000 steps"`` or ``"1e6 examples"``: one number and one unit, so two
lengths cannot contradict each other, and an override on the command line replaces number and unit together
(``--config.duration="20 steps"``).
"""

import re
from fractions import Fraction
from typing import Any

from launch.reading import shown
from launch.stages import SettingError, require

_LONGEST, _LARGEST = 64, 18  # characters, and the exponent of ten
_FORM = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?)\s*(epoch|step|example)s?\s*")


def check(owner: Any, *names: str, least: int = 0) -> None:
    """Raise `SettingError` unless fields are durations, or tuples of them, of at least so many steps."""
    for name in names:
        value = getattr(owner, name)
        for one in value if isinstance(value, tuple) else (value,):
            try:
                steps = to_steps(one, examples=1, batch_size=1)
            except (TypeError, ValueError) as error:
                raise SettingError(name, f": {error}") from error
            require(steps >= least, owner, name, f"must be at least {least} step")


def to_steps(value: str, *, examples: int, batch_size: int) -> int:
    """Optimiser steps in a duration.

    An epoch is ``examples / batch_size`` steps, a fraction in general: batches continue over the end of an epoch, so
    none is short and none is dropped. The result is rounded to the nearest step, and is at least 1 for any duration
    above zero.

    Args:
      value: ``"<number> epochs"``, ``"<number> steps"`` or ``"<number> examples"``; the singular is accepted too.
      examples: training examples in one epoch.
      batch_size: examples in one step, over all devices and hosts.

    Raises:
      TypeError: `value` is not a string.
      ValueError: `value` has another form, is negative, a fraction of a step, or 2**31 steps and more; `examples` or
        `batch_size` is not positive.
    """
    if not isinstance(value, str):
        raise TypeError(f"a duration is a string such as '90 epochs' or '1000 steps', not {shown(value)}; add the unit")
    if examples <= 0 or batch_size <= 0:
        raise ValueError(f"duration {value!r}: {examples=} and {batch_size=} must both be positive")
    if len(value) > _LONGEST:  # the expression would look at it for long
        raise ValueError(f"the duration {shown(value)} has too many digits or other characters")
    match = _FORM.fullmatch(value)
    if not match:
        raise ValueError(
            f"cannot read the duration {shown(value)}: write one number and one of epochs, steps, examples, "
            "such as '90 epochs' or '1000 steps'"
        )
    if abs(int(match[2] or 0)) > _LARGEST:
        raise ValueError(f"the duration {shown(value)} has too many digits; at most {_LARGEST} are of use")
    # Fractions, because 0.1 epochs of 50 000 examples should not depend on how 0.1 rounds in binary.
    number, unit = Fraction(match[1]), match[3]
    if number < 0:
        raise ValueError(f"the duration {value!r} is negative")
    if unit == "step":
        if number.denominator != 1:
            raise ValueError(f"the duration {value!r} is not a whole number of steps")
        steps = int(number)
    else:
        seen = number * examples if unit == "epoch" else number
        steps = max(round(seen / batch_size), 1) if seen > 0 else 0
    if steps >= 2**31:
        raise ValueError(f"the duration {value!r} is {float(steps):.3g} steps; a run has less than 2**31")
    return steps
