"""Loops of many equal steps: one program on an accelerator, one call a step on a CPU.

XLA on CPU runs second-order convolutions inside its own loops several times slower than outside, while on an
accelerator every call from the host is time in which the device may wait. The numbers are the same up to rounding.
"""

from functools import partial
from typing import Any, Protocol

import jax
from jax.core import Tracer


class LoopStep(Protocol):
    """One step of a loop, pure: (context, state) -> the next state, of the same structure; all are pytrees."""

    def __call__(self, context: Any, state: Any, /) -> Any: ...


def in_program(*trees: Any) -> bool:
    """Whether a loop over these arrays belongs inside of a compiled program: wherever they are not on a CPU.

    Where none of them is on a device yet, as during a trace, the devices that JAX uses by default decide.
    """
    there = (a for a in jax.tree.leaves(trees) if isinstance(a, jax.Array) and not isinstance(a, Tracer))
    first = next(there, None)
    platform = jax.default_backend() if first is None else next(iter(first.sharding.device_set)).platform
    return platform != "cpu"


def iterate(step: LoopStep, context: Any, state: Any, steps: int, compiled_loop: bool | None = None) -> Any:
    """`steps` times `state = step(context, state)`.

    Args:
      step: hashable; equal ones share their programs.
      compiled_loop: True for one program, False for as many calls of a smaller one; None chooses the first inside an
        outer jit and where `in_program` says so.

    Raises:
      ValueError: compiled_loop=False inside jit, grad or vmap.
    """
    inside_jit = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((context, state)))
    if inside_jit and compiled_loop is False:
        raise ValueError("compiled_loop=False is a loop on the host and cannot run inside jit, grad or vmap")
    if inside_jit or (in_program(context, state) if compiled_loop is None else compiled_loop):
        return _loop(step, context, state, steps)
    for _ in range(steps):
        state = _step(step, context, state)
    return state


def outline(step: LoopStep, context: Any, state: Any, steps: int, platform: str) -> tuple[Any, tuple[Any, ...], int]:
    """What `iterate` compiles for shapes on a platform: a jitted function, its arguments, its number of calls."""
    if platform == "cpu":
        return _step, (step, context, state), steps
    return _loop, (step, context, state, steps), 1


@partial(jax.jit, static_argnames="step")
def _step(step: LoopStep, context: Any, state: Any) -> Any:
    return step(context, state)


@partial(jax.jit, static_argnames=("step", "steps"))
def _loop(step: LoopStep, context: Any, state: Any, steps: int) -> Any:
    return jax.lax.fori_loop(0, steps, lambda _, state: step(context, state), state)
