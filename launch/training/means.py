"""Means over a data set of what is measured for each example, summed on the devices."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.networks import loops
from launch.training import sharding
from launch.training.prefetch import prefetch
from launch.training.program import Pass


@functools.partial(jax.jit, static_argnames="fn")
def _draw(fn: Callable, variables, batch, repeat) -> dict[str, jax.Array]:
    # Module-level, with `fn` static: the evaluations of one training run share one compiled program.
    values = fn(variables, batch, repeat)
    for name, value in values.items():
        if value.shape != batch["mask"].shape:
            raise ValueError(f"{name} has shape {value.shape}, the batch's mask {batch['mask'].shape}")
    return values


@functools.partial(jax.jit, static_argnames=("fn", "repeats"))
def _draws(fn: Callable, variables, batch, repeats: int) -> dict[str, jax.Array]:
    """The sum over all repeats, in one program."""
    one = lambda repeat: _draw(fn, variables, batch, repeat)
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(one, np.int32(0)))
    return jax.lax.fori_loop(np.int32(0), np.int32(repeats), lambda repeat, total: add(total, one(repeat)), zeros)


@functools.partial(jax.jit, static_argnames="fn")
def _once(fn: Callable, variables, batch):
    return fn(variables, batch)


@functools.partial(jax.jit, static_argnames=("finish", "repeats", "sharding"))
def _fold(values: dict[str, jax.Array], mask: jax.Array, *, finish: Callable, repeats: int, sharding):
    """Sums over a batch of what `finish` makes of each example's mean over the repeats."""
    values = finish({k: v / repeats for k, v in values.items()})
    # where, not a product: whatever the padding's value is, it must not reach the sum
    values = {k: jnp.where(mask, v, 0) for k, v in values.items()} | {"examples": mask}
    dtype = functools.reduce(jnp.promote_types, (v.dtype for v in values.values()), jnp.float32)
    totals = jnp.stack([v.astype(dtype) for v in values.values()]).sum(1)  # one sum over devices for all
    totals = jax.lax.with_sharding_constraint(totals, sharding)
    return dict(zip(values, totals, strict=True))


@jax.jit
def add(a, b):
    """The sum of two pytrees, on the devices."""
    return jax.tree.map(jnp.add, a, b)


def masked_means(
    layout: sharding.Layout,
    fn: Callable[..., dict[str, jax.Array]],
    variables: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    resident: Any = None,
    repeats: int = 1,
    once: Callable[[Any, Mapping[str, jax.Array]], Any] | None = None,
    compile_once: bool = True,
    finish: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = dict,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Average `fn` over the examples of a data set: summed under the mask on the devices, divided once.

    Args:
      fn: `(variables, batch, repeat) -> {name: (n,) array}`, pure; compiled once for as long as it is the same object.
      variables: passed to `fn`, on the devices.
      batches: padded evaluation batches with a "mask".
      resident: passed to `fn` as `batch["resident"]`, on the devices.
      repeats: how many times each batch is evaluated, with repeat = 0, 1, …: the draws of a random perturbation, say.
        One program a batch, or on CPU one compiled call a draw (see `launch.networks.loops`).
      once: `(variables, batch) -> pytree`, what a batch's repeats have in common, for `fn` in `batch["once"]`.
      compile_once: whether `once` is compiled as one program. False calls it uncompiled, on device arrays, for what is
        a loop of compiled calls on the host.
      finish: applied to each example's mean over the repeats: a root, say.
      check_stop: called between batches; may raise.

    Returns:
      {name: mean over examples} and "examples", their number.

    Raises:
      ValueError: there are no examples, or `fn` gives an array of another shape than the mask.
    """
    extra = {} if resident is None else {sharding.RESIDENT: resident}
    numbers = [layout.replicate(np.int32(i)) for i in range(repeats)]
    # The devices of a CPU share few threads: with several programs under way, the sums over devices of one can take
    # them all, and deadlock, waiting for a device that has none left.
    shared = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    one_at_a_time = jax.block_until_ready if shared else lambda values: values
    sums = None
    for batch in prefetch(batches, layout.put):
        check_stop()
        values, batch = None, batch | extra
        if once is not None:
            common = _once(once, variables, batch) if compile_once else once(variables, batch)
            batch |= {"once": common}
        if repeats > 1 and loops.in_program(batch):
            values = _draws(fn, variables, batch, repeats=repeats)
        else:
            for number in numbers:
                new = one_at_a_time(_draw(fn, variables, batch, number))
                values = new if values is None else add(values, new)
        totals = _fold(values, batch["mask"], finish=finish, repeats=repeats, sharding=layout.replicated)
        sums = totals if sums is None else add(sums, totals)
    if sums is None or not sums["examples"]:
        raise ValueError("there are no examples to evaluate")
    sums = {k: float(v) for k, v in jax.device_get(sums).items()}
    return {k: v / sums["examples"] for k, v in sums.items() if k != "examples"} | {"examples": sums["examples"]}


def outline(
    layout: sharding.Layout,
    name: str,
    fn: Callable[..., dict[str, jax.Array]],
    variables: Any,
    batch: Mapping[str, Any],
    *,
    batches: int,
    repeats: int = 1,
    once: Callable[[Any, Mapping[str, jax.Array]], Any] | None = None,
) -> list[Pass]:
    """What `masked_means` compiles on an accelerator, but for the sums; arguments as there, from shapes on devices.

    Args:
      name: of what is measured.
      batch: with the resident arrays.
      batches: their number.
    """
    passes = []
    if once is not None:
        passes.append(Pass(f"{name}, once a batch", _once, (once, variables, batch), batches))
        rows = batch["mask"].shape[0]
        split = NamedSharding(layout.mesh, P("data"))
        where = lambda leaf: split if leaf.shape[:1] == (rows,) else layout.replicated
        placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where(leaf))
        batch = {**batch, "once": jax.tree.map(placed, jax.eval_shape(once, variables, batch))}
    if repeats > 1:
        return [*passes, Pass(name, _draws, (fn, variables, batch, repeats), batches)]
    draw = jax.ShapeDtypeStruct((), np.int32, sharding=layout.replicated)
    return [*passes, Pass(name, _draw, (fn, variables, batch, draw), batches)]
