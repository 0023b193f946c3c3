"""How many floating-point operations a traced program asks for."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Of the primitives in `conv`: which of (first operand, second operand, result) is the output y of a convolution, and
# which its kernel w.
_CONVOLUTIONS = {"convolve": (2, 1), "convolve_input_grad": (0, 1), "convolve_kernel_grad": (1, 2)}


def count(jaxpr: Jaxpr | ClosedJaxpr) -> float:
    """Operations of all matrix products and convolutions, on all devices together; a multiply-add is two.

    They are counted as the program is written, with what it computes again in a backward pass. A loop counts as often
    as it runs, where XLA's own count (`compiled.cost_analysis()`) has its body once; a `while` counts once, of the
    branches of a `cond` the largest.
    """
    return sum(map(_of, jaxpr.eqns))


def _of(eqn: JaxprEqn) -> float:
    name, shapes = eqn.primitive.name, [_shape(variable) for variable in (*eqn.invars, *eqn.outvars)]
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, features = shapes[1], eqn.params["dimension_numbers"].rhs_spec[0]
        zeros = math.prod(eqn.params["lhs_dilation"])  # one tap in so many meets an entry
        return 2 * math.prod(shapes[2]) * math.prod(kernel) / kernel[features] / zeros
    if name in _CONVOLUTIONS:
        y, w = (shapes[place] for place in _CONVOLUTIONS[name])
        return 2 * math.prod(y) * math.prod(w[1:4])
    inner = [count(jaxpr) for value in eqn.params.values() for jaxpr in _programs(value)]
    if name == "cond":
        return max(inner)
    times = {"scan": lambda: eqn.params["length"], "shard_map": lambda: _devices(eqn)}.get(name, lambda: 1)()
    return times * sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())  # a token has none


def _devices(eqn: JaxprEqn) -> int:
    """Over how many a `shard_map` divides its arguments."""
    return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])


def _programs(value: Any) -> Iterator[Jaxpr | ClosedJaxpr]:
    if isinstance(value, Jaxpr | ClosedJaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _programs(item)
